//! The queue in front of the batch: who has a place in it, and how long a further request would wait.
//!
//! It is bounded by requests, and by the wait: a request that would not begin within the queue's timeout
//! is refused at once, so that its client can go elsewhere. The wait is estimated from what the worker
//! measures: by requests, from the rate at which they have begun while others waited; by tokens, from
//! what a prompt's token costs. Before anything was measured only the number of requests counts.
//!
//! It must never wait for the worker, nor hold a place that nobody has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SetOnce};

use super::event::GenerateError;
use super::figures::EngineStatus;
use super::handle::EngineLimits;

/// How fast old measurements of the rate are forgotten: to a third in this time of waiting.
const MEMORY: Duration = Duration::from_secs(30);

/// The longest time after which a refused client is told to come back.
const LONGEST_RETRY: Duration = Duration::from_secs(600);

/// The places in front of the batch; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    places: Arc<Semaphore>,
    /// Prompt tokens of the requests that have a place.
    tokens: Arc<AtomicUsize>,
    limits: EngineLimits,
}

/// A request's place, given back when it begins to run or goes away.
#[derive(Debug)]
pub(super) struct Place {
    #[expect(dead_code, reason = "held for its drop")]
    permit: OwnedSemaphorePermit,
    held: usize,
    tokens: Arc<AtomicUsize>,
    left: Arc<SetOnce<()>>,
}

impl Queue {
    pub fn new(limits: EngineLimits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.max_queue)),
            tokens: Arc::default(),
            limits,
        }
    }

    /// Returns the number of requests that have a place.
    pub fn waiting(&self) -> usize {
        self.limits.max_queue - self.places.available_permits()
    }

    /// Takes a place for a request with so many prompt tokens.
    ///
    /// # Errors
    /// [`GenerateError::QueueFull`], and those of [`check`](Self::check).
    pub fn enter(&self, tokens: usize, status: &EngineStatus) -> Result<Place, GenerateError> {
        self.check(status)?;
        let permit = Arc::clone(&self.places).try_acquire_owned();
        let permit = permit.map_err(|_| GenerateError::QueueFull {
            limit: self.limits.max_queue,
            retry_after: self.retry_after(status),
        })?;
        Ok(self.place(permit, tokens))
    }

    /// Waits for a place; those that wait are let in in the order they came.
    ///
    /// # Errors
    /// [`GenerateError::EngineGone`] if there is no queue any more.
    pub async fn wait(&self, tokens: usize) -> Result<Place, GenerateError> {
        let permit = Arc::clone(&self.places).acquire_owned().await;
        let permit = permit.map_err(|_| GenerateError::EngineGone)?;
        Ok(self.place(permit, tokens))
    }

    fn place(&self, permit: OwnedSemaphorePermit, held: usize) -> Place {
        self.tokens.fetch_add(held, Ordering::Relaxed);
        Place {
            permit,
            held,
            tokens: Arc::clone(&self.tokens),
            left: Arc::default(),
        }
    }

    /// Checks that a further request would begin within the queue's timeout.
    ///
    /// # Errors
    /// [`GenerateError::QueueTooSlow`].
    pub fn check(&self, status: &EngineStatus) -> Result<(), GenerateError> {
        let wait = self.wait_of_next(status);
        let limit = self.limits.queue_timeout;
        // One may always wait: how long it does is the next measurement.
        if wait <= limit || self.waiting() == 0 {
            return Ok(());
        }
        Err(GenerateError::QueueTooSlow {
            waiting: self.waiting(),
            wait,
            limit,
            retry_after: self.retry_after(status),
        })
    }

    /// Estimates how long a further request would wait.
    fn wait_of_next(&self, status: &EngineStatus) -> Duration {
        let load = Load {
            waiting: self.waiting(),
            waiting_tokens: self.tokens.load(Ordering::Relaxed),
            free_places: self.limits.max_batch.saturating_sub(status.running),
        };
        load.wait(status.begun_per_second, status.prefill_seconds_per_token)
    }

    /// The time after which a refused client had better come back: half of what waits has begun. A
    /// second, where nothing was measured yet.
    pub fn retry_after(&self, status: &EngineStatus) -> Duration {
        let half = self.wait_of_next(status) / 2;
        half.clamp(Duration::from_secs(1), LONGEST_RETRY)
    }
}

impl Place {
    /// Returns what is set once the request has left the queue.
    pub fn left(&self) -> Arc<SetOnce<()>> {
        Arc::clone(&self.left)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tokens.fetch_sub(self.held, Ordering::Relaxed);
        // Set here alone.
        let _ = self.left.set(());
    }
}

/// What is in front of a further request.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// Requests.
    waiting: usize,
    /// Their prompts' tokens.
    waiting_tokens: usize,
    /// Places in the batch that no sequence has.
    free_places: usize,
}

impl Load {
    /// Estimates the wait from the requests that begin in a second and from a prompt token's cost in
    /// seconds, as far as they are known.
    fn wait(self, begun_per_second: Option<f64>, seconds_per_token: Option<f64>) -> Duration {
        let ahead = (self.waiting + 1).saturating_sub(self.free_places);
        let by_requests = begun_per_second.map_or(0.0, |rate| ahead as f64 / rate);
        let by_tokens = seconds_per_token.unwrap_or(0.0) * self.waiting_tokens as f64;
        Duration::try_from_secs_f64(by_requests.max(by_tokens)).unwrap_or(Duration::MAX)
    }
}

/// The rate at which requests begin to run while others wait, over the last [`MEMORY`] or so.
#[derive(Debug, Default)]
pub(super) struct BeginRate {
    begun: f64,
    /// Time in which requests waited.
    seconds: f64,
    /// Since when they wait, or the last observation.
    since: Option<Instant>,
}

impl BeginRate {
    /// Takes in that so many requests began by `now`, and whether others wait. Time without requests
    /// that wait says nothing, and is left out.
    pub fn observe(&mut self, now: Instant, begun: usize, others_wait: bool) {
        if let Some(since) = self.since {
            let passed = now.saturating_duration_since(since).as_secs_f64();
            let kept = (-passed / MEMORY.as_secs_f64()).exp();
            self.begun = self.begun * kept + begun as f64;
            self.seconds = self.seconds * kept + passed;
        }
        self.since = others_wait.then_some(now);
    }

    /// Requests that begin in a second, once one was seen.
    pub fn per_second(&self) -> Option<f64> {
        let rate = self.begun / self.seconds;
        (rate.is_finite() && rate > 0.0).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: EngineLimits = EngineLimits {
        max_batch: 4,
        max_step_tokens: 512,
        max_queue: 8,
        queue_timeout: Duration::from_secs(10),
    };

    fn busy(begun_per_second: Option<f64>) -> EngineStatus {
        EngineStatus {
            running: 4,
            begun_per_second,
            ..EngineStatus::default()
        }
    }

    #[test]
    fn what_would_not_begin_in_time_is_refused_and_told_when_to_come_back() {
        let queue = Queue::new(LIMITS);
        let slow = busy(Some(0.25));
        let places: Vec<Place> = (0..2)
            .map(|_| queue.enter(10, &slow).expect("in time"))
            .collect();
        let refused = queue.enter(10, &slow).expect_err("12 s");
        assert_eq!(
            refused,
            GenerateError::QueueTooSlow {
                waiting: 2,
                wait: Duration::from_secs(12),
                limit: Duration::from_secs(10),
                retry_after: Duration::from_secs(6),
            }
        );
        // Free places in the batch are for those that wait.
        let free = EngineStatus { running: 1, ..slow };
        assert!(queue.enter(10, &free).is_ok());
        drop(places);
        assert!(queue.enter(10, &slow).is_ok());
        assert_eq!(queue.waiting(), 0);
        assert_eq!(queue.tokens.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn before_anything_is_measured_only_the_number_counts() {
        let queue = Queue::new(LIMITS);
        let status = busy(None);
        let places: Vec<Place> = (0..8)
            .map(|_| queue.enter(1 << 20, &status).expect("a place"))
            .collect();
        let refused = queue.enter(1, &status).expect_err("full");
        let retry_after = Duration::from_secs(1);
        let full = GenerateError::QueueFull {
            limit: 8,
            retry_after,
        };
        assert_eq!(refused, full);
        drop(places);
    }

    #[test]
    fn long_prompts_count_by_what_their_tokens_cost() {
        let queue = Queue::new(LIMITS);
        let status = EngineStatus {
            prefill_seconds_per_token: Some(0.01),
            ..EngineStatus::default()
        };
        let _place = queue.enter(1001, &status).expect("nothing is before it");
        let refused = queue.enter(1, &status).expect_err("10.01 s");
        assert!(matches!(refused, GenerateError::QueueTooSlow { .. }));
    }

    #[test]
    fn the_rate_is_that_of_the_time_in_which_others_waited() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = BeginRate::default();
        // The batch has room for these.
        rate.observe(at(0), 60, true);
        assert_eq!(rate.per_second(), None);
        for second in 1..=20 {
            rate.observe(at(second), 2, second < 20);
        }
        let before = rate.per_second().expect("measured");
        assert!((before - 2.0).abs() < 0.05, "{before}");
        // An hour without load does not change it.
        rate.observe(at(3600), 5, true);
        assert_eq!(rate.per_second(), Some(before));
        for second in 3601..=3720 {
            rate.observe(at(second), 8, true);
        }
        let now = rate.per_second().expect("measured");
        assert!((now - 8.0).abs() < 0.4, "{now}");
    }
}
