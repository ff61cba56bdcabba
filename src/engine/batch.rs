//! From a plan to the model's ragged batch: which tokens, at which positions, in which blocks,
//! and which rows' logits and hidden states are wanted. A part's guesses are rows like its tokens.

use std::collections::HashMap;

use super::active::Active;
use super::scheduler::{Part, Scheduler};
use super::sequence::SequenceId;
use crate::kernels::kv::SequenceSpan;
use crate::model::batch::Batch;

/// A step's batch, and for every part of its plan which of its logits report prompt tokens.
pub(super) struct StepBatch {
    pub batch: Batch,
    /// Per part: (history index of the row's token, the token that follows it).
    pub prompt_rows: Vec<Vec<(usize, u32)>>,
}

/// Lays the parts of a plan out as rows, in the plan's order. Logits come in the same order: per
/// part first its prompt rows, then, if the part completes its context and a token is drawn after
/// it, its last row and those of its guesses. So do hidden states: of all of a part's tokens.
pub(super) fn build(
    plan: &[Part],
    scheduler: &Scheduler,
    active: &HashMap<SequenceId, Box<Active>>,
) -> StepBatch {
    let mut batch = Batch::default();
    let mut prompt_rows = Vec::with_capacity(plan.len());
    for part in plan {
        let mut wanted = Vec::new();
        if let (Some(sequence), Some(active)) =
            (scheduler.sequence(part.id), active.get(&part.request))
        {
            let first_row = batch.ids.len();
            let end = part.first_position + part.tokens;
            let known = end - part.drafted;
            let tokens = &sequence.context()[part.first_position..known];
            batch.ids.extend_from_slice(tokens);
            batch.ids.extend_from_slice(&sequence.draft);
            batch
                .positions
                .extend((part.first_position..end).map(|position| position as u32));
            batch.spans.push(SequenceSpan {
                rows: first_row..first_row + part.tokens,
                first_position: part.first_position,
                block_table: sequence.table.iter().map(|block| block.0).collect(),
            });
            for (offset, row) in (first_row..).take(tokens.len()).enumerate() {
                let index = sequence.start + part.first_position + offset;
                if active.wants_prompt_logits(index) {
                    wanted.push((index, sequence.tokens[index + 1]));
                    batch.logits_rows.push(row as u32);
                }
            }
            if active.pool.is_some() {
                let rows = (first_row..).take(tokens.len());
                batch.hidden_rows.extend(rows.map(|row| row as u32));
            }
            if part.completes && active.draws() {
                let last = first_row + tokens.len() - 1;
                let rows = last..=last + part.drafted;
                batch.logits_rows.extend(rows.map(|row| row as u32));
            }
        }
        prompt_rows.push(wanted);
    }
    StepBatch { batch, prompt_rows }
}
