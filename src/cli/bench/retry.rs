//! Retries requests after transient failures, as OpenAI's clients do: after half a second, doubling with
//! each attempt, or after the server's `Retry-After`.
//!
//! An interrupted stream is also retried from its beginning. OpenAI's clients leave that to the
//! application, which may have used part of the stream; a load has no such application.

use std::time::{Duration, Instant};

use super::client::Target;
use super::dialect::BodyOptions;
use super::request_failure::{FailureKind, RequestFailure};
use super::timeline::Answered;
use super::workload::RequestSpec;

/// Pause before the first retry.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Longest `Retry-After` that is followed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The outcome of a request.
pub(super) struct Outcome {
    /// Result of the last attempt.
    pub result: Result<Answered, RequestFailure>,
    /// Attempts after the first.
    pub retries: u32,
}

/// Sends a request, with up to `most` retries. Latencies count from the first attempt, or from
/// `arrival`.
pub(super) async fn stream(
    target: &Target,
    spec: &RequestSpec,
    options: &BodyOptions,
    arrival: Option<Instant>,
    most: u32,
) -> Outcome {
    let began = Instant::now();
    let mut retries = 0;
    loop {
        let origin = arrival.or((retries > 0).then_some(began));
        let result = target.stream(spec, options, origin).await;
        let failure = match result {
            Err(failure) if retries < most && is_transient(failure.kind) => failure,
            result => return Outcome { result, retries },
        };
        tokio::time::sleep(pause(&failure, retries)).await;
        retries += 1;
    }
}

/// Returns whether another attempt may succeed.
fn is_transient(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Connection | FailureKind::InStream | FailureKind::BrokenOff => true,
        FailureKind::Status(status) => matches!(status, 408 | 409 | 429 | 500..),
        FailureKind::NoStream | FailureKind::TimedOut => false,
    }
}

/// Returns the pause before the next attempt, after `retries` retries.
fn pause(failure: &RequestFailure, retries: u32) -> Duration {
    let requested = failure
        .retry_after
        .filter(|&after| after <= LONGEST_RETRY_AFTER);
    requested.unwrap_or_else(|| {
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(retries));
        pause.min(LONGEST_PAUSE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_errors_and_timeouts_are_not_retried() {
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
    fn pauses_double_unless_the_server_sends_retry_after() {
        let failure = |retry_after| RequestFailure {
            retry_after,
            ..RequestFailure::new(FailureKind::Status(503), "away")
        };
        let pauses = [0, 1, 2, 9].map(|retries| pause(&failure(None), retries));
        assert_eq!(
            pauses.map(|pause| pause.as_millis()),
            [500, 1000, 2000, 8000]
        );
        let requested = |seconds| pause(&failure(Some(Duration::from_secs(seconds))), 0);
        assert_eq!(requested(3), Duration::from_secs(3));
        assert_eq!(requested(3600), FIRST_PAUSE);
    }
}
