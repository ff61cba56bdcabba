//! The engine's limits, and the share of its queue that bulks of requests may take.

use std::time::Duration;

use crate::fair::{Holds, Turns};

/// The engine's limits, fixed at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Maximum positions of a context.
    pub context_length: usize,
    /// Maximum sequences per batch.
    pub max_batch: usize,
    /// Maximum tokens per step.
    pub max_step_tokens: usize,
    /// Maximum waiting requests; beyond it, only requests within a tenant's share are accepted.
    pub max_queue: usize,
    /// Maximum wait of a request; one that would wait longer is refused.
    pub queue_timeout: Duration,
}

/// Steps whose tokens bulks may have in flight: one that is computed, and one that waits for it.
const STEPS: usize = 2;

/// The limits that all bulks share; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct BulkAdmission {
    /// Bulks per tenant.
    pub bulks: Holds,
    /// Maximum bulks.
    pub max_bulks: usize,
    /// Turns of their requests, in tokens.
    pub tokens: Turns,
    max_tokens: usize,
    /// Minimum tokens that a request counts as, so that short ones don't fill the queue.
    least: usize,
}

impl BulkAdmission {
    pub fn new(limits: EngineLimits) -> Self {
        let max_tokens = limits.max_step_tokens.saturating_mul(STEPS).max(1);
        let places = limits.max_queue / 2;
        Self {
            bulks: Holds::new(limits.max_queue),
            max_bulks: limits.max_queue,
            tokens: Turns::new(max_tokens),
            max_tokens,
            least: max_tokens.div_ceil(places.max(1)),
        }
    }

    /// Returns the tokens that a request of `tokens` tokens counts as. One that exceeds the maximum waits
    /// until it is alone.
    pub fn counted(&self, tokens: usize) -> usize {
        tokens.clamp(self.least, self.max_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max_step_tokens: usize, max_queue: usize) -> BulkAdmission {
        BulkAdmission::new(EngineLimits {
            context_length: 1024,
            max_batch: 64,
            max_step_tokens,
            max_queue,
            queue_timeout: Duration::from_secs(30),
        })
    }

    #[test]
    fn short_requests_have_half_the_queue_at_most_and_long_ones_two_steps() {
        let admission = admission(512, 256);
        assert_eq!(admission.counted(1), 8);
        assert_eq!(admission.max_tokens / admission.counted(1), 128);
        assert_eq!(admission.counted(600), 600);
        assert_eq!(admission.counted(5000), 1024);
    }

    #[test]
    fn however_small_the_queue_one_request_has_room() {
        for max_queue in [1, 2, 3] {
            let admission = admission(16, max_queue);
            assert_eq!(admission.max_tokens / admission.counted(1), 1);
            assert_eq!(admission.max_tokens / admission.counted(100), 1);
        }
    }
}
