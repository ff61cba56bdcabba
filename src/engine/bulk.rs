//! Many requests of one client, as the inputs of an embeddings request are: each in its turn.
//!
//! A request on its own is refused if the queue is full, so that its client can go elsewhere. Of
//! two thousand requests made for one client, the last would then be refused for want of the places
//! that the first have taken, and so would everyone else's. So a [`Bulk`] waits for its places, and
//! all bulks together leave room: they have no more than half of the queue, nor more tokens on
//! their way than two steps take. Whoever comes beside them is behind that, not behind all of them.
//!
//! It must never hold a place it does not use.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::event::GenerateError;
use super::handle::{EngineHandle, EngineLimits, Generation};
use crate::request::GenerateRequest;

/// Steps whose tokens may be on their way: one that is computed, and one that waits for it.
const STEPS: usize = 2;

/// What all bulks share; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    bulks: Arc<Semaphore>,
    max_bulks: usize,
    tokens: Arc<Semaphore>,
    max_tokens: u32,
    /// What a request counts at least, so that short ones don't fill the queue.
    least: u32,
}

impl Lane {
    pub(super) fn new(limits: EngineLimits) -> Self {
        let tokens = limits.max_step_tokens.saturating_mul(STEPS);
        let max_tokens = u32::try_from(tokens).unwrap_or(u32::MAX).max(1);
        let places = u32::try_from(limits.max_queue / 2).unwrap_or(u32::MAX);
        Self {
            bulks: Arc::new(Semaphore::new(limits.max_queue)),
            max_bulks: limits.max_queue,
            tokens: Arc::new(Semaphore::new(max_tokens as usize)),
            max_tokens,
            least: max_tokens.div_ceil(places.max(1)),
        }
    }

    /// What a request of so many tokens takes of the lane; one that is larger than all of it waits
    /// until it is alone.
    fn share(&self, tokens: usize) -> u32 {
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        tokens.clamp(self.least, self.max_tokens)
    }
}

/// The right to submit one request after the other, and to wait for places; given back when it is
/// dropped.
pub struct Bulk {
    engine: EngineHandle,
    #[expect(dead_code, reason = "held for its drop")]
    place: OwnedSemaphorePermit,
}

impl EngineHandle {
    /// Lets a client in that has many requests.
    ///
    /// # Errors
    /// [`GenerateError::QueueFull`] if as many such clients are there as the queue has places.
    pub fn bulk(&self) -> Result<Bulk, GenerateError> {
        let retry_after = self.queue.retry_after(&self.status());
        let place = Arc::clone(&self.lane.bulks).try_acquire_owned();
        Ok(Bulk {
            engine: self.clone(),
            place: place.map_err(|_| GenerateError::QueueFull {
                limit: self.lane.max_bulks,
                retry_after,
            })?,
        })
    }
}

impl Bulk {
    /// Waits for a place, then submits as [`EngineHandle::submit`] does. Those who wait are let in
    /// in the order they came, whichever bulk they belong to.
    ///
    /// # Errors
    /// The worker's reason if the request can never run; [`GenerateError::EngineGone`] if the
    /// worker is gone.
    pub async fn submit(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let lane = &self.engine.lane;
        let share = Arc::clone(&lane.tokens)
            .acquire_many_owned(lane.share(request.prompt.len()))
            .await
            .map_err(|_| GenerateError::EngineGone)?;
        let place = self.engine.queue.wait(request.prompt.len()).await?;
        let mut generations = self.engine.submit_at(place, request).await?.into_iter();
        let mut generation = generations.next().ok_or(GenerateError::EngineGone)?;
        generation.share = Some(share);
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
