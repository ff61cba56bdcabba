//! The worker's heartbeat: the time since its last step while it has work.
//!
//! The worker writes, any thread reads; neither waits for the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Value of [`Heartbeat::last`] while the worker has no work.
const AT_REST: u64 = u64::MAX;

/// Time of the worker's last step.
#[derive(Debug)]
pub(super) struct Heartbeat {
    start: Instant,
    /// Milliseconds after `start`, or [`AT_REST`].
    last: AtomicU64,
}

impl Heartbeat {
    /// Creates the heartbeat of a worker without work.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(AT_REST),
        }
    }

    /// Records a step, or the arrival of work.
    pub fn beat(&self) {
        let since_start = self.start.elapsed().as_millis();
        let since_start = u64::try_from(since_start).unwrap_or(AT_REST - 1);
        self.last.store(since_start, Ordering::Relaxed);
    }

    /// Records that there is no work.
    pub fn rest(&self) {
        self.last.store(AT_REST, Ordering::Relaxed);
    }

    /// Returns the time since the last beat; zero for a worker without work.
    pub fn silence(&self) -> Duration {
        match self.last.load(Ordering::Relaxed) {
            AT_REST => Duration::ZERO,
            last => {
                let last = Duration::from_millis(last);
                self.start.elapsed().saturating_sub(last)
            }
        }
    }
}
