//! The engine's statistics: one struct that the worker updates and publishes once a step, read by
//! `/info`, `/metrics` and tests.
//!
//! A new statistic is a field of [`EngineStatus`], a line where the worker counts it, and a line where
//! `/metrics` names it. The worker must never wait for a reader: while a reader copies them,
//! the step continues without publishing, and the next one publishes.

use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

/// The engine's state at one moment. Counts are since the start.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EngineStatus {
    /// Whether the worker thread runs and takes requests.
    pub alive: bool,
    /// Time since the last step; zero if the worker is idle.
    pub silence: Duration,
    /// Sequences in the batch.
    pub running: usize,
    /// Requests waiting to run: in the queue, or preempted.
    pub waiting: usize,
    /// Tenants with requests in the queue.
    pub tenants_waiting: usize,
    /// Requests set aside because their clients do not read.
    pub stalled: usize,
    /// KV blocks held by running requests.
    pub kv_blocks_used: usize,
    /// KV blocks that are not held, but whose content can be reused.
    pub kv_blocks_cached: usize,
    /// KV blocks in total.
    pub kv_blocks: usize,
    /// Size of a KV block in bytes: its part in the global layers where sliding ones have window slots.
    pub kv_block_bytes: usize,
    /// Window slots held by running requests: the memory of sliding layers for one block each. The
    /// fields of slots are 0 if sliding layers have no memory of their own.
    pub kv_slots_used: usize,
    /// Window slots that are not held, but whose content can be reused.
    pub kv_slots_cached: usize,
    /// Window slots in total.
    pub kv_slots: usize,
    /// Size of a window slot in bytes.
    pub kv_slot_bytes: usize,
    /// Forward passes.
    pub steps: usize,
    /// Tokens computed per forward pass.
    pub step_tokens: StepTokens,
    /// Draft tokens proposed.
    pub drafted: usize,
    /// Draft tokens accepted.
    pub accepted: usize,
    /// Prompt tokens of requests that have begun to run, including session histories and cached
    /// tokens.
    pub prompt_tokens: usize,
    /// Prompt tokens looked up in the prefix cache. Requests for embeddings or for the prompt's
    /// log-probabilities compute the whole prompt.
    pub cache_queried_tokens: usize,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Preemptions of running requests for their KV blocks.
    pub preemptions: usize,
    /// Running requests that yielded their place to another tenant with less than its share.
    pub yields: usize,
    /// KV blocks of sessions exported to be stored when they were evicted.
    pub evicted_blocks: usize,
    /// KV blocks of sessions dropped at eviction because the store was behind.
    pub lost_blocks: usize,
    /// Requests that begin to run per second while others wait; `None` before the first
    /// measurement.
    pub begun_per_second: Option<f64>,
    /// Cost of prefill, in seconds per token; `None` before the first prompt.
    pub prefill_seconds_per_token: Option<f64>,
}

/// A histogram of the tokens in a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTokens {
    /// Forward passes per bucket; the last bucket has no bound.
    counts: [u64; Self::BOUNDS.len() + 1],
    /// Tokens in total.
    sum: u64,
}

impl StepTokens {
    /// The largest number of tokens in each bucket but the last. Powers of two: decode steps have
    /// one row per sequence, prefill steps up to `--max-step-tokens`.
    pub const BOUNDS: [u64; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];

    /// Counts a pass over `tokens` tokens.
    pub fn observe(&mut self, tokens: usize) {
        let tokens = tokens as u64;
        let bucket = Self::BOUNDS.partition_point(|&bound| bound < tokens);
        self.counts[bucket] += 1;
        self.sum += tokens;
    }

    /// Returns the forward passes in each bucket, not cumulative, in the order of [`BOUNDS`](Self::BOUNDS);
    /// the last bucket has no bound.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Returns the tokens of all passes.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// The last published statistics.
#[derive(Debug)]
pub struct Published(Mutex<EngineStatus>);

impl Published {
    /// Publishes the worker's initial statistics.
    #[must_use]
    pub fn new(status: EngineStatus) -> Self {
        Self(Mutex::new(status))
    }

    /// Publishes a step's statistics, unless a reader is copying the last ones.
    pub fn offer(&self, status: &EngineStatus) {
        match self.0.try_lock() {
            Ok(mut published) => *published = *status,
            Err(TryLockError::Poisoned(published)) => *published.into_inner() = *status,
            Err(TryLockError::WouldBlock) => (),
        }
    }

    /// Publishes statistics before a pause: between steps the worker may wait for a reader's copy.
    pub fn set(&self, status: &EngineStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = *status;
    }

    /// Returns a copy of the last published statistics.
    #[must_use]
    pub fn get(&self) -> EngineStatus {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_part_of_its_bucket_and_the_last_bucket_has_none() {
        let mut steps = StepTokens::default();
        for tokens in [1, 2, 3, 4, 5, 4096, 4097, 1 << 40] {
            steps.observe(tokens);
        }
        assert_eq!(steps.counts(), [1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(steps.sum(), 1 + 2 + 3 + 4 + 5 + 4096 + 4097 + (1 << 40));
    }

    #[test]
    fn a_step_does_not_wait_for_a_reader_and_the_next_one_publishes() {
        let published = Published::new(EngineStatus::default());
        let of = |steps| EngineStatus {
            steps,
            ..EngineStatus::default()
        };
        let reader = published.0.lock().unwrap();
        published.offer(&of(1));
        drop(reader);
        assert_eq!(published.get().steps, 0);
        published.offer(&of(2));
        assert_eq!(published.get().steps, 2);
        published.set(&of(3));
        assert_eq!(published.get().steps, 3);
    }
}
