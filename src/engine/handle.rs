//! The front end's side of the engine: submit a request, receive its events, close it.
//!
//! A handle holds no model state. It must never block the thread it is called on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::beams::sequence_ids;
use super::bulk::Lane;
use super::event::{GenerateError, TimedEvent, TokenEvent};
use super::exchange::Exchange;
use super::sequence::SequenceId;
use crate::request::GenerateRequest;

/// What the front end asks of the worker.
pub(super) enum Command {
    Submit(Box<Submission>),
    /// The front end is done with a generation, finished or not.
    Close(SequenceId),
    Exchange(Exchange),
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
    pub place: OwnedSemaphorePermit,
}

/// Figures the worker keeps up to date after every step.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub running: AtomicUsize,
    pub preempted: AtomicUsize,
    pub kv_blocks_used: AtomicUsize,
    pub kv_blocks_cached: AtomicUsize,
    pub steps: AtomicUsize,
    pub drafted: AtomicUsize,
    pub accepted: AtomicUsize,
    pub prompt_tokens: AtomicUsize,
    pub cached_tokens: AtomicUsize,
    pub generated_tokens: AtomicUsize,
    pub preemptions: AtomicUsize,
    pub evicted_blocks: AtomicUsize,
    pub lost_blocks: AtomicUsize,
    /// The bits of a number of seconds, which is 0 before it is known.
    pub prefill_seconds_per_token: AtomicU64,
}

impl Gauges {
    fn prefill_seconds_per_token(&self) -> Option<f64> {
        let bits = self.prefill_seconds_per_token.load(Ordering::Relaxed);
        Some(f64::from_bits(bits)).filter(|&seconds| seconds > 0.0)
    }
}

/// The engine's state at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineStatus {
    /// The worker thread is there and takes requests.
    pub alive: bool,
    /// Requests in the batch.
    pub running: usize,
    /// Requests that wait to run: in the queue, or preempted.
    pub waiting: usize,
    /// KV blocks that running requests hold.
    pub kv_blocks_used: usize,
    /// KV blocks that no one holds but whose content can be used again.
    pub kv_blocks_cached: usize,
    /// KV blocks in all.
    pub kv_blocks: usize,
    /// Forward passes since the start.
    pub steps: usize,
    /// Tokens guessed since the start.
    pub drafted: usize,
    /// How many of them were right.
    pub accepted: usize,
    /// Tokens of prompts, histories included, since the start.
    pub prompt_tokens: usize,
    /// How many of them were in the KV cache already.
    pub cached_tokens: usize,
    /// Tokens generated since the start.
    pub generated_tokens: usize,
    /// How often a request had to give its blocks back since the start.
    pub preemptions: usize,
    /// Blocks given away to be kept since the start.
    pub evicted_blocks: usize,
    /// Blocks that were to be kept but that no one took in time.
    pub lost_blocks: usize,
    /// Bytes of one KV block.
    pub kv_block_bytes: usize,
    /// What reading a token of a prompt costs, once a prompt was read.
    pub prefill_seconds_per_token: Option<f64>,
}

/// How much the engine takes on; set once at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Requests in a batch at most.
    pub max_batch: usize,
    /// Tokens in a step at most.
    pub max_step_tokens: usize,
    /// Requests that may wait; more are refused.
    pub max_queue: usize,
}

/// The front end's handle on the worker; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
    pub(super) queue: Arc<Semaphore>,
    /// What bulks share.
    pub(super) lane: Lane,
    limits: EngineLimits,
    event_capacity: usize,
    kv_blocks: usize,
    kv_block_bytes: usize,
    gauges: Arc<Gauges>,
    /// Requests get numbers of our own: names given from outside need not be unique.
    next_id: Arc<AtomicU64>,
}

impl EngineHandle {
    pub(super) fn new(
        commands: mpsc::UnboundedSender<Command>,
        limits: EngineLimits,
        event_capacity: usize,
        kv_blocks: usize,
        kv_block_bytes: usize,
        gauges: Arc<Gauges>,
    ) -> Self {
        Self {
            commands,
            queue: Arc::new(Semaphore::new(limits.max_queue)),
            lane: Lane::new(limits),
            limits,
            event_capacity,
            kv_blocks,
            kv_block_bytes,
            gauges,
            next_id: Arc::default(),
        }
    }

    /// Hands a request to the worker and waits until it is accepted (at most about one step). Of a
    /// beam search, the best beam is given.
    ///
    /// # Errors
    /// [`GenerateError::QueueFull`] at once if the queue is full; the worker's reason if the
    /// request can never run; [`GenerateError::EngineGone`] if the worker is gone.
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
        let place =
            Arc::clone(&self.queue)
                .try_acquire_owned()
                .map_err(|_| GenerateError::QueueFull {
                    limit: self.limits.max_queue,
                })?;
        self.submit_at(place, request).await
    }

    /// As [`submit_all`](Self::submit_all), with a place in the queue.
    pub(super) async fn submit_at(
        &self,
        place: OwnedSemaphorePermit,
        request: GenerateRequest,
    ) -> Result<Vec<Generation>, GenerateError> {
        let ids = sequence_ids(&request);
        let id = SequenceId(self.next_id.fetch_add(ids, Ordering::Relaxed));
        let (verdict, accepted) = oneshot::channel();
        let (clients, generations) = self.channels(id, &request);
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
                share: None,
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
        let read = |gauge: &AtomicUsize| gauge.load(Ordering::Relaxed);
        EngineStatus {
            alive: !self.commands.is_closed(),
            running: read(&self.gauges.running),
            waiting: self.limits.max_queue - self.queue.available_permits()
                + read(&self.gauges.preempted),
            kv_blocks_used: read(&self.gauges.kv_blocks_used),
            kv_blocks_cached: read(&self.gauges.kv_blocks_cached),
            kv_blocks: self.kv_blocks,
            steps: read(&self.gauges.steps),
            drafted: read(&self.gauges.drafted),
            accepted: read(&self.gauges.accepted),
            prompt_tokens: read(&self.gauges.prompt_tokens),
            cached_tokens: read(&self.gauges.cached_tokens),
            generated_tokens: read(&self.gauges.generated_tokens),
            preemptions: read(&self.gauges.preemptions),
            evicted_blocks: read(&self.gauges.evicted_blocks),
            lost_blocks: read(&self.gauges.lost_blocks),
            kv_block_bytes: self.kv_block_bytes,
            prefill_seconds_per_token: self.gauges.prefill_seconds_per_token(),
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
    /// Its share of the lane, if it is one of a bulk; held for its drop.
    pub(super) share: Option<OwnedSemaphorePermit>,
}

impl Generation {
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
        });
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
