//! From the results of a forward pass to what requests receive.

use std::time::Instant;

use tracing::error;

use super::sample::{RowTask, run_all};
use super::{Pass, Worker};
use crate::engine::event::{GenerateError, GeneratedToken, PromptToken};
use crate::engine::scheduler::Chunk;
use crate::engine::sequence::SequenceId;
use crate::engine::values::with_values;

impl Worker {
    /// Hands every row of hidden states and logits to the request that it belongs to.
    pub(super) fn take_outputs(&mut self, plan: &[Chunk], pass: Pass) {
        let Pass {
            step,
            outputs,
            scored,
        } = pass;
        let tokens = plan.iter().map(|chunk| chunk.tokens).sum();
        self.status.steps += 1;
        self.status.step_tokens.observe(tokens);
        for chunk in plan {
            self.scheduler.computed(chunk);
        }
        let spec = self.model.spec();
        let (hidden_width, vocab_size) = (spec.hidden_width, spec.vocab_size);
        let pooled = with_values(&outputs.hidden, |hidden| {
            self.pool_hidden(plan, hidden, hidden_width);
        });
        let mut tasks = self.row_tasks(plan);
        let pool = self.model.pool();
        let read = with_values(&outputs.logits, |logits| {
            run_all(pool, &mut tasks, logits, vocab_size);
        });
        self.count(&tasks);
        let sampled_at = Instant::now();
        let mut tasks = tasks.into_iter();
        let mut scored = scored.into_iter();
        for (chunk, wanted) in plan.iter().zip(&step.prompt_rows) {
            let prompt: Vec<PromptToken> = scored.by_ref().take(wanted.len()).collect();
            let last = chunk.completes.then(|| tasks.next()).flatten();
            match last {
                Some(RowTask::Sample {
                    active,
                    sampled,
                    failed,
                    ..
                }) => {
                    self.active.insert(chunk.id, active);
                    self.take_prompt_scores(chunk.id, wanted, prompt);
                    self.advance(chunk, sampled, failed, sampled_at);
                }
                Some(RowTask::Rank { ranked, .. }) => {
                    self.take_prompt_scores(chunk.request, wanted, prompt);
                    self.advance_beams(chunk, ranked, sampled_at);
                }
                _ => self.take_prompt_scores(chunk.request, wanted, prompt),
            }
        }
        if let Err(error) = pooled.and(read) {
            for chunk in plan {
                self.fail(chunk.request, GenerateError::StepFailed(error.to_string()));
            }
        }
    }

    /// Adds the step's hidden states, `[rows, hidden_width]` in the plan's order, to the sequences that
    /// pool them.
    fn pool_hidden(&mut self, plan: &[Chunk], hidden: &[f32], hidden_width: usize) {
        let mut rest = hidden;
        for chunk in plan {
            let active = self.active.get_mut(&chunk.id);
            let Some(pool) = active.and_then(|active| active.pool.as_mut()) else {
                continue;
            };
            let values = (chunk.tokens - chunk.drafted) * hidden_width;
            let (own, others) = rest.split_at(values.min(rest.len()));
            pool.add(chunk.first_position, own);
            rest = others;
        }
    }

    /// Returns the tasks for the step's rows of logits, in their order.
    fn row_tasks(&mut self, plan: &[Chunk]) -> Vec<RowTask> {
        let mut tasks = Vec::with_capacity(plan.len());
        for chunk in plan {
            let active = self.active.get(&chunk.request);
            let beams = active.and_then(|active| active.beams.as_ref());
            if let Some(beams) = beams {
                let wanted = beams.wanted();
                tasks.extend(chunk.completes.then_some(RowTask::Rank {
                    wanted,
                    ranked: None,
                }));
                continue;
            }
            // A request has at most one such task.
            if chunk.completes
                && let Some(active) = self.active.remove(&chunk.id)
            {
                let sequence = self.scheduler.sequence_of(chunk);
                tasks.push(RowTask::Sample {
                    active,
                    draft: sequence.map(|s| s.draft.clone()).unwrap_or_default(),
                    sampled: Vec::new(),
                    failed: None,
                });
            }
        }
        tasks
    }

    /// Counts the step's tokens and publishes the counts, so that they are never behind what a client
    /// has received.
    fn count(&mut self, tasks: &[RowTask]) {
        let status = &mut self.status;
        for task in tasks {
            if let RowTask::Sample { draft, sampled, .. } = task {
                status.drafted += draft.len();
                status.accepted += sampled.len().saturating_sub(1);
                status.generated_tokens += sampled.len();
            }
        }
        self.published.offer(&self.status);
    }

    /// Sends a request its sampled tokens and appends them to its sequence.
    fn advance(
        &mut self,
        chunk: &Chunk,
        sampled: Vec<GeneratedToken>,
        failed: Option<GenerateError>,
        at: Instant,
    ) {
        let id = chunk.id;
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        if active.report_prompt(at).is_some() {
            return self.finish(id);
        }
        let tokens: Vec<u32> = sampled.iter().map(|token| token.token.id).collect();
        let finished = sampled.last().is_some_and(|token| token.finish.is_some());
        for token in sampled {
            active.deliver(token, at);
        }
        self.scheduler.push_sampled(chunk, &tokens);
        if finished {
            self.finish(id);
        } else if let Some(error) = failed {
            error!(request = %active.request.id, %error, "request failed");
            self.fail(id, error);
        }
    }

    /// Hands a request the scores of its prompt's tokens.
    fn take_prompt_scores(
        &mut self,
        id: SequenceId,
        wanted: &[(usize, u32)],
        scored: Vec<PromptToken>,
    ) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        for (&(index, _), scored) in wanted.iter().zip(scored) {
            active.take_prompt_token(index, scored);
        }
    }
}
