//! The grammar of one request and its state after the text so far.
//!
//! The mask of allowed tokens is a function of grammar and text alone, so any thread can compute it
//! (`masks`). It must never depend on logits.

use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::Matcher;

use super::event::GenerateError;
use crate::panics;
use crate::text::Grammar;
use crate::text::grammar::reason;

/// Allowed tokens: bit `id % 32` of word `id / 32`.
pub(crate) type Mask = Vec<u32>;

/// Constrains the text of one request to its grammar.
pub(crate) struct Constraint {
    grammar: Grammar,
    /// Created with the first mask.
    matcher: Option<Matcher>,
    /// Mask of the next token, once computed.
    next: Option<Result<Mask, GenerateError>>,
}

impl Constraint {
    /// Creates a constraint at the start of a text.
    pub fn new(grammar: Grammar) -> Self {
        Self {
            grammar,
            matcher: None,
            next: None,
        }
    }

    /// Computes the mask of the next token unless it is known.
    pub fn prepare(&mut self) {
        if self.next.is_none() {
            let mask = catch_unwind(AssertUnwindSafe(|| self.mask()));
            self.next = Some(mask.unwrap_or_else(|panic| {
                Err(GenerateError::Grammar(panics::message(&*panic).to_owned()))
            }));
        }
    }

    fn mask(&mut self) -> Result<Mask, GenerateError> {
        let matcher = self.matcher.get_or_insert_with(|| self.grammar.matcher());
        let mut mask = Mask::from(matcher.compute_mask_or_eos().map_err(failed)?);
        // A grammar can name tokens by id, end-of-text tokens included.
        let may_end = matcher.is_stopped() || matcher.is_accepting().map_err(failed)?;
        let ends = self.grammar.end_of_text();
        for &token in self.grammar.special() {
            if !(may_end && ends.contains(&token)) {
                forbid(&mut mask, token);
            }
        }
        Ok(mask)
    }

    /// Returns the mask of the next token without the `banned` tokens. They stay allowed if no
    /// other token is, so that a text that must end can end.
    pub fn allowed(&mut self, banned: &[u32]) -> Result<Mask, GenerateError> {
        self.prepare();
        let mask = self.next.take().unwrap_or(Ok(Mask::new()))?;
        if banned.is_empty() {
            return Ok(mask);
        }
        let mut left = mask.clone();
        for &token in banned {
            forbid(&mut left, token);
        }
        let empty = left.iter().all(|&word| word == 0);
        Ok(if empty { mask } else { left })
    }

    /// Advances by an allowed token. Returns whether the text is complete and no token can follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, GenerateError> {
        let matcher = self.matcher.get_or_insert_with(|| self.grammar.matcher());
        matcher.consume_token(token).map_err(failed)?;
        Ok(matcher.is_stopped())
    }

    /// Returns the tokens that end a text.
    pub fn end_of_text(&self) -> &[u32] {
        self.grammar.end_of_text()
    }
}

fn forbid(mask: &mut Mask, token: u32) {
    if let Some(word) = mask.get_mut(token as usize / 32) {
        *word &= !(1 << (token % 32));
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: impl ToString) -> GenerateError {
    GenerateError::Grammar(reason(&error.to_string()))
}
