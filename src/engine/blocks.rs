//! KV block accounting: the content and the reference count of every block of the pool.
//!
//! A block is in one of three states:
//!
//! - *held* by one or more sequences (its reference count);
//! - *idle*: not held, but its content is known and can be reused;
//! - *unused*: its content is not known.
//!
//! A full block is identified by the whole token prefix up to its end ([`PrefixId`]); it is found
//! by its parent's prefix and its own tokens, compared exactly. (The idea is vLLM's automatic
//! prefix caching.) The last, partial block of a finished sequence is known by its tokens: a
//! sequence that extends all of them takes the block over, and a sequence that shares only some of
//! a block's tokens gets a copy. Only full blocks are shared, and known content is never
//! overwritten.
//!
//! Where a model has sliding layers, a block is its memory in the global layers. For the sliding ones it
//! has a slot, which it keeps until another block needs it ([`windows`]). A block that is written to has
//! one.
//!
//! The accounts are ahead of the memory: [`take_moves`](BlockPool::take_moves) returns the changes that
//! the memory still needs, in order.
//!
//! Pure bookkeeping: it must never touch a tensor or decide which sequences run.

#[cfg(any(test, fuzzing))]
mod check;
mod index;
mod prefix;
mod slots;
pub mod windows;

use index::{Content, ContentIndex};
pub use prefix::PrefixId;
pub(super) use prefix::common;
use windows::{SlotId, WindowPool};

use crate::kernels::kv::KvPart;
use crate::recency::{LastUse, Recency};

/// Number of tokens whose keys and values one block holds.
pub const BLOCK_SIZE: usize = crate::kernels::kv::BLOCK_SIZE;

/// A block of the KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A part of a block in the KV memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Its part in the global layers.
    Block(BlockId),
    /// Its part in the window layers.
    Slot(SlotId),
}

impl Place {
    /// Returns the part of the KV cache.
    #[must_use]
    pub fn part(self) -> KvPart {
        match self {
            Self::Block(_) => KvPart::Global,
            Self::Slot(_) => KvPart::Window,
        }
    }

    /// Returns the number of the block in that part.
    #[must_use]
    pub fn index(self) -> u32 {
        match self {
            Self::Block(block) => block.0,
            Self::Slot(slot) => slot.0,
        }
    }
}

/// A part of a full block whose content is to be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    /// The part.
    pub place: Place,
    /// Prefix that its content ends.
    pub prefix: PrefixId,
}

/// A copy of one block to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Source block.
    pub from: BlockId,
    /// Target block.
    pub to: BlockId,
}

/// A change to the memory, due before anything else is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockMove {
    /// Export the content of a block that is about to be overwritten.
    Evict(Eviction),
    /// Copy a block.
    Copy(BlockCopy),
    /// Copy a window slot.
    CopySlot {
        /// Source slot.
        from: SlotId,
        /// Target slot.
        to: SlotId,
    },
}

/// A block whose content begins a context's next tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The block.
    pub block: BlockId,
    /// Number of tokens in common.
    pub tokens: usize,
    /// Whether the block contains no further tokens and is not held, so that it can be taken over.
    pub whole: bool,
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    content: Option<Content>,
    /// Prefix that ends with its content, if it is full.
    prefix: Option<PrefixId>,
    /// Whether its content is exported on eviction.
    keep: bool,
    /// Whether its content has been exported.
    stored: bool,
    /// Position in `BlockPool::idle` while it is idle.
    idle_since: LastUse,
}

/// All blocks of the KV pool.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Unused blocks, taken from the end: the lowest ids first, so that the upper end of a large pool
    /// stays untouched memory until it is needed.
    unused: Vec<BlockId>,
    /// Content of full blocks, and of idle partial ones.
    index: ContentIndex,
    /// Idle blocks.
    idle: Recency<BlockId>,
    /// The slots for sliding layers; `None` if they have no memory of their own.
    windows: Option<WindowPool>,
    moves: Vec<BlockMove>,
}

impl BlockPool {
    /// Creates a pool of `blocks` unused blocks.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        let ids = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            blocks: vec![Block::default(); ids as usize],
            unused: (0..ids).rev().map(BlockId).collect(),
            index: ContentIndex::default(),
            idle: Recency::default(),
            windows: None,
            moves: Vec::new(),
        }
    }

    /// Adds slots for sliding layers, whose windows are up to `window` positions wide.
    #[must_use]
    pub fn with_windows(self, window: usize, slots: usize) -> Self {
        Self {
            windows: Some(WindowPool::new(window, slots, self.blocks.len())),
            ..self
        }
    }

    /// Returns the slots for sliding layers; `None` if they have no memory of their own.
    #[must_use]
    pub fn windows(&self) -> Option<&WindowPool> {
        self.windows.as_ref()
    }

    /// Returns the number of blocks.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the number of unused and idle blocks.
    #[must_use]
    pub fn available(&self) -> usize {
        self.unused.len() + self.idle.len()
    }

    /// Returns the number of idle blocks.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Returns the blocks of the longest known prefix of `tokens` after `root`, in order, without holding
    /// them.
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

    /// Returns the block that holds these tokens after this prefix.
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

    /// Returns the block with the longest common prefix with `tokens` after `parent`, without
    /// holding it.
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

    /// Returns whether a block is idle.
    #[must_use]
    pub fn is_idle(&self, block: BlockId) -> bool {
        self.blocks[block.0 as usize].holders == 0
    }

    /// Adds a reference to a full block; `keep` marks its content for export.
    pub fn hold(&mut self, block: BlockId, keep: bool) {
        let entry = &mut self.blocks[block.0 as usize];
        if entry.holders == 0 {
            self.idle.remove(entry.idle_since);
        }
        entry.holders += 1;
        entry.keep |= keep;
    }

    /// Takes over a [`whole`](Tail::whole) tail, to append to it.
    pub fn take_over(&mut self, tail: BlockId) {
        self.hold(tail, false);
        self.hold_slot(tail);
        self.forget(tail);
    }

    /// Allocates a block with one reference, and a slot with one: an unused one, else the least recently
    /// used idle one, whose content is evicted. `None` if every block or every slot is held.
    pub fn allocate(&mut self) -> Option<BlockId> {
        if self.windows.as_ref().is_some_and(|w| w.available() == 0) {
            return None;
        }
        let block = self.allocate_block()?;
        self.give_slot(block);
        Some(block)
    }

    /// As [`allocate`](Self::allocate), but the block has the slot of its earlier content, or none.
    fn allocate_block(&mut self) -> Option<BlockId> {
        let block = if let Some(block) = self.unused.pop() {
            block
        } else {
            let block = self.idle.pop_oldest()?;
            let evictions = self.unsaved_parts(block);
            self.moves
                .extend(evictions.into_iter().flatten().map(BlockMove::Evict));
            self.forget(block);
            block
        };
        self.blocks[block.0 as usize].holders = 1;
        Some(block)
    }

    /// As [`allocate`](Self::allocate), but the block has no slot.
    pub fn allocate_without_slot(&mut self) -> Option<BlockId> {
        let block = self.allocate_block()?;
        self.free_slot(block);
        Some(block)
    }

    /// Allocates a block with one reference, as a copy of another one, which has a slot.
    pub fn allocate_copy(&mut self, from: BlockId) -> Option<BlockId> {
        self.touch(from);
        let slot_of = |pool: &Self, block| pool.windows.as_ref().and_then(|w| w.of(block));
        let from_slot = slot_of(self, from);
        let to = self.allocate()?;
        // The last idle block is its own copy, and the last idle slot.
        if to != from {
            self.moves.push(BlockMove::Copy(BlockCopy { from, to }));
        }
        if let (Some(from), Some(to)) = (from_slot, slot_of(self, to))
            && from != to
        {
            self.moves.push(BlockMove::CopySlot { from, to });
        }
        Some(to)
    }

    /// Publishes the content of a held block that is now full. If another block has the same content (bit
    /// for bit, since kernels are batch invariant), that one is held instead and this one released, so that
    /// a shared prefix is in memory once. Returns the block to use and the prefix that ends with it. `keep`
    /// marks the content for export.
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
                self.share_slot(block, known);
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

    /// Publishes a held block that was imported with the `tokens` after a prefix, which no known block
    /// holds; `prefix` ends with them.
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

    /// Marks the content of a full block as exported.
    pub fn mark_stored(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        (entry.keep, entry.stored) = (true, true);
    }

    /// Removes a reference. A block without references is idle if its content is known, else
    /// unused. The blocks of a sequence are released from the last to the first, so that the ends
    /// of prefixes are evicted before their beginnings.
    ///
    /// # Panics
    /// If the block is not held: the accounts are wrong, and continuing would mix contexts.
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
            self.free_slot(block);
        }
    }

    /// As [`release`](Self::release), for a partial block that holds `tokens` after a prefix. They stay
    /// known unless another block holds them already.
    pub fn release_tail(&mut self, block: BlockId, parent: PrefixId, tokens: &[u32]) {
        let content = Content::new(parent, tokens);
        match self.index.continued_by(&content) {
            Some(other) => self.touch(other),
            None => self.learn(block, content),
        }
        self.release(block);
    }

    /// Returns the changes to the memory since the last call, in order, due before anything else is
    /// written to it.
    pub fn take_moves(&mut self) -> Vec<BlockMove> {
        std::mem::take(&mut self.moves)
    }

    /// Returns the parts of idle blocks that are marked for export and not exported yet, the last used
    /// first.
    pub fn unsaved(&self) -> impl Iterator<Item = Eviction> {
        let idle = self.idle.iter().rev();
        idle.flat_map(|&block| self.unsaved_parts(block).into_iter().flatten())
    }

    /// Returns the parts of a block that are marked for export and not exported yet.
    fn unsaved_parts(&self, block: BlockId) -> [Option<Eviction>; 2] {
        let entry = &self.blocks[block.0 as usize];
        let is_unsaved = entry.keep && !entry.stored;
        let slot = self.windows.as_ref().and_then(|w| w.unsaved(block));
        let places = [
            is_unsaved.then_some(Place::Block(block)),
            slot.map(Place::Slot),
        ];
        places.map(|place| {
            let (place, prefix) = place.zip(entry.prefix)?;
            Some(Eviction { place, prefix })
        })
    }

    /// Forgets all content: the memory may differ from the accounts.
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
        if let Some(windows) = &mut self.windows {
            windows.forget_all();
        }
    }

    /// Publishes content, and drops known content that is a prefix of it.
    fn learn(&mut self, block: BlockId, content: Content) {
        if let Some(beginning) = self.index.beginning(&content) {
            self.hold(beginning, false);
            self.forget(beginning);
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

    /// Marks an idle block as the most recently used.
    fn touch(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        if entry.holders == 0
            && let Some(last_use) = self.idle.touch(entry.idle_since)
        {
            entry.idle_since = last_use;
        }
        if let Some(windows) = &mut self.windows {
            windows.touch(block);
        }
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
