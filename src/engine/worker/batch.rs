//! From a plan to the model's ragged batch: token ids, positions, block tables, and the rows whose
//! logits and hidden states are wanted. Drafts are rows like the tokens before them.

use std::collections::HashMap;
use std::sync::Arc;

use super::active::Active;
use crate::engine::scheduler::{Chunk, Scheduler};
use crate::engine::sequence::{Sequence, SequenceId};
use crate::kernels::kv::SequenceSpan;
use crate::model::adapter::AdapterRows;
use crate::model::batch::Batch;

/// A step's batch, and the prompt tokens to score per chunk of its plan.
pub(super) struct StepBatch {
    pub batch: Batch,
    /// Per chunk: (history index of the row's token, the token that follows it).
    pub prompt_rows: Vec<Vec<(usize, u32)>>,
}

/// Lays the chunks of a plan out as rows, in the plan's order. Rows of logits have the same order: per
/// chunk that completes its context and after which a token is sampled, its last row and those of its
/// drafts. So have the rows of prompt tokens to score, and hidden states: those of all tokens of a chunk.
pub(super) fn build(
    plan: &[Chunk],
    scheduler: &Scheduler,
    active: &HashMap<SequenceId, Box<Active>>,
) -> StepBatch {
    let mut batch = Batch::default();
    let mut prompt_rows = Vec::with_capacity(plan.len());
    for chunk in plan {
        let sequence = scheduler.sequence_of(chunk);
        let rows = match (sequence, active.get(&chunk.request)) {
            (Some(sequence), Some(active)) => add(&mut batch, chunk, scheduler, sequence, active),
            _ => Vec::new(),
        };
        prompt_rows.push(rows);
    }
    StepBatch { batch, prompt_rows }
}

/// Appends the rows of a chunk; returns the prompt tokens to score.
fn add(
    batch: &mut Batch,
    chunk: &Chunk,
    scheduler: &Scheduler,
    sequence: &Sequence,
    active: &Active,
) -> Vec<(usize, u32)> {
    let first_row = batch.ids.len();
    let end = chunk.first_position + chunk.tokens;
    let known = end - chunk.drafted;
    let tokens = &sequence.context()[chunk.first_position..known];
    batch.ids.extend_from_slice(tokens);
    batch.ids.extend_from_slice(&sequence.draft);
    let positions = chunk.first_position..end;
    batch.positions.extend(positions.map(|p| p as u32));
    batch.spans.push(SequenceSpan {
        rows: first_row..first_row + chunk.tokens,
        first_position: chunk.first_position,
        block_table: sequence.table.iter().map(|block| block.0).collect(),
        window_table: scheduler
            .blocks()
            .window_table(&sequence.table, sequence.first_slot),
    });
    if let Some(adapter) = &active.request.adapter {
        let rows = (first_row..).take(chunk.tokens).map(|row| row as u32);
        let its = |other: &&mut AdapterRows| Arc::ptr_eq(&other.adapter, adapter);
        match batch.adapters.iter_mut().find(its) {
            Some(known) => known.rows.extend(rows),
            None => batch.adapters.push(AdapterRows {
                adapter: Arc::clone(adapter),
                rows: rows.collect(),
            }),
        }
    }
    let mut wanted = Vec::new();
    for (offset, row) in (first_row..).take(tokens.len()).enumerate() {
        let index = sequence.start + chunk.first_position + offset;
        if active.wants_prompt_logits(index) {
            wanted.push((index, sequence.tokens[index + 1]));
            batch.scored_rows.push(row as u32);
        }
    }
    if active.pool.is_some() {
        let rows = (first_row..).take(tokens.len());
        batch.hidden_rows.extend(rows.map(|row| row as u32));
    }
    if chunk.completes && active.samples() {
        let last = first_row + tokens.len() - 1;
        let rows = last..=last + chunk.drafted;
        batch.logits_rows.extend(rows.map(|row| row as u32));
    }
    wanted
}
