//! The index of known content: which block holds which tokens after which prefix.
//!
//! Content is ordered lexicographically, grouped by parent. So the block with the longest common
//! prefix with given tokens is the entry just before or after their position.

use std::collections::BTreeMap;

use super::prefix::{BlockTokens, PrefixId, common};
use super::{BLOCK_SIZE, BlockId};

/// Content of a block: tokens after a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content {
    pub parent: PrefixId,
    pub tokens: BlockTokens,
}

impl Content {
    pub fn new(parent: PrefixId, tokens: &[u32]) -> Self {
        Self {
            parent,
            tokens: BlockTokens::first_of(tokens),
        }
    }

    /// Returns whether `other` begins with this content.
    pub fn begins(&self, other: &Self) -> bool {
        let tokens = other.tokens.as_slice();
        self.parent == other.parent && tokens.starts_with(self.tokens.as_slice())
    }
}

/// A block that shares a prefix with the tokens of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nearest {
    pub block: BlockId,
    /// Number of tokens in common.
    pub common: usize,
}

/// All known content. Partial content is never a prefix of other content.
#[derive(Debug, Default)]
pub(super) struct ContentIndex {
    known: BTreeMap<Content, BlockId>,
}

impl ContentIndex {
    pub fn get(&self, content: &Content) -> Option<BlockId> {
        self.known.get(content).copied()
    }

    pub fn insert(&mut self, content: Content, block: BlockId) {
        self.known.insert(content, block);
    }

    pub fn remove(&mut self, content: &Content) {
        self.known.remove(content);
    }

    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// Returns the block with the longest common prefix with `tokens` after `parent`, if it is not
    /// empty.
    pub fn nearest(&self, parent: PrefixId, tokens: &[u32]) -> Option<Nearest> {
        let wanted = Content::new(parent, tokens);
        let before = self.known.range(..=wanted).next_back();
        let after = self.known.range(wanted..).next();
        let siblings = before.into_iter().chain(after);
        let siblings = siblings.filter(|(content, _)| content.parent == parent);
        siblings
            .map(|(content, &block)| Nearest {
                block,
                common: common(content.tokens.as_slice(), wanted.tokens.as_slice()),
            })
            .filter(|nearest| nearest.common > 0)
            .max_by_key(|nearest| nearest.common)
    }

    /// Returns a block whose content begins with this one or equals it.
    pub fn continued_by(&self, content: &Content) -> Option<BlockId> {
        let (next, &block) = self.known.range(content..).next()?;
        content.begins(next).then_some(block)
    }

    /// Returns the block of the known partial content that is a prefix of this one.
    pub fn beginning(&self, content: &Content) -> Option<BlockId> {
        let (before, &block) = self.known.range(..content).next_back()?;
        let is_beginning = before.tokens.as_slice().len() < BLOCK_SIZE && before.begins(content);
        is_beginning.then_some(block)
    }

    #[cfg(any(test, fuzzing))]
    pub fn contents(&self) -> impl Iterator<Item = (&Content, BlockId)> {
        self.known.iter().map(|(content, &block)| (content, block))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::Tenant;

    proptest! {
        #[test]
        fn the_nearest_is_the_one_with_the_longest_common_beginning(
            contents in prop::collection::vec((0u8..2, prop::collection::vec(0u32..3, 1..=16)), 0..40),
            wanted in prop::collection::vec(0u32..3, 0..20),
        ) {
            let parents = [b"a", b"b"].map(|key| PrefixId::root(Tenant::of_key(key)));
            let mut index = ContentIndex::default();
            for (n, (parent, tokens)) in (0..).zip(&contents) {
                let content = Content::new(parents[usize::from(*parent)], tokens);
                index.insert(content, BlockId(n));
            }
            for (at, parent) in (0..).zip(parents) {
                let wanted = &wanted[..wanted.len().min(BLOCK_SIZE)];
                let all = contents.iter().filter(|content| content.0 == at);
                let best = all.map(|content| common(&content.1, wanted)).max().unwrap_or(0);
                let found = index.nearest(parent, wanted);
                prop_assert_eq!(found.map_or(0, |nearest| nearest.common), best);
                if let Some(Nearest { block, common: n }) = found {
                    let (parent, tokens) = &contents[block.0 as usize];
                    prop_assert_eq!((*parent, common(tokens, wanted)), (at, n));
                }
            }
        }
    }
}
