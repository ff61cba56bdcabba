//! KV block accounting: which block of the pool holds what, and who holds it.
//!
//! A block is in one of three states:
//!
//! - *held* by one or more sequences (a count);
//! - *idle*: held by no one, but its content is known and can be used again;
//! - *unused*: its content is of no use.
//!
//! A full block is identified by the whole token prefix up to its end ([`PrefixId`]); it is found by
//! its parent's prefix and its own tokens, compared exactly. (The idea is vLLM's automatic prefix
//! caching.) The last block of a sequence that went away, not full, is known by the tokens it has:
//! who goes on after all of them takes it over, and who goes on after some of what any block holds
//! gets a copy of it to go on in. Only full blocks are shared, and no known content is ever written
//! to.
//!
//! The accounts are ahead of the memory: what has to be done to it for them to be true is in
//! [`take_moves`](BlockPool::take_moves), in order.
//!
//! Pure bookkeeping: it must never touch a tensor, and it never says who should run.

#[cfg(any(test, fuzzing))]
mod check;
mod index;
mod prefix;

use index::{Content, ContentIndex};
pub use prefix::PrefixId;
pub(super) use prefix::common;

use crate::recency::{LastUse, Recency};

/// Tokens whose keys and values one block holds.
pub const BLOCK_SIZE: usize = crate::kernels::kv::BLOCK_SIZE;

/// A block of the KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A full block that is worth keeping beyond the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    /// Where it is.
    pub block: BlockId,
    /// What it holds.
    pub prefix: PrefixId,
}

/// A block whose content another one must get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Where it is.
    pub from: BlockId,
    /// Where it must be.
    pub to: BlockId,
}

/// What is to be done to the memory before anything else is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockMove {
    /// The block is about to hold something else: take out what it holds.
    Evict(Eviction),
    /// Copy a block.
    Copy(BlockCopy),
}

/// A block that has the beginning of a context's next tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Where.
    pub block: BlockId,
    /// How many of the tokens it has.
    pub tokens: usize,
    /// It has nothing else and no one holds it: it can be taken over as it is.
    pub whole: bool,
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    content: Option<Content>,
    /// The prefix that ends with its content, if it is full.
    prefix: Option<PrefixId>,
    /// It is worth keeping beyond the pool.
    keep: bool,
    /// It is kept there.
    stored: bool,
    /// Its place in `BlockPool::idle` while it is idle.
    idle_since: LastUse,
}

/// All blocks of the KV pool.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Taken from the end: the lowest ids first, so that a large pool's upper end stays untouched
    /// memory until it is needed.
    unused: Vec<BlockId>,
    /// The contents of full blocks, and of idle ones that are not full.
    index: ContentIndex,
    /// Blocks without holders whose content is known.
    idle: Recency<BlockId>,
    moves: Vec<BlockMove>,
}

impl BlockPool {
    /// A pool of `blocks` unused blocks.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        let ids = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            blocks: vec![Block::default(); ids as usize],
            unused: (0..ids).rev().map(BlockId).collect(),
            index: ContentIndex::default(),
            idle: Recency::default(),
            moves: Vec::new(),
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

    /// The blocks that hold the longest known prefix of `tokens` after `root`, from the first one
    /// on. Nothing is held by this.
    #[must_use]
    pub fn find_prefix(&self, root: PrefixId, tokens: &[u32]) -> Vec<(BlockId, PrefixId)> {
        let mut parent = root;
        let mut found = Vec::new();
        for tokens in tokens.as_chunks::<BLOCK_SIZE>().0 {
            let Some((block, prefix)) = self.find_block(parent, tokens) else {
                break;
            };
            parent = prefix;
            found.push((block, prefix));
        }
        found
    }

    /// The block that holds these tokens after this prefix.
    #[must_use]
    pub fn find_block(
        &self,
        parent: PrefixId,
        tokens: &[u32; BLOCK_SIZE],
    ) -> Option<(BlockId, PrefixId)> {
        let block = self.index.get(&Content::new(parent, tokens))?;
        let prefix = self.blocks[block.0 as usize].prefix?;
        Some((block, prefix))
    }

    /// The block that holds most of the beginning of `tokens` after a prefix. Nothing is held by
    /// this.
    #[must_use]
    pub fn find_tail(&self, parent: PrefixId, tokens: &[u32]) -> Option<Tail> {
        let nearest = self.index.nearest(parent, tokens)?;
        let content = self.blocks[nearest.block.0 as usize].content?;
        let tokens = content.tokens.as_slice().len();
        Some(Tail {
            block: nearest.block,
            tokens: nearest.common,
            whole: tokens < BLOCK_SIZE && tokens == nearest.common,
        })
    }

    /// Whether no one holds this block.
    #[must_use]
    pub fn is_idle(&self, block: BlockId) -> bool {
        self.blocks[block.0 as usize].holders == 0
    }

    /// Adds a holder to a full block that was found; `keep` if it is worth keeping.
    pub fn hold(&mut self, block: BlockId, keep: bool) {
        let entry = &mut self.blocks[block.0 as usize];
        if entry.holders == 0 {
            self.idle.remove(entry.idle_since);
        }
        entry.holders += 1;
        entry.keep |= keep;
    }

    /// Makes the one who asks the holder of a [`whole`](Tail::whole) tail, to write on in it.
    pub fn take_over(&mut self, tail: BlockId) {
        self.hold(tail, false);
        self.forget(tail);
    }

    /// A block to write to, with one holder: an unused one, else the least recently used idle
    /// one, whose content is forgotten. `None` if every block is held.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = if let Some(block) = self.unused.pop() {
            block
        } else {
            let block = self.idle.pop_oldest()?;
            let entry = &self.blocks[block.0 as usize];
            if let Some(prefix) = entry.prefix.filter(|_| entry.keep && !entry.stored) {
                let eviction = Eviction { block, prefix };
                self.moves.push(BlockMove::Evict(eviction));
            }
            self.forget(block);
            block
        };
        self.blocks[block.0 as usize].holders = 1;
        Some(block)
    }

    /// A block to write to, with one holder, that begins as a copy of another one.
    pub fn allocate_copy(&mut self, from: BlockId) -> Option<BlockId> {
        self.touch(from);
        let to = self.allocate()?;
        // The last idle block is its own copy.
        if to != from {
            self.moves.push(BlockMove::Copy(BlockCopy { from, to }));
        }
        Some(to)
    }

    /// Says what a held block, now full, contains. If another block has the same content (it is
    /// the same bit for bit, since kernels are batch invariant), that one is held instead and
    /// this one released, so that a shared head is in memory once. Returns the block to use from
    /// now on and the prefix that ends with it. `keep` if it is worth keeping.
    pub fn publish(
        &mut self,
        block: BlockId,
        parent: PrefixId,
        tokens: &[u32; BLOCK_SIZE],
        keep: bool,
    ) -> (BlockId, PrefixId) {
        let content = Content::new(parent, tokens);
        if let Some((known, prefix)) = self.find_block(parent, tokens) {
            if known != block {
                self.hold(known, keep);
                self.release(block);
            }
            return (known, prefix);
        }
        let prefix = parent.then(tokens);
        self.learn(block, content);
        let entry = &mut self.blocks[block.0 as usize];
        (entry.prefix, entry.keep) = (Some(prefix), keep);
        (block, prefix)
    }

    /// Says that a held block has got, from where it was kept, the `tokens` after a prefix, which no
    /// block is known to hold; `prefix` ends with them.
    pub fn publish_stored(
        &mut self,
        block: BlockId,
        parent: PrefixId,
        tokens: &[u32; BLOCK_SIZE],
        prefix: PrefixId,
    ) {
        self.learn(block, Content::new(parent, tokens));
        self.blocks[block.0 as usize].prefix = Some(prefix);
        self.mark_stored(block);
    }

    /// Says that a full block is kept beyond the pool already.
    pub fn mark_stored(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        (entry.keep, entry.stored) = (true, true);
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
            entry.idle_since = self.idle.push(block);
        } else {
            self.unused.push(block);
        }
    }

    /// As [`release`](Self::release), of a block that holds `tokens` after a prefix, not as many as
    /// it has room for. They are remembered, unless another block holds them already.
    pub fn release_tail(&mut self, block: BlockId, parent: PrefixId, tokens: &[u32]) {
        let content = Content::new(parent, tokens);
        match self.index.continued_by(&content) {
            Some(other) => self.touch(other),
            None => self.learn(block, content),
        }
        self.release(block);
    }

    /// Gives what has to be done to the memory since the last call, in order, before anything else
    /// is written to it.
    pub fn take_moves(&mut self) -> Vec<BlockMove> {
        std::mem::take(&mut self.moves)
    }

    /// The idle blocks that are worth keeping and are not kept yet, the last used first.
    pub fn unsaved(&self) -> impl Iterator<Item = Eviction> {
        self.idle.iter().rev().filter_map(|&block| {
            let entry = &self.blocks[block.0 as usize];
            let prefix = entry.prefix.filter(|_| entry.keep && !entry.stored)?;
            Some(Eviction { block, prefix })
        })
    }

    /// Forgets every content: the memory may not be what the accounts say.
    pub fn forget_all(&mut self) {
        self.moves.clear();
        self.index.clear();
        for block in &mut self.blocks {
            (block.content, block.prefix) = (None, None);
            (block.keep, block.stored) = (false, false);
        }
        while let Some(block) = self.idle.pop_newest() {
            self.unused.push(block);
        }
    }

    /// Makes a content known. What was known of its beginning alone is of no more use.
    fn learn(&mut self, block: BlockId, content: Content) {
        if let Some(beginning) = self.index.beginning(&content) {
            self.take_over(beginning);
            self.release(beginning);
        }
        self.index.insert(content, block);
        self.blocks[block.0 as usize].content = Some(content);
    }

    fn forget(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        (entry.prefix, entry.keep, entry.stored) = (None, false, false);
        if let Some(content) = entry.content.take() {
            self.index.remove(&content);
        }
    }

    /// Makes an idle block the most recently used one.
    fn touch(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        if entry.holders == 0
            && let Some(last_use) = self.idle.touch(entry.idle_since)
        {
            entry.idle_since = last_use;
        }
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
