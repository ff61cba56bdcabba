//! Window slots: the memory of the sliding layers, each for the positions of one block.
//!
//! A slot holds what one block has in the layers of [`KvPart::Window`](crate::kernels::kv::KvPart). A running
//! sequence holds the slots from the block of the first position that its next row sees to its end, so
//! they are few however long its context is. A slot that is not held is idle: it stays with its block
//! until another block needs it. A block without slot is still known, but a context can only be
//! continued where all blocks in the window have theirs.
//!
//! Idle slots are evicted least recently used first. Those that a window slid past without having been
//! reused are in a queue of their own, which is evicted first when it has more than its share: one long
//! prompt must not evict the ends of many short contexts, where their next turns continue.
//!
//! Pure bookkeeping, like the blocks.

use super::{BLOCK_SIZE, BlockId};
use crate::recency::{LastUse, Recency};

/// Slots that windows slid past are evicted before all others if they are more than one in `PASSED_SHARE`
/// of all slots.
const PASSED_SHARE: usize = 4;

/// A window slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// Returns the maximum number of blocks in a window of `window` positions.
#[must_use]
pub fn window_blocks(window: usize) -> usize {
    window.saturating_sub(1).div_ceil(BLOCK_SIZE) + 1
}

/// Returns the first block that the rows of block `block` see through a window of `window` positions.
#[must_use]
pub fn window_start(window: usize, block: usize) -> usize {
    (block + 1).saturating_sub(window_blocks(window))
}

/// Returns the longest number of blocks, at most `known`, that a context can be continued after: those
/// from `start(blocks)` on must all have their slots.
pub fn longest_usable(
    known: usize,
    start: impl Fn(usize) -> usize,
    mut has_slot: impl FnMut(usize) -> bool,
) -> usize {
    let mut usable = known;
    // A block without slot is in the window of every length between it and the last one looked at.
    while let Some(missing) = (start(usable)..usable)
        .rev()
        .find(|&block| !has_slot(block))
    {
        usable = missing;
    }
    usable
}

#[derive(Debug, Clone, Default)]
struct Slot {
    /// The block whose content it holds a part of.
    block: Option<BlockId>,
    /// Running sequences that hold it.
    holders: u32,
    /// Whether a context was continued behind it.
    is_reused: bool,
    /// Whether its content is exported on eviction.
    keep: bool,
    /// Whether its content has been exported.
    stored: bool,
    /// Its place among the idle ones.
    idle: Option<Idle>,
}

/// A place among the idle slots.
#[derive(Debug, Clone, Copy)]
enum Idle {
    /// A window slid past it.
    Passed(LastUse),
    /// It was in a window to the end, or was reused.
    Ended(LastUse),
}

/// A slot that another block has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EvictedSlot {
    pub slot: SlotId,
    pub block: BlockId,
    /// Whether its content is to be exported.
    pub unsaved: bool,
}

/// All window slots.
#[derive(Debug)]
pub struct WindowPool {
    window: usize,
    slots: Vec<Slot>,
    /// The slot of every block of the pool.
    of_block: Vec<Option<SlotId>>,
    /// Slots without a block, taken from the end: the lowest first.
    unused: Vec<SlotId>,
    passed: Recency<SlotId>,
    ended: Recency<SlotId>,
}

impl WindowPool {
    /// Creates unused slots for a pool of `blocks` blocks, for windows of up to `window` positions.
    pub(super) fn new(window: usize, slots: usize, blocks: usize) -> Self {
        let ids = u32::try_from(slots).unwrap_or(u32::MAX);
        Self {
            window,
            slots: vec![Slot::default(); ids as usize],
            of_block: vec![None; blocks],
            unused: (0..ids).rev().map(SlotId).collect(),
            passed: Recency::default(),
            ended: Recency::default(),
        }
    }

    /// Returns the positions of the widest window.
    #[must_use]
    pub fn window(&self) -> usize {
        self.window
    }

    /// Returns the number of slots.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Returns the number of unused and idle slots.
    #[must_use]
    pub fn available(&self) -> usize {
        self.unused.len() + self.idle()
    }

    /// Returns the number of idle slots.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.passed.len() + self.ended.len()
    }

    /// Returns a block's slot.
    #[must_use]
    pub fn of(&self, block: BlockId) -> Option<SlotId> {
        self.of_block[block.0 as usize]
    }

    /// Returns whether a block's slot is held.
    #[must_use]
    pub fn is_held(&self, block: BlockId) -> bool {
        let slot = self.of(block);
        slot.is_some_and(|slot| self.slots[slot.0 as usize].holders > 0)
    }

    /// Returns a block's slot whose content is to be exported and has not been yet.
    pub(super) fn unsaved(&self, block: BlockId) -> Option<SlotId> {
        self.of(block).filter(|slot| {
            let slot = &self.slots[slot.0 as usize];
            slot.keep && !slot.stored
        })
    }

    /// Gives a block without a slot one, with one reference: an unused one, else an idle one that its block
    /// gives up. `None` if all are held.
    pub(super) fn give(&mut self, block: BlockId) -> Option<(SlotId, Option<EvictedSlot>)> {
        let (slot, evicted) = if let Some(slot) = self.unused.pop() {
            (slot, None)
        } else {
            let evicted = self.evict()?;
            (evicted.slot, Some(evicted))
        };
        self.slots[slot.0 as usize] = Slot {
            block: Some(block),
            holders: 1,
            ..Slot::default()
        };
        self.of_block[block.0 as usize] = Some(slot);
        Some((slot, evicted))
    }

    /// Takes the next idle slot from its block.
    fn evict(&mut self) -> Option<EvictedSlot> {
        let passed_first = self.passed.len() * PASSED_SHARE > self.slots.len();
        let slot = if passed_first || self.ended.is_empty() {
            self.passed.pop_oldest()
        } else {
            self.ended.pop_oldest()
        };
        let slot = slot?;
        let entry = &mut self.slots[slot.0 as usize];
        entry.idle = None;
        let block = entry.block.take()?;
        self.of_block[block.0 as usize] = None;
        Some(EvictedSlot {
            slot,
            block,
            unsaved: entry.keep && !entry.stored,
        })
    }

    /// Lets a block whose content is about to be overwritten keep its idle slot, with one reference.
    pub(super) fn restart(&mut self, block: BlockId) {
        if let Some(slot) = self.of(block) {
            self.make_busy(slot);
            self.slots[slot.0 as usize] = Slot {
                block: Some(block),
                holders: 1,
                ..Slot::default()
            };
        }
    }

    /// Adds a reference to the slot of a block, which has one.
    pub(super) fn hold(&mut self, block: BlockId) {
        if let Some(slot) = self.of(block) {
            self.make_busy(slot);
            let entry = &mut self.slots[slot.0 as usize];
            entry.holders += 1;
            entry.is_reused = true;
        }
    }

    /// Removes a reference from the slot of a block that the window has slid past.
    pub(super) fn pass(&mut self, block: BlockId) {
        if let Some(slot) = self.let_go(block) {
            let place = if self.slots[slot.0 as usize].is_reused {
                Idle::Ended(self.ended.push(slot))
            } else {
                Idle::Passed(self.passed.push(slot))
            };
            self.slots[slot.0 as usize].idle = Some(place);
        }
    }

    /// Removes a reference from the slot of a block that is in the window of a sequence that ends;
    /// `keep` marks the content for export.
    pub(super) fn end(&mut self, block: BlockId, keep: bool) {
        if let Some(slot) = self.of(block) {
            self.slots[slot.0 as usize].keep |= keep;
        }
        if let Some(slot) = self.let_go(block) {
            let place = Idle::Ended(self.ended.push(slot));
            self.slots[slot.0 as usize].idle = Some(place);
        }
    }

    /// Removes a reference from a block's slot; returns it if it was the last one.
    ///
    /// # Panics
    /// If the slot is not held: the accounts are wrong, and continuing would mix contexts.
    fn let_go(&mut self, block: BlockId) -> Option<SlotId> {
        let slot = self.of(block);
        let held = slot.filter(|slot| self.slots[slot.0 as usize].holders > 0);
        assert!(held.is_some(), "the slot of block {} is not held", block.0);
        let slot = held?;
        let entry = &mut self.slots[slot.0 as usize];
        entry.holders -= 1;
        (entry.holders == 0).then_some(slot)
    }

    /// Gives the held slot of one block to another that has the same content and no slot.
    pub(super) fn transfer(&mut self, from: BlockId, to: BlockId) {
        let slot = self.of_block[from.0 as usize].take();
        self.of_block[to.0 as usize] = slot;
        if let Some(slot) = slot {
            self.slots[slot.0 as usize].block = Some(to);
        }
    }

    /// Takes the idle slot from a block whose content is forgotten.
    pub(super) fn free(&mut self, block: BlockId) {
        if let Some(slot) = self.of_block[block.0 as usize].take() {
            self.make_busy(slot);
            self.slots[slot.0 as usize] = Slot::default();
            self.unused.push(slot);
        }
    }

    /// Marks the content of a block's slot as exported.
    pub(super) fn mark_stored(&mut self, block: BlockId) {
        if let Some(slot) = self.of(block) {
            let entry = &mut self.slots[slot.0 as usize];
            (entry.keep, entry.stored) = (true, true);
        }
    }

    /// Makes the idle slot of a block the most recently used one of its queue.
    pub(super) fn touch(&mut self, block: BlockId) {
        let Some(slot) = self.of(block) else { return };
        let idle = match self.slots[slot.0 as usize].idle {
            Some(Idle::Passed(place)) => self.passed.touch(place).map(Idle::Passed),
            Some(Idle::Ended(place)) => self.ended.touch(place).map(Idle::Ended),
            None => None,
        };
        self.slots[slot.0 as usize].idle = idle;
    }

    /// Takes the idle slots from their blocks.
    pub(super) fn forget_all(&mut self) {
        for block in (0..).map(BlockId).take(self.of_block.len()) {
            if let Some(slot) = self.of(block) {
                if self.is_held(block) {
                    let entry = &mut self.slots[slot.0 as usize];
                    (entry.keep, entry.stored) = (false, false);
                } else {
                    self.free(block);
                }
            }
        }
    }

    /// Removes a slot from the idle ones.
    fn make_busy(&mut self, slot: SlotId) {
        let removed = match self.slots[slot.0 as usize].idle.take() {
            Some(Idle::Passed(place)) => self.passed.remove(place),
            Some(Idle::Ended(place)) => self.ended.remove(place),
            None => return,
        };
        debug_assert_eq!(removed, Some(slot));
    }

    /// Checks every invariant of the accounts against the given references, those of blocks without
    /// content included.
    ///
    /// # Panics
    /// If one does not hold.
    #[cfg(any(test, fuzzing))]
    pub(super) fn check(&self, held: impl Iterator<Item = BlockId>) {
        let mut holders = vec![0; self.slots.len()];
        for block in held {
            let slot = self
                .of(block)
                .expect("a held block in the window has a slot");
            holders[slot.0 as usize] += 1;
        }
        for (id, slot) in (0..).map(SlotId).zip(&self.slots) {
            assert_eq!(slot.holders, holders[id.0 as usize], "holders of {id:?}");
            let is_idle = match slot.idle {
                Some(Idle::Passed(place)) => self.passed.get(place) == Some(&id),
                Some(Idle::Ended(place)) => self.ended.get(place) == Some(&id),
                None => false,
            };
            let is_unused = self.unused.contains(&id);
            let states = [slot.holders > 0, is_idle, is_unused];
            assert_eq!(states.iter().filter(|&&state| state).count(), 1, "{id:?}");
            assert_eq!(slot.block.is_none(), is_unused);
            if let Some(block) = slot.block {
                assert_eq!(self.of(block), Some(id));
            }
        }
        let attached = self.of_block.iter().flatten().count();
        assert_eq!(attached + self.unused.len(), self.slots.len());
        let busy = holders.iter().filter(|&&holders| holders > 0).count();
        assert_eq!(busy + self.available(), self.slots.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_in_as_many_blocks_as_it_can_touch() {
        for window in 1..70 {
            for block in 0..20 {
                let first = block * BLOCK_SIZE;
                let visible = (first + 1).saturating_sub(window) / BLOCK_SIZE;
                assert_eq!(window_start(window, block), visible, "{window} {block}");
                assert!(block + 1 - visible <= window_blocks(window));
            }
        }
    }

    #[test]
    fn the_longest_usable_prefix_is_the_longest_whose_window_has_its_slots() {
        let start = |blocks: usize| window_start(20, blocks);
        for slots in 0u32..1 << 8 {
            for known in 0..=8 {
                let has = |block: usize| slots >> block & 1 == 1;
                let is_usable = |&blocks: &usize| (start(blocks)..blocks).all(has);
                let longest = (0..=known).rev().find(is_usable);
                assert_eq!(longest, Some(longest_usable(known, start, has)));
            }
        }
    }

    #[test]
    fn slots_that_a_window_slid_past_are_evicted_first_when_they_are_many() {
        let mut pool = WindowPool::new(32, 8, 20);
        let blocks = |range: std::ops::Range<u32>| range.map(BlockId);
        for block in blocks(0..4) {
            pool.give(block);
            pool.end(block, false);
        }
        for block in blocks(4..8) {
            pool.give(block);
            pool.pass(block);
        }
        let mut evict = |block| {
            let (_, evicted) = pool.give(block).expect("an idle slot");
            pool.check(std::iter::once(block));
            pool.pass(block);
            evicted.map(|evicted| evicted.block.0)
        };
        // Half of them were slid past, then and later; the ends stay.
        let evicted: Vec<_> = blocks(8..14).map(&mut evict).collect();
        assert_eq!(evicted, [4, 5, 6, 7, 8, 9].map(Some));
        for block in blocks(0..4) {
            assert!(pool.of(block).is_some());
        }
        // One that was reused is not slid past any more.
        pool.hold(BlockId(10));
        pool.pass(BlockId(10));
        pool.hold(BlockId(11));
        pool.pass(BlockId(11));
        let (_, evicted) = pool.give(BlockId(14)).expect("an idle slot");
        assert_eq!(evicted.map(|evicted| evicted.block), Some(BlockId(0)));
    }
}
