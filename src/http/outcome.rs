//! The outcome of a request to an API endpoint: exactly one per request, counted and recorded in its trace
//! when the last byte of the answer was passed to the connection or the client disconnected.
//!
//! The status only describes the beginning of an answer: a stream can fail after a 200, and a client can
//! disconnect before the end. Therefore [`observe`](observe::observe), the layer around all routes, wraps the
//! body. Probes and `/metrics` are neither counted nor traced. Nothing here may change an answer.

pub(super) mod observe;

use std::sync::{Arc, OnceLock};

use axum::http::StatusCode;

/// Paths that orchestrators and Prometheus request every few seconds.
pub(super) const PROBES: [&str; 5] = ["/livez", "/readyz", "/health", "/ping", "/metrics"];
/// Label of all paths without a route, so that clients can't create labels.
const OTHER: &str = "other";

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The whole answer was sent.
    Success,
    /// The client disconnected before the end of the answer.
    Cancelled,
    /// The client stopped reading before the end of the answer.
    Stalled,
    /// The request was refused: a 4xx other than 429.
    ClientError,
    /// A queue was full: 429.
    Overloaded,
    /// A limit of the request's API key was reached: 429.
    RateLimited,
    /// The model is loading, or the server is stopping: 503.
    Unavailable,
    /// A fault of the server, or a generation that failed.
    ServerError,
}

impl Outcome {
    /// All outcomes.
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

    /// Returns the name in `/metrics`.
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

    /// Returns the outcome of an answer with this status whose body is sent completely.
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

/// The outcome that a stream records with its last event: an extension of its response. Clients close the
/// connection after reading that event, not at the end of the body.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamEnd(Arc<OnceLock<Outcome>>);

impl StreamEnd {
    /// Records an outcome, unless there is one.
    pub(super) fn note(&self, outcome: Outcome) {
        let _ = self.0.set(outcome);
    }

    /// Returns whether the last event has been rendered.
    pub(super) fn is_noted(&self) -> bool {
        self.0.get().is_some()
    }

    fn noted(&self) -> Option<Outcome> {
        self.0.get().copied()
    }
}
