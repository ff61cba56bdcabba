//! Window slots of sequences: a sequence holds those of the blocks that its next rows see.
//!
//! So a long context needs few of them. What it is computed in is fitted to the slots that are free, so that
//! the chunk of a long prompt does not preempt others.

use super::Scheduler;
use super::cache::Cached;
use crate::engine::blocks::{BLOCK_SIZE, BlockPool};
use crate::engine::sequence::Sequence;

/// Releases the slots of the blocks that are behind a sequence's window.
pub(super) fn pass_slots(blocks: &mut BlockPool, sequence: &mut Sequence) {
    let Some(windows) = blocks.windows() else {
        return;
    };
    let first = sequence.slots_from(windows.window(), sequence.computed);
    while sequence.first_slot < first {
        let Some(&block) = sequence.table.get(sequence.first_slot) else {
            return;
        };
        blocks.pass_slot(block);
        sequence.first_slot += 1;
    }
}

impl Scheduler {
    /// Adds window slots to the pool, for windows of up to `window` positions.
    #[must_use]
    pub fn with_windows(self, window: usize, slots: usize) -> Self {
        Self {
            blocks: self.blocks.with_windows(window, slots),
            ..self
        }
    }

    /// Returns the number of next tokens of a sequence that the slots that are free and not promised to
    /// others allow for, at least 1.
    pub(super) fn room_in_slots(&self, sequence: &Sequence) -> usize {
        let Some(windows) = self.blocks.windows() else {
            return usize::MAX;
        };
        let others = self.in_prefill().filter(|other| other.id != sequence.id);
        let promised: usize = others.map(|s| s.promised_slots(windows.window())).sum();
        let blocks = sequence.table.len() + windows.available().saturating_sub(promised);
        (blocks * BLOCK_SIZE - sequence.computed).max(1)
    }

    /// Returns whether the pool has slots for a sequence that continues what is cached, beside those that are
    /// promised.
    pub(super) fn has_slots(&self, sequence: &Sequence, cached: &Cached) -> bool {
        let Some(windows) = self.blocks.windows() else {
            return true;
        };
        let first = sequence.slots_from(windows.window(), cached.full.len() * BLOCK_SIZE);
        let shared = cached.full.iter().skip(first);
        let shared = shared.filter(|block| windows.is_held(block.0)).count();
        let promised = self.in_prefill();
        let promised: usize = promised.map(|s| s.promised_slots(windows.window())).sum();
        sequence.slots_of_request(windows.window()) + promised <= windows.available() + shared
    }
}
