//! The errors that handlers and layers make themselves, each with its message.

use std::any::Any;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::shown::SHOWN;
use super::{ApiError, Kind, shown};
use crate::keys::KeyScope;

impl ApiError {
    /// Too much work of one kind is pending.
    pub(in crate::http) fn busy(message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(Kind::Busy, message)
        }
    }

    /// A field that is out of range, of the wrong type, or does not go with another.
    pub(in crate::http) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(shown(field)),
            ..Self::new(Kind::Invalid, message)
        }
    }

    /// A body that is not JSON at all.
    pub(in crate::http) fn broken_body(message: impl Into<String>) -> Self {
        Self::new(Kind::BrokenBody, message)
    }

    /// A body that ended before it was whole: its client went away.
    pub(in crate::http) fn cut_body() -> Self {
        let message = "the request body ended before it was complete";
        Self::new(Kind::CutBody, message)
    }

    /// A head that HTTP does not allow.
    pub(in crate::http) fn broken_head(message: impl Into<String>) -> Self {
        Self::new(Kind::BrokenHead, message)
    }

    /// A host that is not one of the server's, and whether the setting for others takes it.
    pub(in crate::http) fn foreign_host(host: &str, can_be_allowed: bool) -> Self {
        let advice = advice("--allowed-host", host, can_be_allowed);
        let message = format!("requests to the host {:?} are refused{advice}", shown(host));
        Self::new(Kind::ForeignHost, message)
    }

    /// A page of an origin that may not call the server, and whether the setting for others takes it.
    pub(in crate::http) fn foreign_origin(origin: &str, can_be_allowed: bool) -> Self {
        let advice = advice("--cors-origin", origin, can_be_allowed);
        let origin = shown(origin);
        let message = format!("requests from pages of the origin {origin:?} are refused{advice}");
        Self::new(Kind::ForeignOrigin, message)
    }

    /// A request without a key to a server that checks them.
    pub(in crate::http) fn no_key() -> Self {
        Self::new(
            Kind::NoKey,
            "this server needs an API key; send it as `Authorization: Bearer KEY` or as \
             `X-Api-Key: KEY`",
        )
    }

    /// A key that is not one of the server's. Says neither the key nor what is wrong with it.
    pub(in crate::http) fn invalid_key() -> Self {
        Self::new(
            Kind::InvalidKey,
            "the API key is not valid; it may be mistyped or revoked",
        )
    }

    /// A key that may not do what was asked.
    pub(in crate::http) fn missing_scope(scope: KeyScope) -> Self {
        Self::new(
            Kind::MissingScope(scope),
            format!("this API key lacks the scope `{}`", scope.as_str()),
        )
    }

    /// A connection beyond those that are served.
    pub(in crate::http) fn no_place() -> Self {
        Self::new(
            Kind::NoPlace,
            "connection limit reached (`--max-connections`); retry later",
        )
    }

    /// A body that is larger than `limit`.
    pub(in crate::http) fn too_large(limit: bytesize::ByteSize) -> Self {
        Self::new(
            Kind::TooLarge,
            format!(
                "the request body is larger than the limit of {limit} ({} bytes, `--max-body`)",
                limit.as_u64()
            ),
        )
    }

    /// A body that did not arrive in time.
    pub(in crate::http) fn timeout(limit: Duration) -> Self {
        Self::new(
            Kind::Timeout,
            format!("the request body did not arrive within {limit:?}"),
        )
    }

    /// A request that was not answered before its own deadline.
    pub(in crate::http) fn past_deadline(timeout: Duration) -> Self {
        Self {
            param: Some("timeout".to_owned()),
            ..Self::new(
                Kind::Deadline,
                format!("the request was not answered within its `timeout` of {timeout:?}"),
            )
        }
    }

    /// A model this server does not serve.
    pub(in crate::http) fn model_not_found(asked: &str, served: &str) -> Self {
        Self {
            param: Some("model".to_owned()),
            ..Self::new(
                Kind::ModelNotFound,
                format!(
                    "the model {:?} is not available; this server serves {served:?}",
                    shown(asked)
                ),
            )
        }
    }

    /// A priority that requires a permission.
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

    /// Something addressed by the path that is not there.
    pub(in crate::http) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// A path that exists, but not with this method.
    pub(in crate::http) fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(Kind::MethodNotAllowed, message)
    }

    /// The model is not there yet.
    pub(in crate::http) fn loading() -> Self {
        Self::new(Kind::Loading, "the model is being loaded")
    }

    /// The server is about to stop.
    pub(in crate::http) fn draining() -> Self {
        Self::new(Kind::Draining, "the server is shutting down")
    }

    /// The model will not be there.
    pub(in crate::http) fn failed(why: &str) -> Self {
        Self::new(
            Kind::Unavailable,
            format!("the model could not be loaded: {why}"),
        )
    }

    /// The inference worker is gone.
    pub(in crate::http) fn worker_gone() -> Self {
        Self::new(
            Kind::Unavailable,
            "the inference worker has stopped; the server must be restarted",
        )
    }

    /// The inference worker has work and makes no step.
    pub(in crate::http) fn worker_stalled(silence: Duration, limit: Duration) -> Self {
        Self::new(
            Kind::Unavailable,
            format!(
                "the inference worker has work and has made no step for {:.1}s (limit {limit:?}, `--watchdog-timeout`); the server must be restarted",
                silence.as_secs_f64()
            ),
        )
    }

    /// A fault of the server itself; the log has the details.
    pub(in crate::http) fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// An answer for a panic in a handler, for the layer that catches them.
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

    /// An error answer that did not come from us (a path that is not UTF-8, say).
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

/// Returns how requests are served that are refused now. A value that is too long to be repeated can't be
/// advised.
fn advice(flag: &str, value: &str, can_be_allowed: bool) -> String {
    if can_be_allowed && value.len() <= SHOWN {
        format!("; to serve them, start the server with {flag} {value}")
    } else {
        String::new()
    }
}
