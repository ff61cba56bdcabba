//! How sequences take what is computed already, and leave what they have computed.
//!
//! Beside the contents that the pool knows there are the last blocks of the running sequences,
//! which they are still writing to: what is computed of them can be copied too.

use super::Scheduler;
use crate::engine::blocks::{BLOCK_SIZE, BlockId, BlockPool, PrefixId, Tail, common};
use crate::engine::sequence::Sequence;

/// What of a sequence's context is computed already.
#[derive(Debug, Default)]
pub(super) struct Cached {
    /// Full blocks, from the first one on.
    pub full: Vec<(BlockId, PrefixId)>,
    /// Where the beginning of its next block is.
    tail: Option<Tail>,
}

impl Cached {
    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.full.len() * BLOCK_SIZE + self.tail.map_or(0, |tail| tail.tokens)
    }
}

impl Scheduler {
    /// What is there that a sequence, which holds nothing, can begin with.
    pub(super) fn cached(&self, sequence: &Sequence) -> Cached {
        self.cached_after(sequence, sequence.root, 0)
    }

    /// What is there of a sequence's context after its first blocks, which end with `parent`.
    pub(super) fn cached_after(
        &self,
        sequence: &Sequence,
        parent: PrefixId,
        blocks: usize,
    ) -> Cached {
        let reusable = sequence.reusable();
        let limit = reusable.len();
        let known = reusable.get(blocks * BLOCK_SIZE..).unwrap_or_default();
        let full = self.blocks.find_prefix(parent, known);
        let parent = full.last().map_or(parent, |last| last.1);
        let start = (blocks + full.len()) * BLOCK_SIZE;
        if start >= limit {
            return Cached { full, tail: None };
        }
        // A tail that has the last token too is as good, if that one is computed again.
        let rest = &sequence.context()[start..];
        let known = self.blocks.find_tail(parent, rest);
        let running = self.running_tail(parent, rest);
        let tail = match (known, running) {
            (Some(known), Some(running)) if running.tokens > known.tokens => Some(running),
            (known, running) => known.or(running),
        };
        let tail = tail.map(|tail| Tail {
            tokens: tail.tokens.min(limit - start),
            ..tail
        });
        Cached { full, tail }
    }

    /// The last block of a running sequence that has most of the beginning of `tokens` after the
    /// prefix.
    fn running_tail(&self, parent: PrefixId, tokens: &[u32]) -> Option<Tail> {
        let siblings = self.running.iter().filter(|s| s.last_prefix() == parent);
        siblings
            .filter_map(Sequence::tail)
            .map(|(block, computed)| Tail {
                block,
                tokens: common(computed, tokens),
                whole: false,
            })
            .filter(|tail| tail.tokens > 0)
            .max_by_key(|tail| tail.tokens)
    }
}

/// Begins a sequence with what is there, as far as there is a block to write on in.
pub(super) fn attach(blocks: &mut BlockPool, sequence: &mut Sequence, cached: &Cached) {
    for &(block, prefix) in &cached.full {
        blocks.hold(block, sequence.keep);
        sequence.table.push(block);
        sequence.prefixes.push(prefix);
    }
    sequence.computed = cached.full.len() * BLOCK_SIZE;
    let Some(tail) = cached.tail else {
        return;
    };
    let block = if tail.whole {
        blocks.take_over(tail.block);
        Some(tail.block)
    } else {
        blocks.allocate_copy(tail.block)
    };
    if let Some(block) = block {
        sequence.table.push(block);
        sequence.computed += tail.tokens;
    }
}

/// Gives all blocks back, the last first (see [`BlockPool::release`]); what is computed of them
/// stays known.
pub(super) fn release(blocks: &mut BlockPool, sequence: &mut Sequence) {
    let full = sequence.prefixes.len();
    while let Some(block) = sequence.table.pop() {
        let computed = sequence.context().get(full * BLOCK_SIZE..sequence.computed);
        match computed {
            Some(tokens) if sequence.table.len() == full && !tokens.is_empty() => {
                blocks.release_tail(block, sequence.last_prefix(), tokens);
            }
            _ => blocks.release(block),
        }
    }
    sequence.prefixes.clear();
    sequence.draft.clear();
    sequence.computed = 0;
}
