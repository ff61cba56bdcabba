//! Imports stored blocks into the KV cache.

use super::Scheduler;
use crate::engine::blocks::{BLOCK_SIZE, BlockId, Place, PrefixId};

/// Blocks of one context that are held while some of them are written from outside.
#[derive(Debug)]
#[must_use = "its blocks are held until it is ended"]
pub struct Import {
    first: usize,
    /// From the start of the context.
    held: Vec<ImportedBlock>,
}

/// The parts of a block that came from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredParts {
    /// Its part in the global layers.
    pub global: bool,
    /// Its part in the window layers.
    pub window: bool,
}

#[derive(Debug)]
struct ImportedBlock {
    block: BlockId,
    parent: PrefixId,
    tokens: [u32; BLOCK_SIZE],
    prefix: PrefixId,
    /// Whether it is written.
    is_new: bool,
    /// Its slot, if it has one.
    slot: Option<ImportedSlot>,
    came: StoredParts,
}

#[derive(Debug, Clone, Copy)]
struct ImportedSlot {
    place: Place,
    /// Whether it is written.
    is_new: bool,
}

impl Import {
    /// Returns the parts of blocks to write, each with the index of its block among those that came.
    pub fn to_write(&self) -> impl Iterator<Item = (Place, usize)> {
        let came = self.held.iter().skip(self.first).enumerate();
        came.flat_map(|(n, held)| {
            let block = held.is_new.then_some(Place::Block(held.block));
            let slot = held.slot.filter(|slot| slot.is_new);
            let places = block.into_iter().chain(slot.map(|slot| slot.place));
            places.map(move |place| (place, n))
        })
    }
}

impl Scheduler {
    /// Makes room for the blocks from `first` on of the context `tokens`, of each of which the parts in `came`
    /// came from outside. Those before them must be known, and so must those whose global part did not come.
    /// Makes only as much room as there is without giving up one of these. What the pool says is to be
    /// moved must be moved before they are written to.
    pub fn begin_import(
        &mut self,
        root: PrefixId,
        tokens: &[u32],
        first: usize,
        came: &[StoredParts],
    ) -> Import {
        let mut import = Import {
            first,
            held: Vec::new(),
        };
        let blocks = tokens.as_chunks().0;
        let end = first.saturating_add(came.len());
        let mut parent = root;
        for (n, tokens) in blocks.iter().take(end).enumerate() {
            let came = n.checked_sub(first).and_then(|n| came.get(n).copied());
            let came = came.unwrap_or(StoredParts {
                global: false,
                window: false,
            });
            let known = self.blocks.find_block(parent, tokens);
            let block = match known {
                Some((block, _)) => {
                    self.blocks.hold(block, false);
                    block
                }
                None if !came.global => break,
                None => match self.blocks.allocate_without_slot() {
                    Some(block) => block,
                    None => break,
                },
            };
            let prefix = known.map_or_else(|| parent.then(tokens), |known| known.1);
            import.held.push(ImportedBlock {
                block,
                parent,
                tokens: *tokens,
                prefix,
                is_new: known.is_none(),
                slot: self.hold_imported_slot(block, came),
                came,
            });
            parent = prefix;
        }
        import
    }

    /// Holds the slot of a held block, which gets one if its part of the window layers came and there is
    /// room for it.
    fn hold_imported_slot(&mut self, block: BlockId, came: StoredParts) -> Option<ImportedSlot> {
        let slot_of = |scheduler: &Self| scheduler.blocks.windows().and_then(|w| w.of(block));
        let is_new = slot_of(self).is_none();
        if !is_new {
            self.blocks.hold_slot(block);
        } else if !came.window || !self.blocks.give_slot(block) {
            return None;
        }
        let place = slot_of(self).map(Place::Slot)?;
        Some(ImportedSlot { place, is_new })
    }

    /// Makes the blocks known of which the first `written` new parts were written, and leaves all of them
    /// idle; returns how many of the blocks that came are now known.
    pub fn end_import(&mut self, import: Import, written: usize) -> usize {
        let mut left = written;
        let mut taken = 0;
        let mut is_whole = true;
        for (n, held) in import.held.iter().enumerate() {
            let mut is_written = |is_new: bool| {
                let is_written = !is_new || left > 0;
                left -= usize::from(is_new && is_written);
                is_written
            };
            if n >= import.first {
                is_whole &= is_written(held.is_new);
                taken += usize::from(is_whole);
                if is_whole && held.is_new {
                    let ImportedBlock { block, parent, .. } = *held;
                    self.blocks
                        .publish_stored(block, parent, &held.tokens, held.prefix);
                } else if is_whole && held.came.global {
                    self.blocks.mark_stored(held.block);
                }
            }
            let Some(slot) = held.slot else { continue };
            let is_written = is_written(slot.is_new);
            self.blocks.end_slot(held.block, false);
            if !is_written {
                self.blocks.free_slot(held.block);
            } else if is_whole && held.came.window {
                self.blocks.mark_slot_stored(held.block);
            }
        }
        for held in import.held.into_iter().rev() {
            self.blocks.release(held.block);
        }
        taken
    }
}
