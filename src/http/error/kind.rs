//! Kinds of failure: what each of them is in the two dialects, how it is counted, and when to come back.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};

use super::ApiError;
use crate::http::outcome::Outcome;
use crate::keys::{KeyScope, LimitKind};

/// When to come back where requests queue up.
const RETRY_BUSY: Duration = Duration::from_secs(1);
/// When to come back where the model is still being loaded.
const RETRY_LOADING: Duration = Duration::from_secs(5);
/// When to come back where the session database is away.
const RETRY_DATABASE: Duration = Duration::from_secs(2);
/// When to come back to a server that is going away: another one may have its place.
const RETRY_GONE: Duration = Duration::from_secs(10);
/// TGI's name for a generation that was cut short.
pub(super) const INCOMPLETE: &str = "incomplete_generation";

/// What kind of failure it is; decides status, type and code in both dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    BrokenBody,
    /// Its client went away before it was whole.
    CutBody,
    BrokenHead,
    ForeignHost,
    ForeignOrigin,
    NoKey,
    InvalidKey,
    MissingScope(KeyScope),
    /// A limit of the key, which time makes room under.
    KeyLimit(LimitKind),
    /// A prompt with more tokens than the key gets in a minute.
    PromptBeyondLimit,
    NoPlace,
    Invalid,
    ContextLength,
    ModelNotFound,
    PriorityNotAllowed,
    NotFound,
    MethodNotAllowed,
    Timeout,
    Deadline,
    TooLarge,
    SessionBusy,
    SessionExists,
    SessionLimit,
    SessionTakenOver,
    SessionUnknown,
    SessionsAway,
    Busy,
    QueueTimeout,
    Loading,
    Draining,
    Unavailable,
    Generation,
    Incomplete,
    Internal,
}

impl ApiError {
    /// Status, type and code as OpenAI has them.
    pub(super) fn openai_kind(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self.kind {
            Kind::BrokenBody | Kind::BrokenHead | Kind::CutBody | Kind::Invalid => {
                (StatusCode::BAD_REQUEST, INVALID, None)
            }
            Kind::ForeignHost => (StatusCode::FORBIDDEN, INVALID, Some("host_not_allowed")),
            Kind::ForeignOrigin => (StatusCode::FORBIDDEN, INVALID, Some("origin_not_allowed")),
            Kind::NoKey | Kind::InvalidKey => {
                (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key"))
            }
            Kind::MissingScope(_) => (StatusCode::FORBIDDEN, INVALID, Some("insufficient_scope")),
            Kind::PromptBeyondLimit => (
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID,
                Some("token_limit_exceeded"),
            ),
            Kind::NoPlace => (
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Some("connection_limit"),
            ),
            Kind::ContextLength => (
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("context_length_exceeded"),
            ),
            Kind::ModelNotFound => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            Kind::PriorityNotAllowed => {
                (StatusCode::FORBIDDEN, INVALID, Some("priority_not_allowed"))
            }
            Kind::NotFound => (StatusCode::NOT_FOUND, INVALID, Some("not_found")),
            Kind::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                Some("method_not_allowed"),
            ),
            Kind::Timeout => (
                StatusCode::REQUEST_TIMEOUT,
                INVALID,
                Some("request_timeout"),
            ),
            Kind::Deadline => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("timeout")),
            Kind::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID,
                Some("request_too_large"),
            ),
            Kind::SessionBusy => (StatusCode::CONFLICT, INVALID, Some("session_busy")),
            Kind::SessionExists => (StatusCode::CONFLICT, INVALID, Some("session_exists")),
            Kind::SessionLimit => (StatusCode::FORBIDDEN, INVALID, Some("session_limit")),
            Kind::SessionTakenOver => (StatusCode::CONFLICT, INVALID, Some("session_taken_over")),
            Kind::SessionUnknown => (
                StatusCode::INTERNAL_SERVER_ERROR,
                SERVER,
                Some("session_state_unknown"),
            ),
            Kind::SessionsAway => (
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Some("session_store_unavailable"),
            ),
            Kind::Busy | Kind::KeyLimit(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_exceeded",
                Some("rate_limit_exceeded"),
            ),
            Kind::QueueTimeout => (
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Some("queue_timeout"),
            ),
            Kind::Loading => (
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Some("model_loading"),
            ),
            Kind::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Some("shutting_down"),
            ),
            Kind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("unavailable")),
            Kind::Generation | Kind::Incomplete => (
                StatusCode::INTERNAL_SERVER_ERROR,
                SERVER,
                Some("generation_failed"),
            ),
            Kind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, None),
        }
    }

    /// Status and type as TGI has them.
    pub(super) fn native_kind(&self) -> (StatusCode, &'static str) {
        match self.kind {
            Kind::BrokenBody | Kind::BrokenHead | Kind::CutBody => {
                (StatusCode::BAD_REQUEST, "validation")
            }
            Kind::ForeignHost => (StatusCode::FORBIDDEN, "host_not_allowed"),
            Kind::ForeignOrigin => (StatusCode::FORBIDDEN, "origin_not_allowed"),
            Kind::NoKey | Kind::InvalidKey => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Kind::MissingScope(_) => (StatusCode::FORBIDDEN, "insufficient_scope"),
            Kind::KeyLimit(_) => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Kind::NoPlace => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit"),
            Kind::Invalid | Kind::ContextLength => (StatusCode::UNPROCESSABLE_ENTITY, "validation"),
            Kind::Generation => (StatusCode::FAILED_DEPENDENCY, "generation"),
            Kind::SessionBusy | Kind::SessionExists | Kind::SessionTakenOver => {
                (StatusCode::CONFLICT, "conflict")
            }
            Kind::SessionUnknown => (StatusCode::INTERNAL_SERVER_ERROR, "session_state_unknown"),
            Kind::SessionLimit => (StatusCode::FORBIDDEN, "session_limit"),
            Kind::PriorityNotAllowed => (StatusCode::FORBIDDEN, "priority_not_allowed"),
            Kind::Busy => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
            Kind::ModelNotFound | Kind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Kind::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Kind::Timeout | Kind::Deadline => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            Kind::QueueTimeout => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Kind::TooLarge | Kind::PromptBeyondLimit => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large")
            }
            Kind::Loading | Kind::Draining | Kind::Unavailable | Kind::SessionsAway => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
            Kind::Incomplete => (StatusCode::INTERNAL_SERVER_ERROR, INCOMPLETE),
            Kind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// What a request that fails like this is counted as, whenever it does.
    pub(in crate::http) fn outcome(&self) -> Outcome {
        match self.kind {
            Kind::CutBody => Outcome::Cancelled,
            Kind::KeyLimit(_) => Outcome::RateLimited,
            _ => Outcome::of(self.openai_kind().0),
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        if self.retry_after.is_some() {
            return self.retry_after;
        }
        match self.kind {
            Kind::Busy
            | Kind::KeyLimit(_)
            | Kind::NoPlace
            | Kind::QueueTimeout
            | Kind::SessionBusy
            | Kind::SessionTakenOver => Some(RETRY_BUSY),
            Kind::SessionsAway => Some(RETRY_DATABASE),
            Kind::Loading => Some(RETRY_LOADING),
            Kind::Draining | Kind::Unavailable => Some(RETRY_GONE),
            _ => None,
        }
    }

    /// Why the key of a request was refused, as `/metrics` counts it.
    pub(in crate::http) fn refused_key(&self) -> Option<&'static str> {
        Some(match self.kind {
            Kind::NoKey => "missing",
            Kind::InvalidKey => "invalid",
            Kind::MissingScope(_) => "scope",
            Kind::KeyLimit(LimitKind::Requests) => "requests_per_minute",
            Kind::KeyLimit(LimitKind::Concurrent) => "concurrent_requests",
            Kind::KeyLimit(LimitKind::Tokens) | Kind::PromptBeyondLimit => "tokens_per_minute",
            _ => return None,
        })
    }

    /// What a client is asked for that showed no key, or the wrong one (RFC 6750).
    pub(super) fn challenge(&self) -> Option<HeaderValue> {
        let challenge = match self.kind {
            Kind::NoKey => r#"Bearer realm="skald""#.to_owned(),
            Kind::InvalidKey => r#"Bearer realm="skald", error="invalid_token""#.to_owned(),
            Kind::MissingScope(scope) => format!(
                r#"Bearer realm="skald", error="insufficient_scope", scope="{}""#,
                scope.as_str()
            ),
            _ => return None,
        };
        HeaderValue::from_str(&challenge).ok()
    }
}
