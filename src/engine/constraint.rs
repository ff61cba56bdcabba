//! The grammar of one request as far as its text has come, and the thread that works out which
//! tokens may come next.
//!
//! What may come next is known only when the last token is, and needed only when the model has
//! computed that token's logits. So the worker lends the constraints of a step to a thread of
//! their own ([`Masks`]) before its forward pass and takes them back after it. Where a guess turns
//! out right, the one after it is worked out when it is drawn. What may come next is a function of
//! grammar and text alone, whoever works it out.
//!
//! It must never see a logit: what the model thinks of the tokens is the sampler's business.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};

use llguidance::Matcher;

use super::active::Active;
use super::draw::panic_message;
use super::event::GenerateError;
use super::scheduler::Part;
use super::sequence::SequenceId;
use crate::text::Grammar;
use crate::text::grammar::{STACK, reason};

/// Tokens that may be drawn: bit `id % 32` of word `id / 32`.
pub(crate) type Mask = Vec<u32>;

/// Follows the text of one request.
pub(crate) struct Constraint {
    grammar: Grammar,
    /// Made with the first mask.
    matcher: Option<Matcher>,
    /// What may come next, once worked out.
    next: Option<Result<Mask, GenerateError>>,
}

impl Constraint {
    /// At the beginning of a text.
    pub fn new(grammar: Grammar) -> Self {
        Self {
            grammar,
            matcher: None,
            next: None,
        }
    }

    /// Works out what may come next, if that is not known.
    fn prepare(&mut self) {
        if self.next.is_none() {
            let mask = catch_unwind(AssertUnwindSafe(|| self.mask()));
            self.next = Some(
                mask.unwrap_or_else(|panic| Err(GenerateError::Grammar(panic_message(&*panic)))),
            );
        }
    }

    fn mask(&mut self) -> Result<Mask, GenerateError> {
        let matcher = self.matcher.get_or_insert_with(|| self.grammar.matcher());
        let mut mask = Mask::from(matcher.compute_mask_or_eos().map_err(failed)?);
        // A grammar can name tokens by their number.
        let may_end = matcher.is_stopped() || matcher.is_accepting().map_err(failed)?;
        let ends = self.grammar.end_of_text();
        for &token in self.grammar.special() {
            if !(may_end && ends.contains(&token)) {
                forbid(&mut mask, token);
            }
        }
        Ok(mask)
    }

    /// The tokens that may come next, without those `banned`, unless nothing were left then: a
    /// text that must end does.
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

    /// Goes on to a token that was allowed; `true` if the text is complete with it and no other
    /// token can follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, GenerateError> {
        let matcher = self.matcher.get_or_insert_with(|| self.grammar.matcher());
        matcher.consume_token(token).map_err(failed)?;
        Ok(matcher.is_stopped())
    }

    /// The tokens that end a text.
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

type Lent = Vec<(SequenceId, Constraint)>;

/// The thread that works out masks while the model computes. It sleeps while there are none to
/// work out, and ends with its owner.
pub(super) struct Masks {
    jobs: Sender<Lent>,
    done: Receiver<Lent>,
}

impl Masks {
    /// Starts the thread. Not to be called on a thread that is kept on a core: it would share it.
    pub fn start() -> std::io::Result<Self> {
        let (jobs, to_do) = channel::<Lent>();
        let (finished, done) = channel();
        std::thread::Builder::new()
            .name("skald-masks".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                for mut lent in to_do {
                    for (_, constraint) in &mut lent {
                        constraint.prepare();
                    }
                    if finished.send(lent).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self { jobs, done })
    }

    /// Lends the constraints of all requests for which this step draws; `false` if there are none.
    pub fn lend(&self, plan: &[Part], active: &mut HashMap<SequenceId, Box<Active>>) -> bool {
        let drawing = plan.iter().filter(|part| part.completes);
        let lent: Lent = drawing
            .filter_map(|part| Some((part.id, active.get_mut(&part.id)?.lend_constraint()?)))
            .collect();
        if lent.is_empty() {
            return false;
        }
        match self.jobs.send(lent) {
            Ok(()) => true,
            // Then they are worked out one by one as they are needed.
            Err(SendError(lent)) => {
                give_back(lent, active);
                false
            }
        }
    }

    /// Waits for what was lent.
    pub fn take_back(&self, active: &mut HashMap<SequenceId, Box<Active>>) {
        if let Ok(lent) = self.done.recv() {
            give_back(lent, active);
        }
    }
}

fn give_back(lent: Lent, active: &mut HashMap<SequenceId, Box<Active>>) {
    for (id, constraint) in lent {
        if let Some(active) = active.get_mut(&id) {
            active.return_constraint(constraint);
        }
    }
}
