//! Beam searches in the worker.

use std::time::Instant;

use tracing::error;

use super::Worker;
use crate::engine::beams::SearchStep;
use crate::engine::event::{GenerateError, TokenLogprob};
use crate::engine::scheduler::Chunk;
use crate::engine::sequence::SequenceId;
use crate::request::GenerateRequest;

/// Result of a row of logits; `None` if it could not be read.
type Ranked = Option<Result<Vec<TokenLogprob>, GenerateError>>;

impl Worker {
    /// Checks that all beams of a request fit into a batch.
    pub(super) fn check_width(&self, request: &GenerateRequest) -> Result<(), GenerateError> {
        let max_batch = self.config.max_batch;
        match request.beams {
            Some(beams) if beams.width > max_batch => Err(GenerateError::BatchTooSmall {
                width: beams.width,
                max_batch,
            }),
            _ => Ok(()),
        }
    }

    /// Hands a search one of its rows; after the last row of a step it continues or ends.
    pub(super) fn advance_beams(&mut self, chunk: &Chunk, ranked: Ranked, at: Instant) {
        let Some(active) = self.active.get_mut(&chunk.request) else {
            return;
        };
        active.report_prompt(at);
        let (Some(beams), Some(ranked)) = (&mut active.beams, ranked) else {
            return;
        };
        let row = match ranked {
            Ok(row) => row,
            Err(error) => return self.fail_search(chunk.request, error),
        };
        match beams.take(chunk.id, row, &mut self.scheduler) {
            SearchStep::Next => (),
            SearchStep::Done(hypotheses) => {
                let returned = hypotheses.iter().take(active.clients());
                let tokens: usize = returned.map(|beam| beam.tokens.len()).sum();
                self.status.generated_tokens += tokens;
                self.published.offer(&self.status);
                active.deliver_beams(hypotheses, at);
                self.finish(chunk.request);
            }
        }
    }

    fn fail_search(&mut self, request: SequenceId, error: GenerateError) {
        if let Some(active) = self.active.get(&request) {
            error!(request = %active.request.id, %error, "a beam search failed");
        }
        self.fail(request, error);
    }
}
