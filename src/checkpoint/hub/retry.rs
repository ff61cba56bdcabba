//! Number of retries, and pauses between them.

use std::time::{Duration, Instant};

use super::error::FetchError;

/// Maximum retries without progress, with growing pauses: 1.4 s in total.
const RETRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Maximum pause accepted from a hub; a longer one is reported as an error.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Maximum attempts in total, for a hub that breaks every connection after a few bytes.
const MAX_ATTEMPTS: u32 = 200;

/// Counts the failed attempts at one request.
pub(super) struct Retry {
    /// Failures since the last progress.
    in_a_row: u32,
    attempts: u32,
    /// Deadline of the last attempt.
    deadline: Option<Instant>,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self {
            in_a_row: 0,
            attempts: 0,
            deadline: None,
        }
    }

    /// Creates retries that give up before a pause that would end after `time`, because the last
    /// error is more informative than a timeout.
    pub(super) fn within(time: Duration) -> Self {
        Self {
            deadline: Instant::now().checked_add(time),
            ..Self::new()
        }
    }

    /// Repeats an attempt while its errors are temporary.
    pub(super) async fn repeat<T>(
        mut self,
        mut attempt: impl AsyncFnMut() -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => self.pause(error).await?,
            }
        }
    }

    /// Records that the last attempt made progress.
    pub(super) fn progressed(&mut self) {
        self.in_a_row = 0;
    }

    /// Waits before the next attempt; returns the error if no attempt is left.
    pub(super) async fn pause(&mut self, error: FetchError) -> Result<(), FetchError> {
        self.attempts += 1;
        if !error.is_transient() || self.in_a_row == RETRIES || self.attempts == MAX_ATTEMPTS {
            return Err(error);
        }
        let pause = error
            .retry_after()
            .unwrap_or(FIRST_PAUSE * (1 << self.in_a_row));
        let too_late = |deadline| Instant::now() + pause >= deadline;
        if pause > MAX_PAUSE || self.deadline.is_some_and(too_late) {
            return Err(error);
        }
        self.in_a_row += 1;
        tracing::debug!(%error, ?pause, "request to the hub failed, retrying");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, retry_after: Option<u64>) -> FetchError {
        FetchError::Refused {
            status: reqwest::StatusCode::from_u16(status).unwrap(),
            code: None,
            message: None,
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    async fn attempts(status: u16, retry_after: Option<u64>) -> u32 {
        let mut attempts = 0;
        let retry = Retry::within(Duration::from_secs(5));
        let failed: Result<(), _> = retry
            .repeat(async || {
                attempts += 1;
                Err(refused(status, retry_after))
            })
            .await;
        let error = failed.unwrap_err();
        assert!(
            matches!(&error, FetchError::Refused { status: last, .. } if last.as_u16() == status),
            "{error}"
        );
        attempts
    }

    #[tokio::test]
    async fn only_what_may_pass_is_tried_again_and_only_a_few_times() {
        assert_eq!(attempts(503, None).await, 4);
        assert_eq!(attempts(429, Some(0)).await, 4);
        assert_eq!(attempts(404, None).await, 1);
        assert_eq!(attempts(429, Some(3600)).await, 1);
        // Longer than the remaining time.
        assert_eq!(attempts(429, Some(12)).await, 1);
    }

    #[tokio::test]
    async fn progress_is_worth_further_attempts_but_not_without_end() {
        let mut retry = Retry::new();
        let mut attempts = 0;
        loop {
            retry.progressed();
            attempts += 1;
            if let Err(error) = retry.pause(refused(503, Some(0))).await {
                assert!(matches!(error, FetchError::Refused { .. }), "{error}");
                break;
            }
        }
        assert_eq!(attempts, MAX_ATTEMPTS);
    }
}
