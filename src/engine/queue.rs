//! The queue in front of the batch: its places, and the estimated wait of a further request.
//!
//! It is bounded by requests and by the wait: a request that would not start within the queue timeout
//! is refused at once, so that its client can retry elsewhere. The wait is estimated from the worker's
//! measurements: by requests, from the rate at which they start while others wait; by tokens, from the
//! cost of a prompt token. Before the first measurement only the number of requests counts.
//!
//! Each tenant has its share of the places ([`Shares`]), and waits for its own requests and as many of each
//! other tenant, as the scheduler's order has it. Priorities are left out of the estimate.
//!
//! It must never wait for the worker, nor hold a place without a request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::SetOnce;

use super::admission::EngineLimits;
use super::event::GenerateError;
use super::status::EngineStatus;
use crate::fair::Shares;
use crate::request::Tenant;

/// Time constant with which old measurements of the rate decay, in time of waiting.
const MEMORY: Duration = Duration::from_secs(30);

/// Maximum retry time given to a refused client.
const LONGEST_RETRY: Duration = Duration::from_secs(600);

/// The places in front of the batch; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    state: Arc<Mutex<State>>,
    limits: EngineLimits,
}

#[derive(Debug)]
struct State {
    /// Waiting requests per tenant.
    waiting: Shares,
    tenants: HashMap<Tenant, Load>,
}

/// A tenant's load on the engine, apart from its number of places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    /// Prompt tokens of its waiting requests.
    waiting_tokens: usize,
    /// Number of its running requests.
    begun: usize,
}

/// A request's place, released when the request starts or is dropped.
#[derive(Debug)]
pub(super) struct Place {
    share: Tenant,
    tokens: usize,
    has_begun: bool,
    state: Arc<Mutex<State>>,
    left: Arc<SetOnce<()>>,
}

impl Queue {
    pub fn new(limits: EngineLimits) -> Self {
        let state = State {
            waiting: Shares::new(limits.max_queue),
            tenants: HashMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            limits,
        }
    }

    /// Returns the number of requests that have a place.
    pub fn waiting(&self) -> usize {
        self.state().waiting.total()
    }

    /// Returns the number of tenants whose requests have a place.
    pub fn tenants(&self) -> usize {
        self.state().waiting.tenants()
    }

    /// Takes a place for a tenant's request of `tokens` prompt tokens.
    ///
    /// # Errors
    /// [`GenerateError::QueueFull`], and those of [`check`](Self::check).
    pub fn enter(
        &self,
        share: Tenant,
        tokens: usize,
        status: &EngineStatus,
    ) -> Result<Place, GenerateError> {
        self.check(share, status)?;
        if !self.state().waiting.try_add(share, 1) {
            return Err(GenerateError::QueueFull {
                limit: self.limits.max_queue,
                retry_after: self.retry_after(share, status),
            });
        }
        Ok(self.place(share, tokens))
    }

    /// Takes a place beyond the limits.
    pub fn enter_beyond(&self, share: Tenant, tokens: usize) -> Place {
        self.state().waiting.add(share, 1);
        self.place(share, tokens)
    }

    fn place(&self, share: Tenant, tokens: usize) -> Place {
        self.state().load(share).waiting_tokens += tokens;
        Place {
            share,
            tokens,
            has_begun: false,
            state: Arc::clone(&self.state),
            left: Arc::default(),
        }
    }

    /// Checks that a further request of a tenant would start within the queue timeout.
    ///
    /// # Errors
    /// [`GenerateError::QueueTooSlow`].
    pub fn check(&self, share: Tenant, status: &EngineStatus) -> Result<(), GenerateError> {
        let (own, waiting) = {
            let state = self.state();
            (state.waiting.of(share), state.waiting.total())
        };
        let wait = self.wait_of_next(share, status);
        let limit = self.limits.queue_timeout;
        // One request may always wait: it is the next measurement.
        if wait <= limit || own == 0 {
            return Ok(());
        }
        Err(GenerateError::QueueTooSlow {
            waiting,
            wait,
            limit,
            retry_after: self.retry_after(share, status),
        })
    }

    /// Estimates how long a further request of a tenant would wait.
    fn wait_of_next(&self, share: Tenant, status: &EngineStatus) -> Duration {
        let ahead = self.state().ahead(share, self.limits.max_batch, status);
        ahead.wait(status.begun_per_second, status.prefill_seconds_per_token)
    }

    /// Returns the time after which a refused client should retry: half the estimated wait; one second
    /// before the first measurement.
    pub fn retry_after(&self, share: Tenant, status: &EngineStatus) -> Duration {
        let half = self.wait_of_next(share, status) / 2;
        half.clamp(Duration::from_secs(1), LONGEST_RETRY)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn load(&mut self, share: Tenant) -> &mut Load {
        self.tenants.entry(share).or_default()
    }

    /// Changes a tenant's load, and forgets the tenant if that leaves nothing.
    fn change(&mut self, share: Tenant, change: impl FnOnce(&mut Load)) {
        let load = self.load(share);
        change(load);
        if *load == Load::default() {
            self.tenants.remove(&share);
        }
    }

    /// Returns the load in front of a further request of a tenant: its own requests, and as many of each
    /// other tenant at most, without those that it takes a place from.
    fn ahead(&self, share: Tenant, max_batch: usize, status: &EngineStatus) -> Ahead {
        let own = self.waiting.of(share) + 1;
        let load = self.tenants.get(&share).copied().unwrap_or_default();
        let others = self.waiting.iter().filter(|(tenant, _)| *tenant != share);
        let before = others.map(|(_, waiting)| waiting.min(own)).sum::<usize>();
        let loads = self.tenants.iter().filter(|(tenant, _)| **tenant != share);
        let tokens = loads.clone().map(|(_, other)| other.waiting_tokens);
        let tokens = tokens.map(|tokens| tokens.min(load.waiting_tokens));
        let free = max_batch.saturating_sub(status.running);
        // A single tenant takes places from no other.
        let tenants = loads.clone().count() + 1;
        let owed = (tenants > 1).then(|| (max_batch / tenants).saturating_sub(load.begun));
        let places = free.max(owed.unwrap_or(0));
        Ahead {
            requests: (own + before).saturating_sub(places),
            tokens: load.waiting_tokens + tokens.sum::<usize>(),
        }
    }
}

impl Place {
    /// Returns the cell that is set when the request leaves the queue.
    pub fn left(&self) -> Arc<SetOnce<()>> {
        Arc::clone(&self.left)
    }

    /// Exchanges the place for one in the batch; `false` if that was done before.
    pub fn begin(&mut self) -> bool {
        if self.has_begun {
            return false;
        }
        self.leave(1);
        self.has_begun = true;
        true
    }

    /// Leaves the queue; `begun` is 1 if the request runs from now on.
    fn leave(&self, begun: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.remove(self.share, 1);
        state.change(self.share, |load| {
            load.waiting_tokens = load.waiting_tokens.saturating_sub(self.tokens);
            load.begun += begun;
        });
        // Set only here, once.
        let _ = self.left.set(());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.has_begun {
            return self.leave(0);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.change(self.share, |load| load.begun = load.begun.saturating_sub(1));
    }
}

/// The load in front of a further request, its own place included.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    /// Requests beyond the free places.
    requests: usize,
    /// Prompt tokens of all that wait.
    tokens: usize,
}

impl Ahead {
    /// Estimates the wait from the requests started per second and the seconds per prompt token, if
    /// measured. With free places none waits: prompts start side by side, however long they are.
    fn wait(self, begun_per_second: Option<f64>, seconds_per_token: Option<f64>) -> Duration {
        if self.requests == 0 {
            return Duration::ZERO;
        }
        let by_requests = begun_per_second.map_or(0.0, |rate| self.requests as f64 / rate);
        let by_tokens = seconds_per_token.unwrap_or(0.0) * self.tokens as f64;
        Duration::try_from_secs_f64(by_requests.max(by_tokens)).unwrap_or(Duration::MAX)
    }
}

/// The rate at which requests start while others wait, averaged over about [`MEMORY`].
#[derive(Debug, Default)]
pub(super) struct BeginRate {
    begun: f64,
    /// Time in which requests waited, in seconds.
    seconds: f64,
    /// Time of the last observation while requests waited.
    since: Option<Instant>,
}

impl BeginRate {
    /// Records that `begun` requests started by `now`, and whether others wait. Time without waiting
    /// requests is not counted.
    pub fn observe(&mut self, now: Instant, begun: usize, others_wait: bool) {
        if let Some(since) = self.since {
            let passed = now.saturating_duration_since(since).as_secs_f64();
            let kept = (-passed / MEMORY.as_secs_f64()).exp();
            self.begun = self.begun * kept + begun as f64;
            self.seconds = self.seconds * kept + passed;
        }
        self.since = others_wait.then_some(now);
    }

    /// Returns the requests started per second; `None` before the first one.
    pub fn per_second(&self) -> Option<f64> {
        let rate = self.begun / self.seconds;
        (rate.is_finite() && rate > 0.0).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: EngineLimits = EngineLimits {
        context_length: 1024,
        max_batch: 4,
        max_step_tokens: 512,
        max_queue: 8,
        queue_timeout: Duration::from_secs(10),
    };

    const ALONE: Tenant = Tenant::ANONYMOUS;

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
            .map(|_| queue.enter(ALONE, 10, &slow).expect("in time"))
            .collect();
        let refused = queue.enter(ALONE, 10, &slow).expect_err("12 s");
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
        assert!(queue.enter(ALONE, 10, &free).is_ok());
        drop(places);
        assert!(queue.enter(ALONE, 10, &slow).is_ok());
        assert_eq!(queue.waiting(), 0);
        assert!(queue.state().tenants.is_empty());
    }

    #[test]
    fn before_anything_is_measured_only_the_number_counts() {
        let queue = Queue::new(LIMITS);
        let status = busy(None);
        let places: Vec<Place> = (0..8)
            .map(|_| queue.enter(ALONE, 1 << 20, &status).expect("a place"))
            .collect();
        let refused = queue.enter(ALONE, 1, &status).expect_err("full");
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
            ..busy(None)
        };
        let _place = queue
            .enter(ALONE, 1001, &status)
            .expect("nothing is before it");
        let refused = queue.enter(ALONE, 1, &status).expect_err("10.01 s");
        assert!(matches!(refused, GenerateError::QueueTooSlow { .. }));
        // With places free they start side by side.
        let free = EngineStatus {
            running: 1,
            ..status
        };
        assert!(queue.enter(ALONE, 1, &free).is_ok());
    }

    #[test]
    fn the_requests_of_one_tenant_leave_room_for_another() {
        let queue = Queue::new(LIMITS);
        let status = busy(Some(0.5));
        let (many, few) = (Tenant::of_key(b"many"), Tenant::of_key(b"few"));
        let enter = |share| queue.enter(share, 100, &status);
        let mut running: Vec<Place> = Vec::new();
        for _ in 0..4 {
            let mut place = enter(many).expect("it is alone");
            place.begin();
            running.push(place);
        }
        let waiting: Vec<Place> = (0..5).map_while(|_| enter(many).ok()).collect();
        assert_eq!(waiting.len(), 5);
        let refused = enter(many).expect_err("six at 0.5 a second");
        let GenerateError::QueueTooSlow { wait, .. } = refused else {
            panic!("{refused}");
        };
        assert_eq!(wait, Duration::from_secs(12));
        // Two of the four places are owed to the other one.
        let wait = |share| queue.wait_of_next(share, &status);
        assert_eq!(wait(few), Duration::ZERO);
        let first = enter(few).expect("a place");
        let mut second = enter(few).expect("a place");
        // Three of its own and three of the other's, less two places.
        assert_eq!(wait(few), Duration::from_secs(8));
        assert_eq!(queue.waiting(), 7);
        second.begin();
        drop((first, second, running, waiting));
        assert_eq!(queue.waiting(), 0);
        assert!(queue.state().tenants.is_empty());
    }

    #[test]
    fn a_full_queue_still_has_the_share_of_another_tenant() {
        let queue = Queue::new(LIMITS);
        let status = busy(None);
        let fill = |key: &[u8]| -> Vec<Place> {
            let share = Tenant::of_key(key);
            std::iter::from_fn(|| queue.enter(share, 1, &status).ok()).collect()
        };
        let many = fill(b"many");
        assert_eq!((many.len(), fill(b"few").len()), (8, 4));
        assert_eq!(queue.tenants(), 1);
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
