//! A token bucket that holds the amount of one minute and fills evenly.
//!
//! All arithmetic is on integers, so that the requested amount is available exactly after the wait
//! that a refusal gives.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Units of an amount of 1. In a nanosecond a bucket of N per minute gets N units.
const UNITS: i128 = 60_000_000_000;

/// The remainder of an amount per minute. It can be overdrawn, and then refuses every amount until
/// the debt is paid off.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_minute: NonZeroU32,
    /// Remaining amount in units; negative if overdrawn.
    level: i128,
    /// The time of that level.
    at: Instant,
}

/// The level of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Amount per minute.
    pub limit: u32,
    /// Amount left; 0 if overdrawn.
    pub remaining: u32,
    /// Time until it is full.
    pub reset: Duration,
}

impl Bucket {
    /// Creates a full bucket.
    #[must_use]
    pub fn full(per_minute: NonZeroU32, now: Instant) -> Self {
        Self {
            per_minute,
            level: capacity(per_minute),
            at: now,
        }
    }

    /// Changes the amount per minute. The amount already used is unchanged.
    pub fn resize(&mut self, per_minute: NonZeroU32, now: Instant) {
        self.fill(now);
        self.level += capacity(per_minute) - capacity(self.per_minute);
        self.per_minute = per_minute;
    }

    /// Takes an amount if enough is left.
    ///
    /// # Errors
    /// The time until enough is left; [`Duration::MAX`] for more than the amount of a minute.
    pub fn take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        let wanted = units(amount);
        if wanted > capacity(self.per_minute) {
            return Err(Duration::MAX);
        }
        if wanted > self.level {
            return Err(self.time_for(wanted - self.level));
        }
        self.level -= wanted;
        Ok(())
    }

    /// Takes an amount even if not enough is left.
    pub fn overdraw(&mut self, amount: u64, now: Instant) {
        self.fill(now);
        self.level = self.level.saturating_sub(units(amount));
    }

    /// Puts back an amount that was not used.
    pub fn put_back(&mut self, amount: u64, now: Instant) {
        self.fill(now);
        self.level = (self.level + units(amount)).min(capacity(self.per_minute));
    }

    /// Returns the level of the bucket.
    pub fn level(&mut self, now: Instant) -> Level {
        self.fill(now);
        Level {
            limit: self.per_minute.get(),
            remaining: u32::try_from(self.level.max(0) / UNITS).unwrap_or(u32::MAX),
            reset: self.time_for(capacity(self.per_minute) - self.level),
        }
    }

    fn fill(&mut self, now: Instant) {
        let Some(passed) = now.checked_duration_since(self.at) else {
            return;
        };
        let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let gained = passed.saturating_mul(self.per_minute.get().into());
        self.level = self
            .level
            .saturating_add(gained)
            .min(capacity(self.per_minute));
        self.at = now;
    }

    /// Returns the time in which `units` are added.
    fn time_for(&self, units: i128) -> Duration {
        let per_nanosecond = i128::from(self.per_minute.get());
        let nanoseconds = (units + per_nanosecond - 1) / per_nanosecond;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

fn units(amount: u64) -> i128 {
    i128::from(amount) * UNITS
}

fn capacity(per_minute: NonZeroU32) -> i128 {
    units(per_minute.get().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(per_minute: u32) -> (Bucket, Instant) {
        let now = Instant::now();
        (Bucket::full(per_minute.try_into().unwrap(), now), now)
    }

    #[test]
    fn a_minute_s_worth_can_be_taken_at_once_and_comes_back_evenly() {
        let (mut bucket, start) = bucket(60);
        for _ in 0..60 {
            bucket.take(1, start).unwrap();
        }
        assert_eq!(bucket.take(1, start), Err(Duration::from_secs(1)));
        let half = start + Duration::from_millis(500);
        assert_eq!(bucket.take(1, half), Err(Duration::from_millis(500)));
        bucket.take(1, start + Duration::from_secs(1)).unwrap();
        let level = bucket.level(start + Duration::from_secs(11));
        assert_eq!((level.limit, level.remaining), (60, 10));
        assert_eq!(level.reset, Duration::from_secs(50));
        // Never more than the amount of a minute.
        let level = bucket.level(start + Duration::from_secs(86400));
        assert_eq!((level.remaining, level.reset), (60, Duration::ZERO));
    }

    #[test]
    fn what_is_there_after_the_wait_covers_what_was_asked_whatever_the_rate() {
        for per_minute in [1, 7, 59, 61, 1_000_003, u32::MAX] {
            let (mut bucket, start) = bucket(per_minute);
            let amount = u64::from(per_minute.div_ceil(3));
            bucket.take(per_minute.into(), start).unwrap();
            let wait = bucket.take(amount, start).unwrap_err();
            let early = start + wait.saturating_sub(Duration::from_nanos(1));
            let rest = bucket.clone().take(amount, early);
            assert_eq!(rest, Err(Duration::from_nanos(1)), "{per_minute}");
            bucket.take(amount, start + wait).unwrap();
        }
    }

    #[test]
    fn a_debt_is_paid_off_first() {
        let (mut bucket, start) = bucket(600);
        bucket.take(500, start).unwrap();
        bucket.overdraw(700, start);
        let level = bucket.level(start);
        assert_eq!(
            (level.remaining, level.reset),
            (0, Duration::from_secs(120))
        );
        assert_eq!(bucket.take(100, start), Err(Duration::from_secs(70)));
        bucket.put_back(700, start);
        assert_eq!(bucket.level(start).remaining, 100);
    }

    #[test]
    fn more_than_a_minute_s_worth_never_comes() {
        let (mut bucket, start) = bucket(10);
        assert_eq!(bucket.take(11, start), Err(Duration::MAX));
        assert_eq!(bucket.take(u64::MAX, start), Err(Duration::MAX));
        bucket.take(10, start).unwrap();
    }

    #[test]
    fn a_new_size_leaves_used_what_was_used_and_clocks_that_go_back_change_nothing() {
        let (mut bucket, start) = bucket(60);
        bucket.take(50, start).unwrap();
        bucket.resize(100.try_into().unwrap(), start);
        assert_eq!(bucket.level(start).remaining, 50);
        bucket.resize(20.try_into().unwrap(), start);
        assert_eq!(bucket.level(start).remaining, 0);
        let later = start + Duration::from_secs(120);
        assert_eq!(bucket.level(later).remaining, 10);
        assert_eq!(bucket.level(start).remaining, 10);
    }
}
