//! Drafts for steps that have rows to spare.

use super::{Chunk, Scheduler};
use crate::engine::blocks::BLOCK_SIZE;

impl Scheduler {
    /// Adds drafts to a step that is bound by reading the weights: one of few rows, in which every
    /// sequence decodes. Drafts only take free blocks.
    pub(super) fn speculate(&mut self, plan: &mut [Chunk]) {
        let mut spare = self.limits.speculative_rows.saturating_sub(plan.len());
        if plan
            .iter()
            .any(|chunk| chunk.tokens > 1 || !chunk.completes || chunk.observed)
        {
            return;
        }
        for chunk in plan {
            let sequence = self.running.get_mut(chunk.index);
            let Some(sequence) = sequence.filter(|_| spare > 0) else {
                return;
            };
            sequence.guess(spare);
            let positions = sequence.computed + 1 + sequence.draft.len();
            while sequence.table.len() < positions.div_ceil(BLOCK_SIZE) {
                match self.blocks.allocate() {
                    Some(block) => sequence.table.push(block),
                    None => sequence.draft.clear(),
                }
                if sequence.draft.is_empty() {
                    break;
                }
            }
            chunk.drafted = sequence.draft.len();
            chunk.tokens += chunk.drafted;
            spare -= chunk.drafted;
        }
    }
}
