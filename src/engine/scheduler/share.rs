//! Which request gives way: where blocks run out, and where a tenant has less than its share of a full batch.
//!
//! Admission alone would not share a batch between tenants: one that has filled it with endless streams
//! would keep it. So a waiting sequence takes the place of a running one of another tenant that has had no
//! less service, if it
//!
//! - has more places, and still has no fewer than the first tenant afterwards; or
//! - has more places, and is ahead by more than [`QUANTUM`] tokens: where the batch has fewer places than
//!   there are tenants, they take turns.
//!
//! The first moves a place from the one that has more to the one that has less, so it comes to an end. What
//! is computed again after the second is not charged again, so a turn is [`QUANTUM`] new tokens at least.

use std::collections::HashMap;

use super::Scheduler;
use crate::engine::sequence::{Sequence, SequenceId};
use crate::request::Tenant;

/// Tokens that one tenant may be ahead of another before it gives up a place to it. Less would preempt more
/// often, more lets a tenant wait longer for its first token.
pub(super) const QUANTUM: u64 = 256;

impl Scheduler {
    /// Returns the request that gives its blocks back where they have run out: of those with the highest
    /// priority value, the youngest of the tenant with the most service. The oldest of all can always go
    /// on, so it is the last.
    pub(super) fn gives_way(&self) -> Option<SequenceId> {
        let mut requests = self.requests().enumerate();
        let oldest = requests.next();
        let rank = |&(age, s): &(usize, &Sequence)| (s.priority, self.service(s), age);
        let last = requests.max_by_key(rank).or(oldest);
        last.map(|(_, sequence)| sequence.request())
    }

    /// Returns the request that a waiting sequence may take the place of, if there is one: the youngest of
    /// the tenant with the most service that has more than its share.
    pub(super) fn over_share(&self, waiting: &Sequence) -> Option<SequenceId> {
        let is_other = |s: &&Sequence| s.share != waiting.share;
        // With one tenant, as without keys, that is all.
        if !self.running.iter().any(|s| is_other(&s)) {
            return None;
        }
        let mut places: HashMap<Tenant, usize> = HashMap::new();
        for request in self.requests() {
            *places.entry(request.share).or_default() += request.width();
        }
        let places = |share| places.get(&share).copied().unwrap_or(0);
        let (own, service) = (places(waiting.share), self.service(waiting));
        let is_over = |s: &Sequence| {
            let (theirs, ahead) = (places(s.share), self.service(s).checked_sub(service));
            let keeps_more = own + waiting.width() + s.width() <= theirs;
            ahead.is_some_and(|ahead| keeps_more || theirs > own && ahead > QUANTUM)
        };
        let others = self.requests().filter(is_other).enumerate();
        let others = others.filter(|(_, s)| s.priority >= waiting.priority && is_over(s));
        let last = others.max_by_key(|(age, s)| (s.priority, self.service(s), *age));
        last.map(|(_, sequence)| sequence.request())
    }

    fn service(&self, sequence: &Sequence) -> u64 {
        self.waiting.service(sequence.share)
    }
}
