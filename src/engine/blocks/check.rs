//! The invariants of the block pool, for tests and fuzzers.

use super::index::Content;
use super::{BLOCK_SIZE, BlockId, BlockPool, PrefixId};

impl BlockPool {
    /// Returns the content of every known block.
    pub fn contents(&self) -> impl Iterator<Item = (BlockId, PrefixId, &[u32])> {
        let contents = self.index.contents();
        contents.map(|(content, block)| (block, content.parent, content.tokens.as_slice()))
    }

    /// Checks every invariant of the slots against the sequences' tables, each with the first block whose
    /// slot it holds.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check_windows<'a>(&self, tables: impl Iterator<Item = (&'a [BlockId], usize)>) {
        let Some(windows) = &self.windows else {
            return;
        };
        windows.check(tables.flat_map(|(table, first)| table[first..].iter().copied()));
        for (id, block) in (0..).map(BlockId).zip(&self.blocks) {
            let has_slot = windows.of(id).is_some();
            assert!(!has_slot || block.holders > 0 || block.content.is_some());
            assert!(windows.unsaved(id).is_none() || block.prefix.is_some());
        }
    }

    /// Checks every invariant of the accounts against the given references.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) {
        let mut holders = vec![0; self.blocks.len()];
        for table in tables {
            for block in table {
                holders[block.0 as usize] += 1;
            }
        }
        for (id, block) in (0..).map(BlockId).zip(&self.blocks) {
            assert_eq!(block.holders, holders[id.0 as usize], "holders of {id:?}");
            let is_idle = self.idle.get(block.idle_since) == Some(&id);
            let is_unused = self.unused.contains(&id);
            let states = [block.holders > 0, is_idle, is_unused];
            let states_true = states.iter().filter(|&&state| state).count();
            assert_eq!(states_true, 1, "{id:?}: {states:?}");
            assert_eq!(block.content.is_some(), is_idle || block.prefix.is_some());
            if let Some(content) = &block.content {
                assert_eq!(self.index.get(content), Some(id));
                let is_full = content.tokens.as_slice().len() == BLOCK_SIZE;
                assert_eq!(is_full, block.prefix.is_some());
                assert!(is_full || is_idle, "{id:?} is known, not full, and held");
            }
            assert!(block.prefix.is_some() || !(block.keep || block.stored));
        }
        let mut previous: Option<&Content> = None;
        for (content, block) in self.index.contents() {
            assert_eq!(
                self.blocks[block.0 as usize].content.as_ref(),
                Some(content)
            );
            assert!(previous.is_none_or(|previous| !previous.begins(content)));
            previous = Some(content);
        }
        assert_eq!(
            self.idle.len() + self.unused.len(),
            holders.iter().filter(|&&h| h == 0).count()
        );
    }
}
