//! From a step's logits to tokens: all rows at once, on the compute threads.
//!
//! The thread that handles a row has no influence on its result. A row that fails or panics fails its
//! own request alone.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::active::Active;
use crate::engine::event::{GenerateError, GeneratedToken, TokenLogprob};
use crate::engine::logprobs;
use crate::engine::sampler::Scratch;
use crate::kernels::{Pool, SharedSlice};
use crate::panics;

/// What to compute from one or more rows of logits, and the result.
pub(super) enum RowTask {
    /// The most likely continuations of a beam.
    Rank {
        /// Number of tokens.
        wanted: usize,
        /// Result: the most likely tokens, the most likely first.
        ranked: Option<Result<Vec<TokenLogprob>, GenerateError>>,
    },
    /// The next tokens of a request.
    Sample {
        /// The request, taken out of the worker's map meanwhile. A request that generates no tokens
        /// has no row.
        active: Box<Active>,
        /// Drafts of its next tokens; each has a row after the request's last.
        draft: Vec<u32>,
        /// Result: the accepted drafts and one more token.
        sampled: Vec<GeneratedToken>,
        /// Error that ended sampling.
        failed: Option<GenerateError>,
    },
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs all tasks; `logits` are `[rows, vocab_size]`, as many rows per task as [`RowTask::rows`] returns.
pub(super) fn run_all(pool: &Pool, tasks: &mut [RowTask], logits: &[f32], vocab_size: usize) {
    let ends: Vec<usize> = tasks
        .iter()
        .scan(0, |end, task| {
            *end += task.rows() * vocab_size;
            Some(*end)
        })
        .collect();
    let count = ends.partition_point(|&end| end <= logits.len());
    let shared = SharedSlice::new(tasks);
    pool.run(count, |n| {
        let start = if n == 0 { 0 } else { ends[n - 1] };
        // SAFETY: each index is given to one call only.
        if let [task] = unsafe { shared.part(n, 1) } {
            task.run(&logits[start..ends[n]], vocab_size);
        }
    });
}

impl RowTask {
    /// Returns the number of rows of logits that the task takes.
    fn rows(&self) -> usize {
        match self {
            Self::Rank { .. } => 1,
            Self::Sample { active, draft, .. } if active.samples() => 1 + draft.len(),
            Self::Sample { .. } => 0,
        }
    }

    fn run(&mut self, logits: &[f32], vocab_size: usize) {
        match self {
            Self::Rank { wanted, ranked } => *ranked = Some(logprobs::ranked(logits, *wanted)),
            Self::Sample {
                active,
                draft,
                sampled,
                failed,
            } if active.samples() => {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    sample(active, draft, logits.chunks_exact(vocab_size), sampled)
                }));
                let panicked = |panic: Box<dyn std::any::Any + Send>| {
                    Err(GenerateError::StepFailed(
                        panics::message(&*panic).to_owned(),
                    ))
                };
                *failed = outcome.unwrap_or_else(panicked).err();
            }
            Self::Sample { .. } => (),
        }
    }
}

/// Samples one token after the other, as long as each equals the draft in its place.
fn sample<'a>(
    active: &mut Active,
    draft: &[u32],
    logits: impl Iterator<Item = &'a [f32]>,
    sampled: &mut Vec<GeneratedToken>,
) -> Result<(), GenerateError> {
    let drafts = draft.iter().map(Some).chain([None]);
    for (logits, draft) in logits.zip(drafts) {
        let token = SCRATCH.with_borrow_mut(|scratch| active.sample(logits, scratch))?;
        let is_accepted = token.finish.is_none() && draft == Some(&token.token.id);
        sampled.push(token);
        if !is_accepted {
            break;
        }
    }
    Ok(())
}
