//! Imports stored blocks into the KV cache.

use super::Scheduler;
use crate::engine::blocks::{BLOCK_SIZE, BlockId, PrefixId};

/// Blocks of one context that are held while some of them are written from outside.
#[derive(Debug)]
#[must_use = "its blocks are held until it is ended"]
pub struct Import {
    first: usize,
    /// From the start of the context.
    held: Vec<ImportedBlock>,
}

#[derive(Debug)]
struct ImportedBlock {
    block: BlockId,
    parent: PrefixId,
    tokens: [u32; BLOCK_SIZE],
    prefix: PrefixId,
    is_new: bool,
}

impl Import {
    /// Returns the blocks to write, each with the index of its imported contents.
    pub fn to_write(&self) -> impl Iterator<Item = (BlockId, usize)> {
        let came = self.held.iter().skip(self.first).enumerate();
        came.filter(|(_, held)| held.is_new)
            .map(|(n, held)| (held.block, n))
    }
}

impl Scheduler {
    /// Makes room for the blocks `first..first + count` of the context `tokens`, of which the blocks
    /// before them must be known, as far as there is room without giving up one of these. What the
    /// pool says is to be moved must be moved before they are written to.
    pub fn begin_import(
        &mut self,
        root: PrefixId,
        tokens: &[u32],
        first: usize,
        count: usize,
    ) -> Import {
        let mut import = Import {
            first,
            held: Vec::new(),
        };
        let blocks = tokens.as_chunks().0;
        let mut parent = root;
        for (n, tokens) in blocks.iter().take(first.saturating_add(count)).enumerate() {
            let known = self.blocks.find_block(parent, tokens);
            let block = match known {
                Some((block, _)) => {
                    self.blocks.hold(block, false);
                    block
                }
                None if n < first => break,
                None => match self.blocks.allocate() {
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
            });
            parent = prefix;
        }
        import
    }

    /// Makes the blocks known of which the first `written` new ones were written, and leaves all of
    /// them idle; gives how many of those that came are now known.
    pub fn end_import(&mut self, import: Import, written: usize) -> usize {
        let mut left = written;
        let mut taken = 0;
        for held in import.held.iter().skip(import.first) {
            if !held.is_new {
                self.blocks.mark_stored(held.block);
            } else if left > 0 {
                left -= 1;
                let ImportedBlock { block, parent, .. } = *held;
                self.blocks
                    .publish_stored(block, parent, &held.tokens, held.prefix);
            } else {
                break;
            }
            taken += 1;
        }
        for held in import.held.into_iter().rev() {
            self.blocks.release(held.block);
        }
        taken
    }
}
