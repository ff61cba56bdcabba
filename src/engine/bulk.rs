//! Many requests of one client, as the inputs of an embeddings request are: each in its turn.
//!
//! A request on its own is refused if the queue is full, so that its client can go elsewhere. Of
//! two thousand requests made for one client, the last would then be refused for want of the places
//! that the first have taken, and so would everyone else's. So a [`Bulk`] waits for its turn, and
//! all bulks together have no more requests on their way than half of the queue, nor more tokens than two
//! steps take. Those come beside the places of the queue. Between tenants the turns are shared by
//! tokens ([`Turns`]).
//!
//! It must never hold a turn it does not use.

use super::event::GenerateError;
use super::handle::{EngineHandle, EngineLimits, Generation};
use crate::fair::{Hold, Holds, Turns};
use crate::request::{GenerateRequest, Tenant};

/// Steps whose tokens may be on their way: one that is computed, and one that waits for it.
const STEPS: usize = 2;

/// What all bulks share; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    bulks: Holds,
    max_bulks: usize,
    tokens: Turns,
    max_tokens: usize,
    /// What a request counts at least, so that short ones don't fill the queue.
    least: usize,
}

impl Lane {
    pub(super) fn new(limits: EngineLimits) -> Self {
        let max_tokens = limits.max_step_tokens.saturating_mul(STEPS).max(1);
        let places = limits.max_queue / 2;
        Self {
            bulks: Holds::new(limits.max_queue),
            max_bulks: limits.max_queue,
            tokens: Turns::new(max_tokens),
            max_tokens,
            least: max_tokens.div_ceil(places.max(1)),
        }
    }

    /// What a request of so many tokens takes of the lane; one that is larger than all of it waits
    /// until it is alone.
    fn share(&self, tokens: usize) -> usize {
        tokens.clamp(self.least, self.max_tokens)
    }
}

/// The right to submit one request after the other, and to wait for their turns; given back when it is
/// dropped.
pub struct Bulk {
    engine: EngineHandle,
    share: Tenant,
    _place: Hold,
}

impl EngineHandle {
    /// Lets a client of a tenant in that has many requests.
    ///
    /// # Errors
    /// [`GenerateError::QueueFull`] if as many such clients are there as the queue has places, and the
    /// tenant has its share of them.
    pub fn bulk(&self, share: Tenant) -> Result<Bulk, GenerateError> {
        let place = self.lane.bulks.try_hold(share, 1);
        let place = place.ok_or_else(|| GenerateError::QueueFull {
            limit: self.lane.max_bulks,
            retry_after: self.queue.retry_after(share, &self.status()),
        })?;
        Ok(Bulk {
            engine: self.clone(),
            share,
            _place: place,
        })
    }
}

impl Bulk {
    /// Waits for its turn, then submits as [`EngineHandle::submit`] does. Requests of one tenant are let
    /// in in the order they came, whichever bulk they belong to.
    ///
    /// # Errors
    /// The worker's reason if the request can never run; [`GenerateError::EngineGone`] if the
    /// worker is gone.
    pub async fn submit(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let (lane, tokens) = (&self.engine.lane, request.prompt.len());
        let units = lane.share(tokens);
        let turn = lane.tokens.wait(self.share, request.priority, units).await;
        let place = self.engine.queue.enter_beyond(self.share, tokens);
        let mut generations = self.engine.submit_at(place, request).await?.into_iter();
        let mut generation = generations.next().ok_or(GenerateError::EngineGone)?;
        generation.turn = Some(turn);
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lane(max_step_tokens: usize, max_queue: usize) -> Lane {
        Lane::new(EngineLimits {
            max_batch: 64,
            max_step_tokens,
            max_queue,
            queue_timeout: Duration::from_secs(30),
        })
    }

    #[test]
    fn short_requests_have_half_the_queue_at_most_and_long_ones_two_steps() {
        let lane = lane(512, 256);
        assert_eq!(lane.share(1), 8);
        assert_eq!(lane.max_tokens / lane.share(1), 128);
        assert_eq!(lane.share(600), 600);
        assert_eq!(lane.share(5000), 1024);
    }

    #[test]
    fn however_small_the_queue_one_request_has_room() {
        for max_queue in [1, 2, 3] {
            let lane = lane(16, max_queue);
            assert_eq!(lane.max_tokens / lane.share(1), 1);
            assert_eq!(lane.max_tokens / lane.share(100), 1);
        }
    }
}
