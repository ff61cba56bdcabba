//! How sequences reuse cached blocks, and release their own.
//!
//! Besides the content that the pool knows, the last, partial blocks of running sequences can be copied
//! as far as they are computed. A sequence that begins as an older one in prefill waits until that has
//! computed what they have in common.

use super::Scheduler;
use crate::engine::blocks::windows::longest_usable;
use crate::engine::blocks::{BLOCK_SIZE, BlockId, BlockPool, PrefixId, Tail, common};
use crate::engine::sequence::Sequence;

/// Minimum tokens saved for a sequence to wait for another one.
const WORTH_WAITING: usize = 4;

/// The part of a sequence's context that is computed already.
#[derive(Debug, Default)]
pub(super) struct Cached {
    /// Full blocks, in order.
    pub full: Vec<(BlockId, PrefixId)>,
    /// Block with the beginning of the next one.
    tail: Option<Tail>,
}

impl Cached {
    /// Returns the number of tokens.
    pub fn tokens(&self) -> usize {
        self.full.len() * BLOCK_SIZE + self.tail.map_or(0, |tail| tail.tokens)
    }
}

impl Scheduler {
    /// Returns the cached part of a context that a sequence without blocks can continue.
    pub(super) fn cached(&self, sequence: &Sequence) -> Cached {
        let mut cached = self.cached_after(sequence, sequence.root, 0);
        let Some(windows) = self.blocks.windows() else {
            return cached;
        };
        let known = cached.full.len();
        let start = |blocks| sequence.slots_from(windows.window(), blocks * BLOCK_SIZE);
        let has_slot = |n: usize| {
            cached
                .full
                .get(n)
                .is_some_and(|c| windows.of(c.0).is_some())
        };
        let usable = longest_usable(known, start, has_slot);
        cached.full.truncate(usable);
        let has_slot = |tail: &Tail| usable == known && windows.of(tail.block).is_some();
        cached.tail = cached.tail.filter(has_slot);
        cached
    }

    /// Returns the cached part of a context after its first `full` blocks, which end with `parent`, whether
    /// or not their window slots are.
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
        // A tail that also has the last token can be used if that one is computed again.
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

    /// Returns whether one of `older` running sequences will compute more of the prefix of `sequence` than
    /// is cached now.
    pub(super) fn waits_for_prefix(&self, sequence: &Sequence, older: &[Sequence]) -> bool {
        let wanted = sequence.reusable();
        // One with a lower priority, or an inspection, may stand still.
        let is_ahead = |s: &&Sequence| {
            s.root == sequence.root
                && s.priority <= sequence.priority
                && s.observed_from.is_none()
                && s.pending() >= WORTH_WAITING
        };
        older.iter().filter(is_ahead).any(|s| {
            let common = common(s.context(), wanted);
            if common < s.computed + WORTH_WAITING {
                return false;
            }
            // So they have its full blocks in common.
            let (parent, full) = (s.last_prefix(), s.prefixes.len());
            let known = full * BLOCK_SIZE + self.cached_after(sequence, parent, full).tokens();
            common >= known + WORTH_WAITING
        })
    }

    /// Returns the last block of a running sequence with the longest common beginning with `tokens` after
    /// the prefix.
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

/// Attaches the cached blocks to a sequence, as far as a block to append to can be allocated.
pub(super) fn attach(blocks: &mut BlockPool, sequence: &mut Sequence, cached: &Cached) {
    for &(block, prefix) in &cached.full {
        blocks.hold(block, sequence.keep);
        sequence.table.push(block);
        sequence.prefixes.push(prefix);
    }
    sequence.computed = cached.full.len() * BLOCK_SIZE;
    if let Some(windows) = blocks.windows() {
        sequence.first_slot = sequence.slots_from(windows.window(), sequence.computed);
        for &block in &sequence.table[sequence.first_slot..] {
            blocks.hold_slot(block);
        }
    }
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

/// Releases all blocks, the last first (see [`BlockPool::release`]); their computed content stays known.
pub(super) fn release(blocks: &mut BlockPool, sequence: &mut Sequence) {
    let full = sequence.prefixes.len();
    while let Some(block) = sequence.table.pop() {
        if sequence.table.len() >= sequence.first_slot {
            blocks.end_slot(block, sequence.keep);
        }
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
    sequence.first_slot = 0;
}
