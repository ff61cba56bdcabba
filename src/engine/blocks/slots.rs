//! The window slots of blocks. In a pool without slots these functions do nothing.

use super::{BlockId, BlockMove, BlockPool, Eviction, Place};

impl BlockPool {
    /// Adds a reference to the slot of a held block, which has one.
    pub fn hold_slot(&mut self, block: BlockId) {
        if let Some(windows) = &mut self.windows {
            windows.hold(block);
        }
    }

    /// Gives a held block a slot with one reference, without content. `false` if all are held.
    pub fn give_slot(&mut self, block: BlockId) -> bool {
        let Some(windows) = &mut self.windows else {
            return true;
        };
        if windows.of(block).is_some() {
            windows.restart(block);
            return true;
        }
        let Some((slot, evicted)) = windows.give(block) else {
            return false;
        };
        let unsaved = evicted.filter(|evicted| evicted.unsaved);
        let prefix = unsaved.and_then(|evicted| self.blocks[evicted.block.0 as usize].prefix);
        if let Some(prefix) = prefix {
            let place = Place::Slot(slot);
            self.moves
                .push(BlockMove::Evict(Eviction { place, prefix }));
        }
        true
    }

    /// Removes a reference from the slot of a block that the window of a running sequence has slid past.
    pub fn pass_slot(&mut self, block: BlockId) {
        if let Some(windows) = &mut self.windows {
            windows.pass(block);
        }
    }

    /// Removes a reference from the slot of a block in the window of a sequence that ends; `keep` marks the
    /// content for export.
    pub fn end_slot(&mut self, block: BlockId, keep: bool) {
        if let Some(windows) = &mut self.windows {
            let is_full = self.blocks[block.0 as usize].prefix.is_some();
            windows.end(block, keep && is_full);
        }
    }

    /// Takes the idle slot from a block, and forgets what it held.
    pub fn free_slot(&mut self, block: BlockId) {
        if let Some(windows) = &mut self.windows {
            windows.free(block);
        }
    }

    /// Returns the slots of a sequence's blocks, of which those before `first` are not read: the table of
    /// the window layers, empty if they have no memory of their own.
    #[must_use]
    pub fn window_table(&self, table: &[BlockId], first: usize) -> Vec<u32> {
        let Some(windows) = &self.windows else {
            return Vec::new();
        };
        let slots = table.iter().enumerate().map(|(n, &block)| {
            let slot = (n >= first).then(|| windows.of(block)).flatten();
            slot.map_or(0, |slot| slot.0)
        });
        slots.collect()
    }

    /// Moves a reference from the slot of a block to that of another one with the same content; if that has
    /// none, the slot itself.
    pub(super) fn share_slot(&mut self, block: BlockId, known: BlockId) {
        if let Some(windows) = &mut self.windows {
            if windows.of(known).is_some() {
                windows.hold(known);
                windows.pass(block);
            } else {
                windows.transfer(block, known);
            }
        }
    }

    /// Marks the content of a full block's slot as exported.
    pub fn mark_slot_stored(&mut self, block: BlockId) {
        if let Some(windows) = &mut self.windows {
            windows.mark_stored(block);
        }
    }
}
