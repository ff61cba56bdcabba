//! From a step's logits to tokens, all rows at once on the compute pool.
//!
//! Which thread takes a row has no influence on what is drawn from it. A row that can't be drawn
//! from, or panics, fails its own request alone.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::active::Active;
use super::event::{GenerateError, GeneratedToken, PromptToken};
use super::logprobs::logprobs;
use super::sampler::Scratch;
use crate::kernels::{Pool, SharedSlice};

/// What is to be found out from one row of logits.
pub(super) enum Row {
    /// How likely a token of the prompt was.
    Prompt {
        /// The token that follows.
        next: u32,
        /// How many of the most likely to report.
        top: usize,
        /// Found out.
        found: Option<PromptToken>,
    },
    /// The next token of a request.
    Draw {
        /// The request; taken from the worker for the time of the drawing.
        active: Box<Active>,
        /// Found out; `None` for a request that draws nothing.
        drawn: Option<Result<GeneratedToken, GenerateError>>,
    },
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Finds out what is wanted of every row; `logits` are `[rows, vocab_size]`.
pub(super) fn draw_all(pool: &Pool, rows: &mut [Row], logits: &[f32], vocab_size: usize) {
    let count = rows.len().min(logits.len() / vocab_size.max(1));
    let shared = SharedSlice::new(rows);
    pool.run(count, |n| {
        // SAFETY: every row is one task's.
        if let [row] = unsafe { shared.part(n, 1) } {
            row.find_out(&logits[n * vocab_size..][..vocab_size]);
        }
    });
}

impl Row {
    fn find_out(&mut self, logits: &[f32]) {
        match self {
            Self::Prompt { next, top, found } => {
                let (token, top) = logprobs(logits, *next, *top);
                *found = Some(PromptToken { token, top });
            }
            Self::Draw { active, drawn } if active.draws() => {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    SCRATCH.with_borrow_mut(|scratch| active.draw(logits, scratch))
                }));
                *drawn = Some(outcome.unwrap_or_else(|panic| {
                    Err(GenerateError::StepFailed(panic_message(&*panic)))
                }));
            }
            Self::Draw { .. } => (),
        }
    }
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}
