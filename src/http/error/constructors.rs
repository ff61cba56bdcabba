//! The errors that handlers and layers create themselves, each with its message.

use std::any::Any;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::shown::SHOWN;
use super::{ApiError, Kind, shown};
use crate::keys::KeyScope;

impl ApiError {
    /// Creates the error of too much pending work of one kind.
    pub(in crate::http) fn busy(message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(Kind::Busy, message)
        }
    }

    /// Creates the error of a field that is out of range, of the wrong type, or conflicts with another.
    pub(in crate::http) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(shown(field)),
            ..Self::new(Kind::Invalid, message)
        }
    }

    /// Creates the error of a body that is not JSON.
    pub(in crate::http) fn broken_body(message: impl Into<String>) -> Self {
        Self::new(Kind::BrokenBody, message)
    }

    /// Creates the error of a body that ended before it was complete because the client disconnected.
    pub(in crate::http) fn cut_body() -> Self {
        let message = "the request body ended before it was complete";
        Self::new(Kind::CutBody, message)
    }

    /// Creates the error of a head that is not valid HTTP.
    pub(in crate::http) fn broken_head(message: impl Into<String>) -> Self {
        Self::new(Kind::BrokenHead, message)
    }

    /// Creates the error of a foreign host; `can_be_allowed` if `--allowed-host` accepts it.
    pub(in crate::http) fn foreign_host(host: &str, can_be_allowed: bool) -> Self {
        let advice = advice("--allowed-host", host, can_be_allowed);
        let message = format!("requests to the host {:?} are refused{advice}", shown(host));
        Self::new(Kind::ForeignHost, message)
    }

    /// Creates the error of a foreign origin; `can_be_allowed` if `--cors-origin` accepts it.
    pub(in crate::http) fn foreign_origin(origin: &str, can_be_allowed: bool) -> Self {
        let advice = advice("--cors-origin", origin, can_be_allowed);
        let origin = shown(origin);
        let message = format!("requests from pages of the origin {origin:?} are refused{advice}");
        Self::new(Kind::ForeignOrigin, message)
    }

    /// Creates the error of a request without the API key that the server requires.
    pub(in crate::http) fn no_key() -> Self {
        Self::new(
            Kind::NoKey,
            "this server needs an API key; send it as `Authorization: Bearer KEY` or as \
             `X-Api-Key: KEY`",
        )
    }

    /// Creates the error of an unknown API key. The message has neither the key nor the reason.
    pub(in crate::http) fn invalid_key() -> Self {
        Self::new(
            Kind::InvalidKey,
            "the API key is not valid; it may be mistyped or revoked",
        )
    }

    /// Creates the error of an API key without the required scope.
    pub(in crate::http) fn missing_scope(scope: KeyScope) -> Self {
        Self::new(
            Kind::MissingScope(scope),
            format!("this API key lacks the scope `{}`", scope.as_str()),
        )
    }

    /// Creates the error of a connection beyond the limit.
    pub(in crate::http) fn no_place() -> Self {
        Self::new(
            Kind::NoPlace,
            "connection limit reached (`--max-connections`); retry later",
        )
    }

    /// Creates the error of a body larger than `limit`.
    pub(in crate::http) fn too_large(limit: bytesize::ByteSize) -> Self {
        Self::new(
            Kind::TooLarge,
            format!(
                "the request body is larger than the limit of {limit} ({} bytes, `--max-body`)",
                limit.as_u64()
            ),
        )
    }

    /// Creates the error of a body that did not arrive in time.
    pub(in crate::http) fn timeout(limit: Duration) -> Self {
        Self::new(
            Kind::Timeout,
            format!("the request body did not arrive within {limit:?}"),
        )
    }

    /// Creates the error of a request that reached its own deadline.
    pub(in crate::http) fn past_deadline(timeout: Duration) -> Self {
        Self {
            param: Some("timeout".to_owned()),
            ..Self::new(
                Kind::Deadline,
                format!("the request was not answered within its `timeout` of {timeout:?}"),
            )
        }
    }

    /// Creates the error of a request for a model that is not served.
    pub(in crate::http) fn model_not_found(field: &str, asked: &str, served: &str) -> Self {
        Self {
            param: Some(field.to_owned()),
            ..Self::new(
                Kind::ModelNotFound,
                format!(
                    "the model {:?} is not available; this server serves {served}",
                    shown(asked)
                ),
            )
        }
    }

    /// Creates the error of a request that only servers with API keys accept.
    pub(in crate::http) fn needs_keys(what: &str) -> Self {
        Self::new(
            Kind::MissingScope(KeyScope::Admin),
            format!(
                "{what} requires a key with the scope `admin`, and this server runs without keys; see `--keys`"
            ),
        )
    }

    /// Creates the error of a priority that the API key does not permit.
    pub(in crate::http) fn priority_not_allowed(priority: i32) -> Self {
        Self {
            param: Some("priority".to_owned()),
            ..Self::new(
                Kind::PriorityNotAllowed,
                format!(
                    "`priority` must be at least 0 with this API key, got {priority}; negative values require a key created with `--may-prioritize`"
                ),
            )
        }
    }

    /// Creates the error of a path that addresses nothing.
    pub(in crate::http) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Creates the error of a path that does not support the method.
    pub(in crate::http) fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(Kind::MethodNotAllowed, message)
    }

    /// Creates the error of a model that is still being loaded.
    pub(in crate::http) fn loading() -> Self {
        Self::new(Kind::Loading, "the model is being loaded")
    }

    /// Creates the error of a server that is shutting down.
    pub(in crate::http) fn draining() -> Self {
        Self::new(Kind::Draining, "the server is shutting down")
    }

    /// Creates the error of a model that could not be loaded.
    pub(in crate::http) fn failed(why: &str) -> Self {
        Self::new(
            Kind::Unavailable,
            format!("the model could not be loaded: {why}"),
        )
    }

    /// Creates the error of an inference worker that has stopped.
    pub(in crate::http) fn worker_gone() -> Self {
        Self::new(
            Kind::Unavailable,
            "the inference worker has stopped; the server must be restarted",
        )
    }

    /// Creates the error of an inference worker that has work but makes no steps.
    pub(in crate::http) fn worker_stalled(silence: Duration, limit: Duration) -> Self {
        Self::new(
            Kind::Unavailable,
            format!(
                "the inference worker has work and has made no step for {:.1}s (limit {limit:?}, `--watchdog-timeout`); the server must be restarted",
                silence.as_secs_f64()
            ),
        )
    }

    /// Creates the error of a fault of the server; the log has the details.
    pub(in crate::http) fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Returns the answer for a panic in a handler, for the layer that catches panics.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the signature of tower-http's panic handlers"
    )]
    pub(in crate::http) fn from_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        tracing::error!(panic = what, "request handler panicked");
        Self::internal("the server failed on this request; see its log").into_response()
    }

    /// Creates the error for an answer of the HTTP library with an error status, such as for a path that is not UTF-8.
    pub(super) fn foreign(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or("error").to_lowercase();
        let kind = match status {
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Kind::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Kind::Timeout,
            StatusCode::PAYLOAD_TOO_LARGE => Kind::TooLarge,
            status if status.is_client_error() => Kind::BrokenBody,
            _ => Kind::Internal,
        };
        Self::new(kind, reason)
    }
}

/// Returns the advice to start the server with a flag that allows the value, unless the value is too long to
/// repeat.
fn advice(flag: &str, value: &str, can_be_allowed: bool) -> String {
    if can_be_allowed && value.len() <= SHOWN {
        format!("; to serve them, start the server with {flag} {value}")
    } else {
        String::new()
    }
}
