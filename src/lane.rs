//! Bounded lanes for work outside the engine.
//!
//! Such work takes up to a hundred times its input in memory and milliseconds to seconds of a core, and
//! the engine's queue does not cover it. So each kind of work has a [`Lane`]: a bounded amount runs at a
//! time and a bounded amount waits, per tenant in order of arrival. Work beyond that and beyond the
//! tenant's share is refused, with a retry hint based on recent durations.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::fair::{Hold, Holds, Tenant, Turn, Turns};
use crate::resources::background::{self, Priority};

/// Shortest and longest retry hint.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Why a lane did not complete a piece of work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// Too much work is running or waiting.
    #[error("the server is busy: {pending} {what}; retry later")]
    Busy {
        /// Units that are running or waiting.
        pending: usize,
        /// Description of the pending units.
        what: &'static str,
        /// Estimated time until the lane has capacity.
        retry_after: Duration,
    },
    /// The work panicked, or its thread could not be started.
    #[error("work on the request failed: {0}")]
    Failed(String),
}

impl LaneError {
    /// Wraps the error of failed work.
    pub fn failed(error: &impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Bounds one kind of work, in its own units (bytes, or pieces).
pub struct Lane(Arc<LaneState>);

struct LaneState {
    /// Description of pending units for messages, as in "… bytes of other requests are being tokenized".
    pending_what: &'static str,
    running: Turns,
    /// Maximum units that run at a time.
    at_a_time: usize,
    /// Units that are running or waiting.
    pending: Holds,
    /// Pieces of work that are running or waiting.
    pieces: AtomicUsize,
    /// Moving average of the duration of a piece of work, in nanoseconds.
    mean: AtomicU64,
}

impl Lane {
    /// Creates a lane in which at most `at_a_time` units run and `max_pending` run or wait. One piece of
    /// work per tenant is always accepted, regardless of its size.
    #[must_use]
    pub fn new(pending_what: &'static str, at_a_time: usize, max_pending: usize) -> Self {
        Self(Arc::new(LaneState {
            pending_what,
            running: Turns::new(at_a_time),
            at_a_time,
            pending: Holds::new(max_pending),
            pieces: AtomicUsize::new(0),
            mean: AtomicU64::new(0),
        }))
    }

    /// Waits for the tenant's turn.
    ///
    /// # Errors
    /// [`LaneError::Busy`] if `units` more would exceed the bound.
    pub async fn enter(&self, share: Tenant, units: usize) -> Result<Place, LaneError> {
        let pending = Pending::add(&self.0, share, units)?;
        let wanted = units.min(self.0.at_a_time);
        let turn = self.0.running.wait(share, 0, wanted).await;
        Ok(Place {
            pending,
            began: Instant::now(),
            _turn: turn,
        })
    }

    /// Returns the error for work that is refused.
    #[must_use]
    pub fn busy(&self) -> LaneError {
        self.0.busy()
    }

    /// Returns the number of units that are running or waiting.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.0.pending.total()
    }
}

impl LaneState {
    fn busy(&self) -> LaneError {
        let (pending, what) = (self.pending.total(), self.pending_what);
        LaneError::Busy {
            pending,
            what,
            retry_after: self.retry_after(),
        }
    }

    /// Estimates the time until the pending work is done.
    fn retry_after(&self) -> Duration {
        let pieces = self.pieces.load(Ordering::Relaxed).max(1);
        let pending = self.pending.total().max(1);
        let at_a_time = (self.at_a_time.saturating_mul(pieces) / pending).max(1);
        let turns = pieces.div_ceil(at_a_time);
        let mean = Duration::from_nanos(self.mean.load(Ordering::Relaxed));
        let (least, most) = RETRY;
        let turns = u32::try_from(turns).unwrap_or(u32::MAX);
        mean.saturating_mul(turns).clamp(least, most)
    }
}

/// Counts a piece of work as pending until dropped.
struct Pending {
    lane: Arc<LaneState>,
    _units: Hold,
}

impl Pending {
    fn add(lane: &Arc<LaneState>, share: Tenant, units: usize) -> Result<Self, LaneError> {
        let units = lane.pending.try_hold(share, units);
        let units = units.ok_or_else(|| lane.busy())?;
        lane.pieces.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            lane: Arc::clone(lane),
            _units: units,
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.lane.pieces.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The place of a piece of work in its lane, to be held until the work is done.
pub struct Place {
    pending: Pending,
    began: Instant,
    _turn: Turn,
}

impl Place {
    /// Runs work on a new thread, and holds the place until it is done.
    ///
    /// # Errors
    /// [`LaneError::Failed`] if the thread can't be started or the work panics.
    pub async fn run<T: Send + 'static>(
        self,
        thread: &str,
        priority: Priority,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LaneError> {
        let done = background::spawn(thread, priority, move || {
            let _place = self;
            work()
        });
        let done = done.map_err(|error| LaneError::failed(&error))?;
        done.await
            .map_err(|_| LaneError::failed(&"the thread panicked"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Concurrent updates may lose a value, which is acceptable for an average.
        let mean = &self.pending.lane.mean;
        let was = mean.load(Ordering::Relaxed);
        let now = if was == 0 {
            took
        } else {
            was - was / 8 + took / 8
        };
        mean.store(now, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn work_beyond_the_bound_is_refused_until_there_is_capacity() {
        let lane = Lane::new("bytes wait", 2, 4);
        let first = lane.enter(Tenant::ANONYMOUS, 2).await.ok();
        assert!(first.is_some());
        // The second waits.
        let mut second = Box::pin(lane.enter(Tenant::ANONYMOUS, 2));
        assert!((&mut second).now_or_never().is_none());
        let refused = lane
            .enter(Tenant::ANONYMOUS, 1)
            .await
            .err()
            .map(|error| error.to_string());
        assert!(refused.is_some_and(|message| message.contains("4 bytes wait")));
        drop(first);
        let second = second.await.ok();
        assert!(second.is_some());
        // The lane is still occupied, but there is capacity to wait.
        let mut third = Box::pin(lane.enter(Tenant::ANONYMOUS, 1));
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert!(third.await.is_ok());
        // Work larger than the lane is accepted if the lane is empty.
        assert!(lane.enter(Tenant::ANONYMOUS, 100).await.is_ok());
    }

    #[tokio::test]
    async fn one_tenant_leaves_capacity_for_another_and_does_not_delay_it() {
        let (many, few) = (Tenant::of_key(b"many"), Tenant::of_key(b"few"));
        let lane = Lane::new("bytes wait", 1, 4);
        let running = lane.enter(many, 1).await.ok();
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(lane.enter(many, 1))).collect();
        for one in &mut waiting {
            assert!(one.now_or_never().is_none());
        }
        let busy = |outcome: Result<Place, LaneError>, expected: usize| {
            let is_busy = |e: &LaneError| matches!(e, LaneError::Busy { pending, .. } if *pending == expected);
            assert!(outcome.err().is_some_and(|error| is_busy(&error)));
        };
        busy(lane.enter(many, 1).await, 4);
        let mut other = Box::pin(lane.enter(few, 2));
        assert!((&mut other).now_or_never().is_none());
        busy(lane.enter(few, 1).await, 6);
        // A new tenant starts level with the least served one. Of two that are equal, the first in the
        // queue is next, and then the other.
        drop(running);
        assert!((&mut other).now_or_never().is_none());
        let served = waiting.remove(0).now_or_never();
        assert!(served.as_ref().is_some_and(Result::is_ok));
        drop(served);
        assert!(other.now_or_never().is_some_and(|place| place.is_ok()));
        assert!(waiting.remove(0).now_or_never().is_some());
    }

    #[tokio::test]
    async fn the_retry_hint_follows_the_duration_of_work() {
        let lane = Lane::new("pieces wait", 1, 2);
        lane.0.mean.store(7_000_000_000, Ordering::Relaxed);
        let _running = lane.enter(Tenant::ANONYMOUS, 1).await.ok();
        let mut waiting = Box::pin(lane.enter(Tenant::ANONYMOUS, 1));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(lane.0.retry_after(), Duration::from_secs(14));
    }

    #[tokio::test]
    async fn work_that_is_cancelled_while_waiting_is_no_longer_counted() {
        let lane = Lane::new("pieces wait", 1, 2);
        let running = lane.enter(Tenant::ANONYMOUS, 1).await.ok();
        let mut waiting = Box::pin(lane.enter(Tenant::ANONYMOUS, 1));
        assert!((&mut waiting).now_or_never().is_none());
        drop(waiting);
        assert_eq!(lane.pending(), 1);
        drop(running);
        assert_eq!(lane.pending(), 0);
    }
}
