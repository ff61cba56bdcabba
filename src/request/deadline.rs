//! The deadline of a request.

use std::time::{Duration, Instant};

/// A request's own timeout, measured from its arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// Returns the deadline of a request that arrives now.
    #[must_use]
    pub fn after(timeout: Duration) -> Self {
        Self {
            at: Instant::now() + timeout,
            timeout,
        }
    }

    /// Returns the time of the deadline.
    #[must_use]
    pub fn at(self) -> Instant {
        self.at
    }

    /// Returns the time from the request's arrival to the deadline.
    #[must_use]
    pub fn timeout(self) -> Duration {
        self.timeout
    }

    /// Returns whether the deadline has passed.
    #[must_use]
    pub fn has_passed(self) -> bool {
        Instant::now() >= self.at
    }
}
