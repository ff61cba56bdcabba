//! KV block accounting: which block of the pool holds what, and who holds it.
//!
//! A block is in one of three states:
//!
//! - *held* by one or more sequences (a count);
//! - *idle*: held by no one, but its content is a known prefix that can be used again;
//! - *unused*: its content is of no use.
//!
//! A full block is identified by the whole token prefix up to its end: a [`PrefixId`] stands for
//! one such prefix, and a block is found by its parent's prefix and its own tokens. Ids are
//! never used twice and tokens are compared exactly, so there is no hash collision by which one
//! request could read another's context. (The idea is vLLM's automatic prefix caching.)
//!
//! Pure bookkeeping: it must never touch a tensor, and it never says who should run.

use std::collections::{BTreeMap, HashMap};

/// Tokens whose keys and values one block holds.
pub const BLOCK_SIZE: usize = crate::kernels::kv::BLOCK_SIZE;

/// A block of the KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Stands for one exact sequence of tokens from the start of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixId(u64);

impl PrefixId {
    /// The empty prefix, from which all contexts start.
    pub const EMPTY: Self = Self(0);
}

/// A full block's content: its tokens after a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Content {
    parent: PrefixId,
    tokens: [u32; BLOCK_SIZE],
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    content: Option<Content>,
    /// Its key in `BlockPool::idle` while it is idle.
    idle_since: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    block: BlockId,
    prefix: PrefixId,
}

/// All blocks of the KV pool.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Taken from the end: the lowest ids first, so that a large pool's upper end stays untouched
    /// memory until it is needed.
    unused: Vec<BlockId>,
    known: HashMap<Content, Known>,
    /// Least recently used first.
    idle: BTreeMap<u64, BlockId>,
    clock: u64,
    next_prefix: u64,
}

impl BlockPool {
    /// A pool of `blocks` unused blocks.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        let ids = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            blocks: vec![Block::default(); ids as usize],
            unused: (0..ids).rev().map(BlockId).collect(),
            known: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            next_prefix: 1,
        }
    }

    /// Blocks in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be had now: unused ones and idle ones.
    #[must_use]
    pub fn available(&self) -> usize {
        self.unused.len() + self.idle.len()
    }

    /// Blocks held by no one whose content can be used again.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// The blocks that hold the longest known prefix of `tokens`, from the first one on.
    /// Nothing is held by this.
    #[must_use]
    pub fn find_prefix(&self, tokens: &[u32]) -> Vec<(BlockId, PrefixId)> {
        let mut parent = PrefixId::EMPTY;
        let mut found = Vec::new();
        for tokens in tokens.as_chunks::<BLOCK_SIZE>().0 {
            let content = Content {
                parent,
                tokens: *tokens,
            };
            let Some(known) = self.known.get(&content) else {
                break;
            };
            parent = known.prefix;
            found.push((known.block, known.prefix));
        }
        found
    }

    /// Whether no one holds this block.
    #[must_use]
    pub fn is_idle(&self, block: BlockId) -> bool {
        self.blocks[block.0 as usize].holders == 0
    }

    /// Adds a holder to a block found by [`find_prefix`](Self::find_prefix).
    pub fn hold(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        if entry.holders == 0 {
            self.idle.remove(&entry.idle_since);
        }
        entry.holders += 1;
    }

    /// A block to write to, with one holder: an unused one, else the least recently used idle
    /// one, whose content is forgotten. `None` if every block is held.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = match self.unused.pop() {
            Some(block) => block,
            None => self.idle.pop_first()?.1,
        };
        let entry = &mut self.blocks[block.0 as usize];
        entry.holders = 1;
        if let Some(content) = entry.content.take() {
            self.known.remove(&content);
        }
        Some(block)
    }

    /// Says what a held block, now full, contains. If another block has the same content (it is
    /// the same bit for bit, since kernels are batch invariant), that one is held instead and
    /// this one released, so that a shared head is in memory once. Returns the block to use from
    /// now on and the prefix that ends with it.
    pub fn publish(
        &mut self,
        block: BlockId,
        parent: PrefixId,
        tokens: [u32; BLOCK_SIZE],
    ) -> (BlockId, PrefixId) {
        let content = Content { parent, tokens };
        if let Some(&known) = self.known.get(&content) {
            if known.block != block {
                self.hold(known.block);
                self.release(block);
            }
            return (known.block, known.prefix);
        }
        let prefix = PrefixId(self.next_prefix);
        self.next_prefix += 1;
        self.blocks[block.0 as usize].content = Some(content.clone());
        self.known.insert(content, Known { block, prefix });
        (block, prefix)
    }

    /// Takes a holder away. The last one leaves the block idle if its content is known, else
    /// unused. Release a sequence's blocks from the last to the first: then the ends of prefixes
    /// are evicted before their beginnings.
    ///
    /// # Panics
    /// If no one holds the block: the accounts are wrong, and going on would mix contexts.
    pub fn release(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        assert!(entry.holders > 0, "block {} is released twice", block.0);
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        if entry.content.is_some() {
            self.clock += 1;
            entry.idle_since = self.clock;
            self.idle.insert(self.clock, block);
        } else {
            self.unused.push(block);
        }
    }

    /// Checks every invariant of the bookkeeping against the holders given; for tests.
    ///
    /// # Panics
    /// If one does not hold.
    #[cfg(test)]
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) {
        let mut holders = vec![0; self.blocks.len()];
        for table in tables {
            for block in table {
                holders[block.0 as usize] += 1;
            }
        }
        for (id, block) in self.blocks.iter().enumerate() {
            let id = BlockId(u32::try_from(id).unwrap());
            assert_eq!(block.holders, holders[id.0 as usize], "holders of {id:?}");
            let is_idle = self.idle.get(&block.idle_since) == Some(&id);
            let is_unused = self.unused.contains(&id);
            let states = [block.holders > 0, is_idle, is_unused];
            assert_eq!(
                states.iter().filter(|&&s| s).count(),
                1,
                "{id:?}: {states:?}"
            );
            assert!(!is_unused || block.content.is_none());
            if let Some(content) = &block.content {
                assert_eq!(self.known[content].block, id);
            }
        }
        assert_eq!(
            self.known.len(),
            self.blocks.iter().filter(|b| b.content.is_some()).count()
        );
        assert_eq!(
            self.idle.len() + self.unused.len(),
            holders.iter().filter(|&&h| h == 0).count()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: u32) -> [u32; BLOCK_SIZE] {
        [n; BLOCK_SIZE]
    }

    #[test]
    fn a_published_prefix_is_found_again_block_by_block() {
        let mut pool = BlockPool::new(4);
        let first = pool.allocate().unwrap();
        let (first, prefix) = pool.publish(first, PrefixId::EMPTY, tokens(1));
        let second = pool.allocate().unwrap();
        let (second, end) = pool.publish(second, prefix, tokens(2));
        let text = [tokens(1), tokens(2), tokens(3)].concat();
        assert_eq!(pool.find_prefix(&text), [(first, prefix), (second, end)]);
        assert_eq!(
            pool.find_prefix(&text[..40]),
            [(first, prefix), (second, end)]
        );
        assert_eq!(pool.find_prefix(&text[..31]), [(first, prefix)]);
        assert_eq!(pool.find_prefix(&text[BLOCK_SIZE..]), []);
    }

    #[test]
    fn the_least_recently_used_idle_block_is_evicted_and_its_content_forgotten() {
        let mut pool = BlockPool::new(2);
        for n in [1, 2] {
            let block = pool.allocate().unwrap();
            pool.publish(block, PrefixId::EMPTY, tokens(n));
            pool.release(block);
        }
        let (recent, _) = pool.find_prefix(&tokens(1))[0];
        pool.hold(recent);
        pool.release(recent);
        pool.allocate().unwrap();
        assert!(pool.find_prefix(&tokens(2)).is_empty());
        assert_eq!(pool.find_prefix(&tokens(1)).len(), 1);
        pool.allocate().unwrap();
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn the_same_content_is_kept_once() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        assert_eq!(pool.publish(a, PrefixId::EMPTY, tokens(1)).0, a);
        assert_eq!(pool.publish(b, PrefixId::EMPTY, tokens(1)).0, a);
        assert_eq!(pool.available(), 1);
        pool.check([[a, a].as_slice()].into_iter());
    }
}
