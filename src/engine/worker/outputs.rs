//! From what a forward pass gives to what requests receive.

use std::time::Instant;

use tracing::error;

use super::Worker;
use crate::engine::batch::StepBatch;
use crate::engine::draw::{Row, draw_all};
use crate::engine::event::{GenerateError, GeneratedToken};
use crate::engine::pooling::pool_all;
use crate::engine::scheduler::Part;
use crate::engine::sequence::SequenceId;
use crate::engine::values::with_values;
use crate::model::batch::Outputs;

impl Worker {
    /// Hands every row of hidden states and of logits to the request it belongs to.
    pub(super) fn take_outputs(&mut self, plan: &[Part], batch: &StepBatch, outputs: &Outputs) {
        let tokens = plan.iter().map(|part| part.tokens).sum();
        self.status.steps += 1;
        self.status.step_tokens.observe(tokens);
        for &part in plan {
            self.scheduler.computed(part);
        }
        let spec = self.model.spec();
        let (hidden_width, vocab_size) = (spec.hidden_width, spec.vocab_size);
        let pooled = with_values(&outputs.hidden, |hidden| {
            pool_all(plan, &mut self.active, hidden, hidden_width);
        });
        let mut rows = self.rows(plan, batch);
        let pool = self.model.pool();
        let read = with_values(&outputs.logits, |logits| {
            draw_all(pool, &mut rows, logits, vocab_size);
        });
        self.count(&rows);
        let drawn_at = Instant::now();
        let mut rows = rows.into_iter();
        for (part, wanted) in plan.iter().zip(&batch.prompt_rows) {
            let prompt: Vec<Row> = rows.by_ref().take(wanted.len()).collect();
            let drawn = part.completes.then(|| rows.next()).flatten();
            match drawn {
                Some(Row::Draw {
                    active,
                    drawn,
                    failed,
                    ..
                }) => {
                    self.active.insert(part.id, active);
                    self.take_prompt_rows(part.id, wanted, prompt);
                    self.advance(*part, drawn, failed, drawn_at);
                }
                Some(Row::Rank { ranked, .. }) => {
                    self.take_prompt_rows(part.request, wanted, prompt);
                    self.advance_beams(*part, ranked, drawn_at);
                }
                _ => self.take_prompt_rows(part.request, wanted, prompt),
            }
        }
        if let Err(error) = pooled.and(read) {
            for part in plan {
                self.fail(part.request, GenerateError::StepFailed(error.to_string()));
            }
        }
    }

    /// What is wanted of the step's rows of logits, in their order.
    fn rows(&mut self, plan: &[Part], batch: &StepBatch) -> Vec<Row> {
        let mut rows = Vec::with_capacity(plan.len());
        for (part, wanted) in plan.iter().zip(&batch.prompt_rows) {
            let active = self.active.get(&part.request);
            let asked = active.map_or_else(Default::default, |active| active.request.logprobs);
            rows.extend(wanted.iter().map(|&(_, next)| Row::Prompt {
                next,
                top: asked.prompt_top,
                ranked: asked.prompt_ranks,
                found: None,
            }));
            let beams = active.and_then(|active| active.beams.as_ref());
            if let Some(beams) = beams {
                let wanted = beams.wanted();
                rows.extend(part.completes.then_some(Row::Rank {
                    wanted,
                    ranked: None,
                }));
                continue;
            }
            // A request has one such row at most: its prompt's rows are behind it already.
            if part.completes
                && let Some(active) = self.active.remove(&part.id)
            {
                let sequence = self.scheduler.sequence(part.id);
                rows.push(Row::Draw {
                    active,
                    draft: sequence.map(|s| s.draft.clone()).unwrap_or_default(),
                    drawn: Vec::new(),
                    failed: None,
                });
            }
        }
        rows
    }

    /// Counts what the step drew and publishes it, so that the figures are never behind what a
    /// client has received.
    fn count(&mut self, rows: &[Row]) {
        let status = &mut self.status;
        for row in rows {
            if let Row::Draw { draft, drawn, .. } = row {
                status.drafted += draft.len();
                status.accepted += drawn.len().saturating_sub(1);
                status.generated_tokens += drawn.len();
            }
        }
        self.published.offer(&self.status);
    }

    /// Sends one sequence the tokens drawn for it, and takes them in.
    fn advance(
        &mut self,
        part: Part,
        drawn: Vec<GeneratedToken>,
        failed: Option<GenerateError>,
        at: Instant,
    ) {
        let id = part.id;
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        if active.report_prompt(at).is_some() {
            return self.finish(id);
        }
        let tokens: Vec<u32> = drawn.iter().map(|token| token.token.id).collect();
        let finished = drawn.last().is_some_and(|token| token.finish.is_some());
        for token in drawn {
            active.deliver(token, at);
        }
        self.scheduler.push_tokens(id, &tokens);
        if finished {
            self.finish(id);
        } else if let Some(error) = failed {
            error!(request = %active.request.id, %error, "a request failed");
            self.fail(id, error);
        }
    }

    /// Hands a request what the rows of its prompt say of the tokens that follow them.
    fn take_prompt_rows(&mut self, id: SequenceId, wanted: &[(usize, u32)], rows: Vec<Row>) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        for (&(index, _), row) in wanted.iter().zip(rows) {
            if let Row::Prompt {
                found: Some(found), ..
            } = row
            {
                active.take_prompt_token(index, found);
            }
        }
    }
}
