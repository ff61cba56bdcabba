//! The front end's side of the engine: submits requests and receives their events.
//!
//! A handle holds no model state. It must never block the calling thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{SetOnce, mpsc, oneshot};

use super::admission::{BulkAdmission, EngineLimits};
use super::beams::sequence_ids;
use super::commands::{Command, Submission};
use super::event::{GenerateError, TimedEvent, TokenEvent};
use super::heartbeat::Heartbeat;
use super::queue::{Place, Queue};
use super::sequence::SequenceId;
use super::status::{EngineStatus, Published};
use crate::fair::Turn;
use crate::request::{GenerateRequest, Tenant};

/// The front end's handle on the worker; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
    pub(super) queue: Queue,
    pub(super) bulks: BulkAdmission,
    limits: EngineLimits,
    event_capacity: usize,
    published: Arc<Published>,
    heartbeat: Arc<Heartbeat>,
    /// Next sequence id: names from outside need not be unique.
    next_id: Arc<AtomicU64>,
}

impl EngineHandle {
    pub(super) fn new(
        commands: mpsc::UnboundedSender<Command>,
        limits: EngineLimits,
        event_capacity: usize,
        published: Arc<Published>,
        heartbeat: Arc<Heartbeat>,
    ) -> Self {
        Self {
            commands,
            queue: Queue::new(limits),
            bulks: BulkAdmission::new(limits),
            limits,
            event_capacity,
            published,
            heartbeat,
            next_id: Arc::default(),
        }
    }

    /// Submits a request and waits until the worker accepts it (about one step at most). For a beam search,
    /// returns the best beam.
    ///
    /// # Errors
    /// [`GenerateError::QueueFull`] or [`GenerateError::QueueTooSlow`] at once if the wait would be too
    /// long; the worker's reason if the request can never run; [`GenerateError::EngineGone`] if the worker
    /// has ended.
    pub async fn submit(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let mut generations = self.submit_all(request).await?.into_iter();
        generations.next().ok_or(GenerateError::EngineGone)
    }

    /// As [`submit`](Self::submit), with a generation for every beam that a search returns, the best
    /// first. They report the prompt after prefill and the tokens when the search is over; the search is
    /// cancelled when all of them are dropped.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub async fn submit_all(
        &self,
        request: GenerateRequest,
    ) -> Result<Vec<Generation>, GenerateError> {
        let tokens = request.prompt.len();
        let place = self.queue.enter(request.share, tokens, &self.status())?;
        self.submit_at(place, request).await
    }

    /// As [`submit_all`](Self::submit_all), for a request that already has a place in the queue.
    pub(super) async fn submit_at(
        &self,
        place: Place,
        request: GenerateRequest,
    ) -> Result<Vec<Generation>, GenerateError> {
        let ids = sequence_ids(&request);
        let id = SequenceId(self.next_id.fetch_add(ids, Ordering::Relaxed));
        let (verdict, accepted) = oneshot::channel();
        let (clients, generations) = self.channels(id, &request, &place);
        self.commands
            .send(Command::Submit(Box::new(Submission {
                id,
                request,
                verdict,
                clients,
                place,
            })))
            .map_err(|_| GenerateError::EngineGone)?;
        accepted.await.map_err(|_| GenerateError::EngineGone)??;
        Ok(generations)
    }

    /// Creates the event channels of a request.
    fn channels(
        &self,
        id: SequenceId,
        request: &GenerateRequest,
        place: &Place,
    ) -> (Vec<mpsc::Sender<TimedEvent>>, Vec<Generation>) {
        let (count, capacity) = match request.beams {
            None => (1, self.event_capacity),
            // The prompt's report, then a whole beam at once.
            Some(beams) => {
                let whole = 1 + request.stop.max_tokens;
                (beams.returned, self.event_capacity.max(whole))
            }
        };
        let channel = |_| {
            let (client, events) = mpsc::channel(capacity);
            let generation = Generation {
                id,
                events,
                commands: self.commands.clone(),
                finished: false,
                left_queue: place.left(),
                turn: None,
            };
            (client, generation)
        };
        (0..count).map(channel).unzip()
    }

    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, GenerateError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .map_err(|_| GenerateError::EngineGone)?;
        answer.await.map_err(|_| GenerateError::EngineGone)
    }

    /// Returns the engine's limits.
    #[must_use]
    pub fn limits(&self) -> EngineLimits {
        self.limits
    }

    /// Returns the engine's status after its last step.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let published = self.published.get();
        EngineStatus {
            alive: !self.commands.is_closed(),
            silence: self.heartbeat.silence(),
            waiting: self.queue.waiting() + published.waiting,
            tenants_waiting: self.queue.tenants(),
            ..published
        }
    }

    /// Checks that a request of a tenant would start within the queue timeout if it arrived now.
    ///
    /// # Errors
    /// [`GenerateError::QueueTooSlow`].
    pub fn check_queue(&self, share: Tenant) -> Result<(), GenerateError> {
        self.queue.check(share, &self.status())
    }

    /// Returns the error of a tenant's request that has waited for the queue timeout.
    #[must_use]
    pub fn queue_timed_out(&self, share: Tenant) -> GenerateError {
        GenerateError::QueueTimeout {
            limit: self.limits.queue_timeout,
            retry_after: self.queue.retry_after(share, &self.status()),
        }
    }

    /// Fails all running and waiting requests with [`GenerateError::ShuttingDown`] and ends the worker.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

/// One accepted request: a stream of events. Dropping it cancels the generation within a step.
pub struct Generation {
    id: SequenceId,
    events: mpsc::Receiver<TimedEvent>,
    commands: mpsc::UnboundedSender<Command>,
    /// Whether the last event was received.
    finished: bool,
    left_queue: Arc<SetOnce<()>>,
    /// Its turn, if it is one of a bulk; released on drop.
    pub(super) turn: Option<Turn>,
}

impl Generation {
    /// Waits until the request has started to run, or has ended before that.
    pub fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        let left_queue = Arc::clone(&self.left_queue);
        async move {
            left_queue.wait().await;
        }
    }

    /// Returns the next event; `None` after the last one. If the worker dies, the last event is
    /// [`TokenEvent::Failed`].
    pub async fn next(&mut self) -> Option<TokenEvent> {
        self.next_timed().await.map(|timed| timed.event)
    }

    /// As [`next`](Self::next), with the time the event was sent.
    pub async fn next_timed(&mut self) -> Option<TimedEvent> {
        if self.finished {
            return None;
        }
        let timed = self.events.recv().await.unwrap_or_else(|| TimedEvent {
            event: TokenEvent::Failed(GenerateError::EngineGone),
            at: Instant::now(),
            first_step: None,
        });
        // Crossed once on the way down, so the worker need not poll stalled clients.
        if self.events.len() == self.events.max_capacity() / 2 {
            let _ = self.commands.send(Command::Wake);
        }
        self.finished = match &timed.event {
            TokenEvent::Token(token) => token.finish.is_some(),
            TokenEvent::Prefilled(prompt) => prompt.finish.is_some(),
            TokenEvent::Failed(_) => true,
        };
        Some(timed)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Close(self.id));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::request::{Limits, RequestDraft, RequestId, SamplingStyle};

    #[tokio::test]
    async fn a_worker_that_panics_outside_a_step_fails_its_requests_and_counts_as_gone() {
        let (commands, mut received) = mpsc::unbounded_channel();
        let limits = EngineLimits {
            context_length: 1024,
            max_batch: 1,
            max_step_tokens: 8,
            max_queue: 4,
            queue_timeout: Duration::from_secs(30),
        };
        let published = Arc::new(Published::new(EngineStatus::default()));
        let heartbeat = Arc::new(Heartbeat::new());
        let handle = EngineHandle::new(commands, limits, 4, published, heartbeat);
        let worker = std::thread::spawn(move || {
            let command: Option<Command> = received.blocking_recv();
            assert!(command.is_none(), "injected");
        });
        let draft = RequestDraft::new(RequestId::random(), vec![1], 2, SamplingStyle::Greedy);
        let request = || Limits::for_model(16, 12, vec![]).admit(draft.clone());
        // It may be gone before the request is on its way, or after.
        let failed = match handle.submit(request().expect("admitted")).await {
            Err(error) => Some(TokenEvent::Failed(error)),
            Ok(mut generation) => generation.next().await,
        };
        assert_eq!(failed, Some(TokenEvent::Failed(GenerateError::EngineGone)));
        assert!(worker.join().is_err());
        assert!(!handle.status().alive);
        let next = handle.submit(request().expect("admitted")).await;
        assert!(matches!(next, Err(GenerateError::EngineGone)));
    }
}
