//! Why a request was not answered in full.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Longer messages are cut: they are shown as examples.
const MAX_MESSAGE_CHARS: usize = 300;

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// How failures are counted.
    pub kind: FailureKind,
    /// What was said.
    pub message: String,
    /// When the server says to come back.
    pub retry_after: Option<Duration>,
}

/// How failures are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FailureKind {
    /// There is no connection, or it broke before the answer began.
    Connection,
    /// Another status than 200.
    Status(u16),
    /// The answer is no stream of events.
    NoStream,
    /// The stream told of an error.
    InStream,
    /// The stream ended before the answer did.
    BrokenOff,
    /// It took longer than `--timeout`.
    TimedOut,
}

impl Failure {
    /// A failure; of a long message the beginning.
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

    /// The client's own error, with its causes.
    pub fn of_client(kind: FailureKind, error: reqwest::Error) -> Self {
        // The address is the same for all.
        Self::new(kind, with_causes(&error.without_url()))
    }
}

/// All failures of a run, counted, with the first message of each kind: a server that refuses
/// everything does so thousands of times a second.
#[derive(Debug, Default)]
pub(super) struct FailureCounts(BTreeMap<FailureKind, (usize, String)>);

impl FailureCounts {
    /// Counts one.
    pub fn add(&mut self, failure: Failure) {
        self.0.entry(failure.kind).or_insert((0, failure.message)).0 += 1;
    }

    /// Of all kinds.
    pub fn total(&self) -> usize {
        self.0.values().map(|(count, _)| count).sum()
    }

    /// With status 429.
    pub fn rejected(&self) -> usize {
        let rejected = self.0.iter().filter(|(kind, _)| kind.is_rejection());
        rejected.map(|(_, (count, _))| count).sum()
    }

    /// Kinds with count and first message, the most frequent first.
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
    /// Refused because too much is asked of the server (429).
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

/// An error and what caused it, as one line; a cause that only repeats is left out.
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
    fn a_long_message_is_cut_between_characters() {
        let failure = Failure::new(FailureKind::NoStream, "ä".repeat(1000));
        assert_eq!(failure.message.chars().count(), MAX_MESSAGE_CHARS + 1);
        assert_eq!(
            Failure::new(FailureKind::NoStream, "short").message,
            "short"
        );
    }

    #[test]
    fn failures_are_counted_by_kind_with_the_first_message() {
        let mut counts = FailureCounts::default();
        for (status, message) in [(429, "busy"), (500, "oh"), (400, "long"), (500, "ah")] {
            counts.add(Failure::new(FailureKind::Status(status), message));
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
