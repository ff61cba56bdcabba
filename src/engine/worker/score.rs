//! Log-probabilities of prompt tokens: the logits of many rows, in pieces of bounded size.
//!
//! A request can ask for the log-probabilities of every token of its prompt, so a step may have as many rows
//! to score as it has tokens. Their logits must never all be in memory at once: for 512 rows of a vocabulary
//! of 262,144 tokens they are half a GiB.

use candle_core::{Result, Tensor};

use super::Worker;
use super::batch::StepBatch;
use crate::engine::event::PromptToken;
use crate::engine::logprobs;
use crate::engine::scheduler::Chunk;
use crate::engine::values::with_values;
use crate::kernels::SharedSlice;

/// Maximum size of the logits of a piece, in bytes.
const PIECE_BYTES: usize = 32 << 20;

/// Minimum rows of a piece: fewer would read the output projection too often.
const MIN_PIECE_ROWS: usize = 16;

/// A prompt token to score from a row of logits, and the result.
struct Score {
    /// The token that follows the row.
    next: u32,
    /// Number of most likely tokens to report.
    top: usize,
    /// Whether the token's rank is wanted.
    ranked: bool,
    scored: Option<PromptToken>,
}

impl Worker {
    /// Scores the prompt tokens of a step; `rows` are those before them after the last norm,
    /// `[scored_rows, hidden_width]` in the plan's order.
    ///
    /// # Errors
    /// If the logits can't be computed.
    pub(super) fn score_prompts(
        &self,
        plan: &[Chunk],
        step: &StepBatch,
        rows: &Tensor,
    ) -> Result<Vec<PromptToken>> {
        let mut scores = self.scores(plan, step);
        let vocab_size = self.model.spec().vocab_size;
        let mut first = 0;
        for piece in scores.chunks_mut(piece_rows(vocab_size)) {
            let logits = self.model.logits(&rows.narrow(0, first, piece.len())?)?;
            first += piece.len();
            let tasks = piece.len();
            let shared = SharedSlice::new(piece);
            with_values(&logits, |logits| {
                self.model.pool().run(tasks, |n| {
                    // SAFETY: each index is given to one call only.
                    if let [score] = unsafe { shared.part(n, 1) } {
                        score.run(&logits[n * vocab_size..(n + 1) * vocab_size]);
                    }
                });
            })?;
        }
        Ok(scores
            .into_iter()
            .filter_map(|score| score.scored)
            .collect())
    }

    /// Returns the tokens to score, in the plan's order.
    fn scores(&self, plan: &[Chunk], step: &StepBatch) -> Vec<Score> {
        let mut scores = Vec::new();
        for (chunk, wanted) in plan.iter().zip(&step.prompt_rows) {
            let active = self.active.get(&chunk.request);
            let asked = active.map_or_else(Default::default, |active| active.request.logprobs);
            scores.extend(wanted.iter().map(|&(_, next)| Score {
                next,
                top: asked.prompt_top,
                ranked: asked.prompt_ranks,
                scored: None,
            }));
        }
        scores
    }
}

impl Score {
    fn run(&mut self, logits: &[f32]) {
        let (token, top) = logprobs::logprobs(logits, self.next, self.top);
        let rank = self.ranked.then(|| logprobs::rank(logits, self.next));
        self.scored = Some(PromptToken { token, rank, top });
    }
}

/// Returns the number of rows whose logits are computed at once.
fn piece_rows(vocab_size: usize) -> usize {
    (PIECE_BYTES / size_of::<f32>() / vocab_size).max(MIN_PIECE_ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logits_of_a_piece_are_bounded() {
        assert_eq!(piece_rows(8192), 1024);
        assert_eq!(piece_rows(50_257), 166);
        assert_eq!(piece_rows(262_144), 32);
        assert_eq!(piece_rows(1 << 24), MIN_PIECE_ROWS);
    }
}
