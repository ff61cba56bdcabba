//! Failures of requests, and their counts.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Maximum length of a message, which the report shows as an example.
const MAX_MESSAGE_CHARS: usize = 300;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestFailure {
    /// The kind, by which failures are counted.
    pub kind: FailureKind,
    /// Message of the server or the client.
    pub message: String,
    /// The server's `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// The kinds by which failures are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FailureKind {
    /// The connection failed, or broke before the response began.
    Connection,
    /// The status was not 200.
    Status(u16),
    /// The response was not an event stream.
    NoStream,
    /// The stream reported an error.
    InStream,
    /// The stream ended before the response was complete.
    BrokenOff,
    /// The request took longer than `--timeout`.
    TimedOut,
}

impl RequestFailure {
    /// Creates a failure, truncating a long message.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if let Some((at, _)) = message.char_indices().nth(MAX_MESSAGE_CHARS) {
            message.truncate(at);
            message.push('…');
        }
        Self {
            kind,
            message,
            retry_after: None,
        }
    }

    /// Wraps an error of the HTTP client, with its causes.
    pub fn of_client(kind: FailureKind, error: reqwest::Error) -> Self {
        // All requests have the same URL.
        Self::new(kind, with_causes(&error.without_url()))
    }
}

/// Counts of the failures of a run by kind, with the first message of each. Failures are not kept one
/// by one, since a server can refuse thousands of requests per second.
#[derive(Debug, Default)]
pub(super) struct FailureCounts(BTreeMap<FailureKind, (usize, String)>);

impl FailureCounts {
    /// Counts a failure.
    pub fn add(&mut self, failure: RequestFailure) {
        self.0.entry(failure.kind).or_insert((0, failure.message)).0 += 1;
    }

    /// Returns the number of failures of all kinds.
    pub fn total(&self) -> usize {
        self.0.values().map(|(count, _)| count).sum()
    }

    /// Returns the number of failures with status 429.
    pub fn rejected(&self) -> usize {
        let rejected = self.0.iter().filter(|(kind, _)| kind.is_rejection());
        rejected.map(|(_, (count, _))| count).sum()
    }

    /// Returns the kinds with count and first message, most frequent first.
    pub fn most_frequent(&self) -> Vec<(FailureKind, usize, &str)> {
        let kinds = self.0.iter();
        let mut kinds: Vec<_> = kinds
            .map(|(&kind, (count, message))| (kind, *count, message.as_str()))
            .collect();
        kinds.sort_by_key(|&(_, count, _)| std::cmp::Reverse(count));
        kinds
    }
}

impl FailureKind {
    /// Returns whether the server refused the request because of its load (429).
    pub fn is_rejection(self) -> bool {
        self == Self::Status(429)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection => f.write_str("connection"),
            Self::Status(status) => write!(f, "HTTP {status}"),
            Self::NoStream => f.write_str("no event stream"),
            Self::InStream => f.write_str("error in the stream"),
            Self::BrokenOff => f.write_str("stream broke off"),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// Joins the messages of an error and its causes, leaving out those that only repeat.
fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_truncated_between_characters() {
        let failure = RequestFailure::new(FailureKind::NoStream, "ä".repeat(1000));
        assert_eq!(failure.message.chars().count(), MAX_MESSAGE_CHARS + 1);
        assert_eq!(
            RequestFailure::new(FailureKind::NoStream, "short").message,
            "short"
        );
    }

    #[test]
    fn failures_are_counted_by_kind_with_the_first_message() {
        let mut counts = FailureCounts::default();
        for (status, message) in [(429, "busy"), (500, "oh"), (400, "long"), (500, "ah")] {
            counts.add(RequestFailure::new(FailureKind::Status(status), message));
        }
        assert_eq!((counts.total(), counts.rejected()), (4, 1));
        assert_eq!(
            counts.most_frequent()[0],
            (FailureKind::Status(500), 2, "oh")
        );
    }

    #[test]
    fn only_429_is_a_rejection() {
        assert!(FailureKind::Status(429).is_rejection());
        assert!(!FailureKind::Status(503).is_rejection());
        assert!(!FailureKind::Connection.is_rejection());
    }
}
