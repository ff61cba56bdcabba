//! From a step's logits to tokens, all rows at once on the compute pool.
//!
//! Which thread takes a row has no influence on what is drawn from it. A row that can't be drawn
//! from, or panics, fails its own request alone.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::active::Active;
use super::event::{GenerateError, GeneratedToken, PromptToken, TokenLogprob};
use super::logprobs;
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
        /// Whether its place among all is wanted.
        ranked: bool,
        /// Found out.
        found: Option<PromptToken>,
    },
    /// The tokens that a beam may go on with.
    Rank {
        /// How many.
        wanted: usize,
        /// Found out: the most likely, most likely first.
        ranked: Option<Result<Vec<TokenLogprob>, GenerateError>>,
    },
    /// The next token of a request.
    Draw {
        /// The request; taken from the worker for the time of the drawing. It may be one that
        /// draws nothing, and then has no row.
        active: Box<Active>,
        /// Guesses of its next tokens; each has a row of its own behind the request's last.
        draft: Vec<u32>,
        /// Found out: a token for every guess that was right, and one more; nothing for a request
        /// that draws nothing.
        drawn: Vec<GeneratedToken>,
        /// Why there are no more.
        failed: Option<GenerateError>,
    },
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Finds out what is wanted of every row; `logits` are `[rows, vocab_size]`, as many for each as
/// [`Row::logits`] says.
pub(super) fn draw_all(pool: &Pool, rows: &mut [Row], logits: &[f32], vocab_size: usize) {
    let ends: Vec<usize> = rows
        .iter()
        .scan(0, |end, row| {
            *end += row.logits() * vocab_size;
            Some(*end)
        })
        .collect();
    let count = ends.partition_point(|&end| end <= logits.len());
    let shared = SharedSlice::new(rows);
    pool.run(count, |n| {
        let start = if n == 0 { 0 } else { ends[n - 1] };
        // SAFETY: every row is one task's.
        if let [row] = unsafe { shared.part(n, 1) } {
            row.find_out(&logits[start..ends[n]], vocab_size);
        }
    });
}

impl Row {
    /// Rows of logits it takes.
    fn logits(&self) -> usize {
        match self {
            Self::Prompt { .. } | Self::Rank { .. } => 1,
            Self::Draw { active, draft, .. } if active.draws() => 1 + draft.len(),
            Self::Draw { .. } => 0,
        }
    }

    fn find_out(&mut self, logits: &[f32], vocab_size: usize) {
        match self {
            Self::Prompt {
                next,
                top,
                ranked,
                found,
            } => {
                let (token, top) = logprobs::logprobs(logits, *next, *top);
                let rank = ranked.then(|| logprobs::rank(logits, *next));
                *found = Some(PromptToken { token, rank, top });
            }
            Self::Rank { wanted, ranked } => *ranked = Some(logprobs::ranked(logits, *wanted)),
            Self::Draw {
                active,
                draft,
                drawn,
                failed,
            } if active.draws() => {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    draw(active, draft, logits.chunks_exact(vocab_size), drawn)
                }));
                *failed = outcome
                    .unwrap_or_else(|panic| Err(GenerateError::StepFailed(panic_message(&*panic))))
                    .err();
            }
            Self::Draw { .. } => (),
        }
    }
}

/// Draws one token after the other, as long as each is what was guessed in its place.
fn draw<'a>(
    active: &mut Active,
    draft: &[u32],
    logits: impl Iterator<Item = &'a [f32]>,
    drawn: &mut Vec<GeneratedToken>,
) -> Result<(), GenerateError> {
    let guesses = draft.iter().map(Some).chain([None]);
    for (logits, guess) in logits.zip(guesses) {
        let token = SCRATCH.with_borrow_mut(|scratch| active.draw(logits, scratch))?;
        let goes_on = token.finish.is_none() && guess == Some(&token.token.id);
        drawn.push(token);
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}
