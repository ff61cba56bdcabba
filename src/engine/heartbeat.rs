//! The worker's heartbeat: since when it has had work and made no step.
//!
//! The worker beats, any thread looks; neither waits for the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What [`Heartbeat::last`] holds while the worker has no work.
const AT_REST: u64 = u64::MAX;

/// The moment of the worker's last step.
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

    /// Notes that a step was made, or that work has come.
    pub fn beat(&self) {
        let since_start = self.start.elapsed().as_millis();
        let since_start = u64::try_from(since_start).unwrap_or(AT_REST - 1);
        self.last.store(since_start, Ordering::Relaxed);
    }

    /// Notes that there is no work.
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
