//! Sets requests aside whose clients do not read, without blocks and without a place in the batch, until
//! their clients read again.
//!
//! The computed blocks of a stalled sequence stay in the prefix cache while there is room, as those of a
//! preempted one do, so its output does not depend on how often it stalled. It resumes before requests
//! that have not started, since it arrived before them.

use super::Scheduler;
use crate::engine::sequence::{Sequence, SequenceId};

impl Scheduler {
    /// Returns the number of requests that are set aside.
    #[must_use]
    pub fn stalled(&self) -> usize {
        self.stalled.len()
    }

    /// Returns the request that was set aside first, if more than `limit` are.
    #[must_use]
    pub fn stalled_beyond(&self, limit: usize) -> Option<SequenceId> {
        let first = self.stalled.first().map(Sequence::request);
        first.filter(|_| self.stalled.len() > limit)
    }

    /// Takes the requests that are not ready out of the batch. The first of a search's sequences
    /// stands for all of them.
    pub(super) fn set_aside(&mut self, ready: impl Fn(SequenceId) -> bool) {
        let mut next = 0;
        while let Some(request) = self.running.get(next).map(Sequence::request) {
            if ready(request) {
                next += 1;
                continue;
            }
            let (_, beams) = self.take_out(request);
            self.stalled.extend(beams.into_iter().next());
        }
    }

    /// Puts those that are ready again into their tenants' queues, behind the preempted ones.
    pub(super) fn bring_back(&mut self, ready: impl Fn(SequenceId) -> bool) {
        let mut next = 0;
        while let Some(sequence) = self.stalled.get(next) {
            if ready(sequence.request()) {
                let mut sequence = self.stalled.remove(next);
                // Its client caused the repeated computation, so it is charged.
                sequence.forget_charged();
                let (share, priority) = (sequence.share, sequence.priority);
                self.waiting.push_returned(share, priority, sequence);
            } else {
                next += 1;
            }
        }
    }
}
