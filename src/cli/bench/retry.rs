//! Sends a request again after a failure that another attempt may not meet, as OpenAI's clients do:
//! after half a second, twice as long each further time, or when the server says (`Retry-After`).
//!
//! A stream that breaks off is retried too, from its beginning, which those clients leave to whoever
//! reads the stream: a load has no reader that could be confused.

use std::time::{Duration, Instant};

use super::client::Target;
use super::dialect::BodyOptions;
use super::failure::{Failure, FailureKind};
use super::timeline::Answered;
use super::workload::Ask;

/// Pause before the first retry.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Longest `Retry-After` that is followed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What came of a request, and how many attempts it took after the first.
pub(super) struct Outcome {
    /// The last attempt.
    pub result: Result<Answered, Failure>,
    /// Attempts after the first.
    pub retries: u32,
}

/// Sends a request, up to `most` further times while it fails. Latencies count from its first
/// attempt, or from `arrival`.
pub(super) async fn stream(
    target: &Target,
    ask: &Ask,
    options: &BodyOptions,
    arrival: Option<Instant>,
    most: u32,
) -> Outcome {
    let began = Instant::now();
    let mut retries = 0;
    loop {
        let origin = arrival.or((retries > 0).then_some(began));
        let result = target.stream(ask, options, origin).await;
        let failure = match result {
            Err(failure) if retries < most && is_transient(failure.kind) => failure,
            result => return Outcome { result, retries },
        };
        tokio::time::sleep(pause(&failure, retries)).await;
        retries += 1;
    }
}

/// Whether another attempt may succeed.
fn is_transient(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Connection | FailureKind::InStream | FailureKind::BrokenOff => true,
        FailureKind::Status(status) => matches!(status, 408 | 409 | 429 | 500..),
        FailureKind::NoStream | FailureKind::TimedOut => false,
    }
}

/// The time to wait before the attempt after `retries` others.
fn pause(failure: &Failure, retries: u32) -> Duration {
    let told = failure
        .retry_after
        .filter(|&after| after <= LONGEST_RETRY_AFTER);
    told.unwrap_or_else(|| {
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(retries));
        pause.min(LONGEST_PAUSE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_request_itself_is_to_blame_for_is_not_retried() {
        for status in [408, 409, 429, 500, 502, 503, 504] {
            assert!(is_transient(FailureKind::Status(status)), "{status}");
        }
        for status in [400, 401, 404, 413, 422] {
            assert!(!is_transient(FailureKind::Status(status)), "{status}");
        }
        assert!(is_transient(FailureKind::Connection));
        assert!(is_transient(FailureKind::BrokenOff));
        assert!(!is_transient(FailureKind::TimedOut));
    }

    #[test]
    fn pauses_double_unless_the_server_says_when_to_come_back() {
        let failure = |retry_after| Failure {
            retry_after,
            ..Failure::new(FailureKind::Status(503), "away")
        };
        let pauses = [0, 1, 2, 9].map(|retries| pause(&failure(None), retries));
        assert_eq!(
            pauses.map(|pause| pause.as_millis()),
            [500, 1000, 2000, 8000]
        );
        let told = |seconds| pause(&failure(Some(Duration::from_secs(seconds))), 0);
        assert_eq!(told(3), Duration::from_secs(3));
        assert_eq!(told(3600), FIRST_PAUSE);
    }
}
