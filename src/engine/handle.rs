//! The front end's side of the engine: submit a request, receive its events, close it.
//!
//! A handle holds no model state. It must never block the thread it is called on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{SetOnce, mpsc, oneshot};

use super::beams::sequence_ids;
use super::bulk::Lane;
use super::event::{GenerateError, TimedEvent, TokenEvent};
use super::exchange::Exchange;
use super::figures::{EngineStatus, Published};
use super::heartbeat::Heartbeat;
use super::queue::{Place, Queue};
use super::sequence::SequenceId;
use crate::fair::Turn;
use crate::request::{GenerateRequest, Tenant};

/// What the front end asks of the worker.
pub(super) enum Command {
    Submit(Box<Submission>),
    /// The front end is done with a generation, finished or not.
    Close(SequenceId),
    Exchange(Exchange),
    /// A client has read half of what it was sent: if its request is set aside, it can go on.
    Wake,
    /// Fail everything that still runs or waits, and end the worker.
    Stop,
}

/// A request on its way to the worker.
pub(super) struct Submission {
    pub id: SequenceId,
    pub request: GenerateRequest,
    /// Sent once: accepted for running, or why not.
    pub verdict: oneshot::Sender<Result<(), GenerateError>>,
    /// One, or one for each beam that is returned.
    pub clients: Vec<mpsc::Sender<TimedEvent>>,
    /// Its place in the queue, given back when it starts to run or goes away.
    pub place: Place,
}

/// How much the engine takes on; set once at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Requests in a batch at most.
    pub max_batch: usize,
    /// Tokens in a step at most.
    pub max_step_tokens: usize,
    /// Requests that may wait; more are refused, but for those within a tenant's share.
    pub max_queue: usize,
    /// How long a request may wait; one that would wait longer is refused.
    pub queue_timeout: Duration,
}

/// The front end's handle on the worker; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
    pub(super) queue: Queue,
    /// What bulks share.
    pub(super) lane: Lane,
    limits: EngineLimits,
    event_capacity: usize,
    published: Arc<Published>,
    heartbeat: Arc<Heartbeat>,
    /// Requests get numbers of our own: names given from outside need not be unique.
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
            lane: Lane::new(limits),
            limits,
            event_capacity,
            published,
            heartbeat,
            next_id: Arc::default(),
        }
    }

    /// Hands a request to the worker and waits until it is accepted (at most about one step). Of a
    /// beam search, the best beam is given.
    ///
    /// # Errors
    /// [`GenerateError::QueueFull`] or [`GenerateError::QueueTooSlow`] at once if it would have to
    /// wait too long; the worker's reason if the request can never run; [`GenerateError::EngineGone`] if the worker is gone.
    pub async fn submit(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let mut generations = self.submit_all(request).await?.into_iter();
        generations.next().ok_or(GenerateError::EngineGone)
    }

    /// As [`submit`](Self::submit), but with a generation for every beam that a search returns, best
    /// first. They tell of the prompt when it is read, and of tokens when the search is over; when
    /// none of them is left, it is cancelled.
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

    /// As [`submit_all`](Self::submit_all), with a place in the queue.
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

    /// Both ends of a request's events.
    fn channels(
        &self,
        id: SequenceId,
        request: &GenerateRequest,
        place: &Place,
    ) -> (Vec<mpsc::Sender<TimedEvent>>, Vec<Generation>) {
        let (count, capacity) = match request.beams {
            None => (1, self.event_capacity),
            // The prompt's report, and then a whole beam at once.
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

    /// How much the engine takes on.
    #[must_use]
    pub fn limits(&self) -> EngineLimits {
        self.limits
    }

    /// The engine's figures after its last step.
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

    /// Checks that a tenant's request would begin within the queue's timeout if it came now: before the
    /// work of making one.
    ///
    /// # Errors
    /// [`GenerateError::QueueTooSlow`].
    pub fn check_queue(&self, share: Tenant) -> Result<(), GenerateError> {
        self.queue.check(share, &self.status())
    }

    /// Returns the error of a tenant's request that has waited for the queue's timeout.
    #[must_use]
    pub fn queue_timed_out(&self, share: Tenant) -> GenerateError {
        GenerateError::QueueTimeout {
            limit: self.limits.queue_timeout,
            retry_after: self.queue.retry_after(share, &self.status()),
        }
    }

    /// Fails what still runs or waits with [`GenerateError::ShuttingDown`] and ends the worker.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

/// One accepted request: a stream of events. Dropping it cancels the generation within a step.
pub struct Generation {
    id: SequenceId,
    events: mpsc::Receiver<TimedEvent>,
    commands: mpsc::UnboundedSender<Command>,
    /// The last event was received.
    finished: bool,
    left_queue: Arc<SetOnce<()>>,
    /// Its turn in the lane, if it is one of a bulk; held for its drop.
    pub(super) turn: Option<Turn>,
}

impl Generation {
    /// Waits until the request has begun to run, or has ended before.
    pub fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        let left_queue = Arc::clone(&self.left_queue);
        async move {
            left_queue.wait().await;
        }
    }

    /// The next event; `None` after the last one. If the worker dies, the last event is
    /// [`TokenEvent::Failed`].
    pub async fn next(&mut self) -> Option<TokenEvent> {
        self.next_timed().await.map(|timed| timed.event)
    }

    /// As [`next`](Self::next), with the moment the event was sent.
    pub async fn next_timed(&mut self) -> Option<TimedEvent> {
        if self.finished {
            return None;
        }
        let timed = self.events.recv().await.unwrap_or_else(|| TimedEvent {
            event: TokenEvent::Failed(GenerateError::EngineGone),
            at: Instant::now(),
            first_step: None,
        });
        // Going down it is passed once, so the worker need not look at stalled clients all the time.
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
