//! The usage of one key's limits: requests, tokens, and concurrent requests.
//!
//! The prompt's tokens are taken before a request runs, and must be available; generated tokens are
//! taken as they are sampled, even beyond the limit, since their number is not known beforehand. A
//! key that has overdrawn waits until the debt is paid off.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::bucket::{Bucket, Level};
use super::key::KeyLimits;

/// A kind of limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests per minute.
    Requests,
    /// Tokens per minute.
    Tokens,
    /// Concurrent requests.
    Concurrent,
}

/// Why a key can't make a request now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// No request of this minute is left.
    #[error("request limit of this API key reached ({limit} per minute); retry in {}", seconds(*.retry_after))]
    Requests {
        /// Requests per minute.
        limit: u32,
        /// Time until a request is left.
        retry_after: Duration,
    },
    /// Fewer tokens are left than the prompt has.
    #[error(
        "the prompt has {} and this API key has {remaining} of its {} per minute left; retry in {}",
        counted(*.tokens),
        counted((*.limit).into()),
        seconds(*.retry_after)
    )]
    Tokens {
        /// Tokens per minute.
        limit: u32,
        /// Tokens left.
        remaining: u32,
        /// Tokens of the prompt.
        tokens: u64,
        /// Time until as many are left.
        retry_after: Duration,
    },
    /// The prompt alone has more tokens than the key gets in a minute.
    #[error(
        "the prompt has {}, more than the {} per minute of this API key; shorten it",
        counted(*.tokens),
        counted((*.limit).into())
    )]
    PromptTooLarge {
        /// Tokens per minute.
        limit: u32,
        /// Tokens of the prompt.
        tokens: u64,
    },
    /// The maximum of requests is in progress.
    #[error(
        "concurrent request limit of this API key reached ({limit}); retry when a request has finished"
    )]
    Concurrent {
        /// Maximum concurrent requests.
        limit: u32,
    },
}

/// Returns a number of tokens as text.
fn counted(tokens: u64) -> String {
    let plural = if tokens == 1 { "" } else { "s" };
    format!("{tokens} token{plural}")
}

/// Returns a wait in seconds as text, rounded up to a tenth.
fn seconds(wait: Duration) -> String {
    let tenths = wait.as_millis().div_ceil(100);
    format!("{}.{}s", tenths / 10, tenths % 10)
}

/// The remainder of a key's limits; `None` without a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// Requests per minute.
    pub requests: Option<Level>,
    /// Tokens per minute.
    pub tokens: Option<Level>,
    /// Concurrent requests: the limit, and how many more can begin.
    pub concurrent: Option<(u32, u32)>,
}

/// Tokens and requests of a key since the server has known it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Admitted requests.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
}

/// The usage of a key. One short lock per request and per generated token.
#[derive(Debug)]
pub struct Usage {
    state: Mutex<State>,
    requests: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
}

#[derive(Debug)]
struct State {
    requests: Allowance,
    tokens: Allowance,
    concurrent: Option<NonZeroU32>,
    /// Requests in progress; counted even without a limit, since one can be set later.
    running: u32,
}

/// An amount per minute, if the key has a limit on it.
///
/// The bucket outlives the limit: a file that lacks a line for a moment, because it is being rewritten, must
/// not reset the usage.
#[derive(Debug)]
struct Allowance {
    bucket: Option<Bucket>,
    limited: bool,
}

impl Allowance {
    fn full(limit: Option<NonZeroU32>, now: Instant) -> Self {
        Self {
            bucket: limit.map(|limit| Bucket::full(limit, now)),
            limited: limit.is_some(),
        }
    }

    /// Changes the limit. The usage stays.
    fn set(&mut self, limit: Option<NonZeroU32>, now: Instant) {
        self.limited = limit.is_some();
        match (&mut self.bucket, limit) {
            (Some(bucket), Some(limit)) => bucket.resize(limit, now),
            (None, Some(limit)) => self.bucket = Some(Bucket::full(limit, now)),
            (_, None) => (),
        }
    }

    /// Returns the bucket if there is a limit.
    fn bucket(&mut self) -> Option<&mut Bucket> {
        self.bucket.as_mut().filter(|_| self.limited)
    }

    /// Returns the time until the bucket is full.
    fn reset(&mut self, now: Instant) -> Duration {
        let bucket = self.bucket.as_mut();
        bucket.map_or(Duration::ZERO, |bucket| bucket.level(now).reset)
    }
}

/// A request in progress, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Usage>);

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running = state.running.saturating_sub(1);
    }
}

impl Usage {
    /// Creates the usage of a new key.
    #[must_use]
    pub fn new(limits: KeyLimits, now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                requests: Allowance::full(limits.requests_per_minute, now),
                tokens: Allowance::full(limits.tokens_per_minute, now),
                concurrent: limits.concurrent_requests,
                running: 0,
            }),
            requests: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
        }
    }

    /// Changes the limits. The usage stays.
    pub fn set_limits(&self, limits: KeyLimits, now: Instant) {
        let mut state = self.state();
        state.requests.set(limits.requests_per_minute, now);
        state.tokens.set(limits.tokens_per_minute, now);
        state.concurrent = limits.concurrent_requests;
    }

    /// Admits a request, which is in progress until the place is dropped. Refused requests are not counted.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub fn begin(self: &Arc<Self>, now: Instant) -> Result<Place, LimitReached> {
        let mut state = self.state();
        if let Some(limit) = state.concurrent
            && state.running >= limit.get()
        {
            return Err(LimitReached::Concurrent { limit: limit.get() });
        }
        if let Some(bucket) = state.requests.bucket()
            && let Err(retry_after) = bucket.take(1, now)
        {
            let limit = bucket.level(now).limit;
            return Err(LimitReached::Requests { limit, retry_after });
        }
        state.running += 1;
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(Place(Arc::clone(self)))
    }

    /// Takes the tokens of a prompt, before it is submitted.
    ///
    /// # Errors
    /// If not enough are left.
    pub fn take_prompt(&self, tokens: u64, now: Instant) -> Result<(), LimitReached> {
        let mut state = self.state();
        let Some(bucket) = state.tokens.bucket() else {
            return Ok(());
        };
        // At least 1, so that a key in debt can't continue with empty prompts.
        let Err(retry_after) = bucket.take(tokens.max(1), now) else {
            return Ok(());
        };
        let Level {
            limit, remaining, ..
        } = bucket.level(now);
        Err(if retry_after == Duration::MAX {
            LimitReached::PromptTooLarge { limit, tokens }
        } else {
            LimitReached::Tokens {
                limit,
                remaining,
                tokens,
                retry_after,
            }
        })
    }

    /// Puts back the tokens of a prompt that was not prefilled.
    pub fn put_back_prompt(&self, tokens: u64, now: Instant) {
        if let Some(bucket) = self.state().tokens.bucket() {
            bucket.put_back(tokens.max(1), now);
        }
    }

    /// Counts the tokens of a prompt that the engine has accepted.
    pub fn count_prompt(&self, tokens: u64) {
        self.prompt_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Takes and counts generated tokens, even beyond the limit.
    pub fn take_generated(&self, tokens: u64, now: Instant) {
        self.generated_tokens.fetch_add(tokens, Ordering::Relaxed);
        if let Some(bucket) = self.state().tokens.bucket() {
            bucket.overdraw(tokens, now);
        }
    }

    /// Returns the remainder of each limit.
    #[must_use]
    pub fn levels(&self, now: Instant) -> Levels {
        let mut state = self.state();
        let running = state.running;
        Levels {
            requests: state.requests.bucket().map(|bucket| bucket.level(now)),
            tokens: state.tokens.bucket().map(|bucket| bucket.level(now)),
            concurrent: state
                .concurrent
                .map(|limit| (limit.get(), limit.get().saturating_sub(running))),
        }
    }

    /// Returns the time until the usage is that of a new key, with every bucket full. [`Duration::MAX`]
    /// while a request is in progress.
    #[must_use]
    pub fn reset(&self, now: Instant) -> Duration {
        let mut state = self.state();
        if state.running > 0 {
            return Duration::MAX;
        }
        state.requests.reset(now).max(state.tokens.reset(now))
    }

    /// Returns the counters.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            requests: self.requests.load(Ordering::Relaxed),
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(requests: u32, tokens: u32, concurrent: u32) -> (Arc<Usage>, Instant) {
        let now = Instant::now();
        let limits = KeyLimits {
            requests_per_minute: NonZeroU32::new(requests),
            tokens_per_minute: NonZeroU32::new(tokens),
            concurrent_requests: NonZeroU32::new(concurrent),
        };
        (Arc::new(Usage::new(limits, now)), now)
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let (usage, now) = usage(0, 0, 2);
        let one = usage.begin(now).unwrap();
        let two = usage.begin(now).unwrap();
        let refused = usage.begin(now).unwrap_err();
        assert_eq!(refused, LimitReached::Concurrent { limit: 2 });
        assert_eq!(usage.levels(now).concurrent, Some((2, 0)));
        drop(one);
        let three = usage.begin(now).unwrap();
        drop((two, three));
        assert_eq!(usage.levels(now).concurrent, Some((2, 2)));
        assert_eq!(usage.totals().requests, 3);
    }

    #[test]
    fn requests_that_are_refused_for_want_of_a_place_are_not_counted() {
        let (usage, now) = usage(2, 0, 1);
        let place = usage.begin(now).unwrap();
        for _ in 0..5 {
            let refused = usage.begin(now).unwrap_err();
            assert_eq!(refused, LimitReached::Concurrent { limit: 1 });
        }
        drop(place);
        let _place = usage.begin(now).unwrap();
        assert_eq!(usage.levels(now).requests.unwrap().remaining, 0);
    }

    #[test]
    fn a_minute_s_requests_come_back_one_by_one() {
        let (usage, now) = usage(6, 0, 0);
        for _ in 0..6 {
            drop(usage.begin(now).unwrap());
        }
        let wait = Duration::from_secs(10);
        let refused = usage.begin(now).unwrap_err();
        assert_eq!(
            refused,
            LimitReached::Requests {
                limit: 6,
                retry_after: wait
            }
        );
        assert!(refused.to_string().ends_with("retry in 10.0s"), "{refused}");
        assert!(usage.begin(now + wait).is_ok());
    }

    #[test]
    fn generated_tokens_overdraw_and_the_next_prompt_waits() {
        let (usage, now) = usage(0, 600, 0);
        usage.take_prompt(100, now).unwrap();
        usage.count_prompt(100);
        usage.take_generated(600, now);
        assert_eq!(usage.levels(now).tokens.unwrap().remaining, 0);
        let refused = usage.take_prompt(0, now).unwrap_err();
        assert!(
            matches!(refused, LimitReached::Tokens { retry_after, .. } if retry_after == Duration::from_millis(10_100)),
            "{refused:?}"
        );
        let told = refused.to_string();
        assert!(told.starts_with("the prompt has 0 tokens "), "{told}");
        usage
            .take_prompt(10, now + Duration::from_secs(11))
            .unwrap();
        let totals = usage.totals();
        assert_eq!((totals.prompt_tokens, totals.generated_tokens), (100, 600));
    }

    #[test]
    fn a_prompt_that_never_fits_is_told_so_and_one_that_was_not_read_costs_nothing() {
        let (usage, now) = usage(0, 100, 0);
        let refused = usage.take_prompt(101, now).unwrap_err();
        assert_eq!(
            refused,
            LimitReached::PromptTooLarge {
                limit: 100,
                tokens: 101
            }
        );
        let told = refused.to_string();
        assert!(told.starts_with("the prompt has 101 tokens, "), "{told}");
        usage.take_prompt(100, now).unwrap();
        usage.put_back_prompt(100, now);
        usage.take_prompt(100, now).unwrap();
    }

    #[test]
    fn one_token_is_told_in_the_singular() {
        let (usage, now) = usage(0, 1, 0);
        usage.take_prompt(1, now).unwrap();
        assert_eq!(
            usage.take_prompt(1, now).unwrap_err().to_string(),
            "the prompt has 1 token and this API key has 0 of its 1 token per minute left; retry in 60.0s"
        );
    }

    #[test]
    fn limits_can_change_while_requests_run() {
        let (usage, now) = usage(0, 0, 0);
        let _one = usage.begin(now).unwrap();
        let limits = KeyLimits {
            concurrent_requests: NonZeroU32::new(1),
            tokens_per_minute: NonZeroU32::new(10),
            ..KeyLimits::default()
        };
        usage.set_limits(limits, now);
        let refused = usage.begin(now).unwrap_err();
        assert_eq!(refused, LimitReached::Concurrent { limit: 1 });
        assert_eq!(
            usage.take_prompt(11, now),
            Err(LimitReached::PromptTooLarge {
                limit: 10,
                tokens: 11
            })
        );
        usage.set_limits(KeyLimits::default(), now);
        assert!(usage.begin(now).is_ok());
        assert_eq!(usage.levels(now), Levels::default());
    }

    #[test]
    fn a_limit_that_is_gone_for_a_moment_comes_back_as_used_as_it_was() {
        let (usage, now) = usage(60, 600, 0);
        let limits = KeyLimits {
            requests_per_minute: NonZeroU32::new(60),
            tokens_per_minute: NonZeroU32::new(600),
            concurrent_requests: None,
        };
        let place = usage.begin(now).unwrap();
        usage.take_prompt(600, now).unwrap();
        usage.take_generated(600, now);
        usage.set_limits(KeyLimits::default(), now);
        // Without a limit nothing is taken.
        usage.take_prompt(10_000, now).unwrap();
        usage.take_generated(10_000, now);
        assert_eq!(usage.reset(now), Duration::MAX);
        drop(place);
        assert_eq!(usage.reset(now), Duration::from_secs(120));
        let later = now + Duration::from_secs(90);
        usage.set_limits(limits, later);
        assert_eq!(usage.levels(later).tokens.unwrap().remaining, 300);
        assert_eq!(usage.levels(later).requests.unwrap().remaining, 60);
        assert_eq!(usage.reset(now + Duration::from_secs(120)), Duration::ZERO);
    }
}
