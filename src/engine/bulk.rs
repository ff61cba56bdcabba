//! Many requests of one client, such as the inputs of an embeddings request, submitted in turn.
//!
//! A single request is refused if the queue is full, so that its client can try another server. Two
//! thousand requests of one client would fill the queue, and the rest of them, like those of all
//! other clients, would be refused. So the requests of a [`Bulk`] wait for their turn: all bulks
//! together have at most half the queue's number of requests in flight, and at most the tokens of
//! two steps. They do not take places in the queue. Tenants share the turns by tokens
//! ([`Turns`](crate::fair::Turns)).
//!
//! A bulk must never hold a turn that it does not use.

use super::event::GenerateError;
use super::handle::{EngineHandle, Generation};
use crate::fair::Hold;
use crate::request::{GenerateRequest, Tenant};

/// The right to submit many requests in turn; released on drop.
pub struct Bulk {
    engine: EngineHandle,
    share: Tenant,
    _place: Hold,
}

impl EngineHandle {
    /// Admits a client of a tenant with many requests.
    ///
    /// # Errors
    /// [`GenerateError::QueueFull`] if the number of bulks has reached the queue's limit and the
    /// tenant has its share of them.
    pub fn bulk(&self, share: Tenant) -> Result<Bulk, GenerateError> {
        let place = self.bulks.bulks.try_hold(share, 1);
        let place = place.ok_or_else(|| GenerateError::QueueFull {
            limit: self.bulks.max_bulks,
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
    /// Waits for a turn, then submits the request as [`EngineHandle::submit`] does. Requests of one tenant
    /// are admitted in order of arrival, across its bulks.
    ///
    /// # Errors
    /// The worker's reason if the request can never run; [`GenerateError::EngineGone`] if the worker has
    /// ended.
    pub async fn submit(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let (admission, tokens) = (&self.engine.bulks, request.prompt.len());
        let units = admission.counted(tokens);
        let turn = admission
            .tokens
            .wait(self.share, request.priority, units)
            .await;
        let place = self.engine.queue.enter_beyond(self.share, tokens);
        let mut generations = self.engine.submit_at(place, request).await?.into_iter();
        let mut generation = generations.next().ok_or(GenerateError::EngineGone)?;
        generation.turn = Some(turn);
        Ok(generation)
    }
}
