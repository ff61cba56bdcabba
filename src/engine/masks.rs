//! The thread that computes the masks of allowed tokens while the model computes the logits.
//!
//! The mask of a token depends on the token before it, and is needed only once the logits are
//! computed. So the worker lends the constraints of a step to this thread before its forward pass
//! and takes them back afterwards. After an accepted draft token, the worker computes the next mask
//! when it samples.
//!
//! This module must never decide which constraints a step needs; the worker does.

use std::sync::mpsc::{Receiver, SendError, Sender, channel};

use super::constraint::Constraint;
use super::sequence::SequenceId;
use crate::text::grammar::STACK;

/// Constraints of a step, with the requests that they belong to.
pub(super) type LentConstraints = Vec<(SequenceId, Constraint)>;

/// Handle of the thread, which sleeps while no masks are requested and ends when the handle is
/// dropped.
pub(super) struct Masks {
    jobs: Sender<LentConstraints>,
    done: Receiver<LentConstraints>,
}

impl Masks {
    /// Starts the thread. Must not be called on a thread that is pinned to a core, because the new
    /// thread would inherit the pinning.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start() -> std::io::Result<Self> {
        let (jobs, to_do) = channel::<LentConstraints>();
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

    /// Starts computing the masks of these constraints.
    ///
    /// # Errors
    /// Returns the constraints if the thread is gone; masks are then computed when they are needed.
    pub fn lend(&self, lent: LentConstraints) -> Result<(), LentConstraints> {
        self.jobs.send(lent).map_err(|SendError(lent)| lent)
    }

    /// Waits for the lent constraints and returns them; none if the thread is gone.
    pub fn take_back(&self) -> LentConstraints {
        self.done.recv().unwrap_or_default()
    }
}
