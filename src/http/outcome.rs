//! How a request to an API endpoint ended: exactly one outcome for each, counted and told to its trace
//! when its answer's last byte was handed to the connection or the client went away.
//!
//! A status says how an answer began; a stream can fail after a 200, and a client can leave before
//! the end. So [`observe`](observe::observe), the layer around all routes, wraps the body. Probes and `/metrics` are
//! neither counted nor traced. Nothing here may change an answer.

pub(super) mod observe;

use std::sync::{Arc, OnceLock};

use axum::http::StatusCode;

/// What is asked every few seconds by orchestrators and Prometheus.
pub(super) const PROBES: [&str; 5] = ["/livez", "/readyz", "/health", "/ping", "/metrics"];
/// What paths without a route are counted as, so that clients can't make up labels.
const OTHER: &str = "other";

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The whole answer was sent.
    Success,
    /// The client went away before it was.
    Cancelled,
    /// The client stopped reading before it was.
    Stalled,
    /// The request was at fault: a 4xx but 429.
    ClientError,
    /// A queue was full: 429.
    Overloaded,
    /// A limit of the request's API key was reached: 429.
    RateLimited,
    /// The model is loading, or the server stops: 503.
    Unavailable,
    /// A fault of the server, or a generation that failed.
    ServerError,
}

impl Outcome {
    /// All of them.
    pub(super) const ALL: [Self; 8] = [
        Self::Success,
        Self::Cancelled,
        Self::Stalled,
        Self::ClientError,
        Self::Overloaded,
        Self::RateLimited,
        Self::Unavailable,
        Self::ServerError,
    ];

    /// Returns its name in `/metrics`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Cancelled => "cancelled",
            Self::Stalled => "stalled",
            Self::ClientError => "client_error",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::ServerError => "server_error",
        }
    }

    /// Creates the outcome of an answer with this status whose body is sent whole.
    pub(super) fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::TOO_MANY_REQUESTS => Self::Overloaded,
            StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable,
            status if status.is_client_error() => Self::ClientError,
            status if status.is_server_error() => Self::ServerError,
            _ => Self::Success,
        }
    }
}

/// Where a stream notes its outcome with its last event: an extension of its response. Clients close
/// the connection when they have read that event, not when the body ends.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamEnd(Arc<OnceLock<Outcome>>);

impl StreamEnd {
    /// Notes an outcome, if it is the first one.
    pub(super) fn note(&self, outcome: Outcome) {
        let _ = self.0.set(outcome);
    }

    /// Returns whether the last event was made.
    pub(super) fn is_noted(&self) -> bool {
        self.0.get().is_some()
    }

    fn noted(&self) -> Option<Outcome> {
        self.0.get().copied()
    }
}
