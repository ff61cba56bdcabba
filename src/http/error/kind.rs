//! Kinds of errors: status, type and code of each in both dialects, its outcome in `/metrics`, and when to
//! retry.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};

use super::ApiError;
use crate::http::outcome::Outcome;
use crate::keys::{KeyScope, LimitKind};

/// Suggested delay before a retry where requests are queued.
const RETRY_BUSY: Option<Duration> = Some(Duration::from_secs(1));
/// Suggested delay before a retry while the session database is unreachable.
const RETRY_DATABASE: Option<Duration> = Some(Duration::from_secs(2));
/// Suggested delay before a retry while the model is being loaded.
const RETRY_LOADING: Option<Duration> = Some(Duration::from_secs(5));
/// Suggested delay before a retry where this server is stopping: another one may replace it.
const RETRY_GONE: Option<Duration> = Some(Duration::from_secs(10));
/// TGI's name for a generation that was cut short.
pub(super) const INCOMPLETE: &str = "incomplete_generation";

/// Kind of an error; decides status, type and code in both dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    BrokenBody,
    /// The client disconnected before the body was complete.
    CutBody,
    BrokenHead,
    ForeignHost,
    ForeignOrigin,
    NoKey,
    InvalidKey,
    MissingScope(KeyScope),
    /// A rate limit of the key; a later retry can succeed.
    KeyLimit(LimitKind),
    /// A prompt with more tokens than the key allows per minute; no retry can succeed.
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

/// The answer to one kind of error, in both dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KindAnswer {
    /// Status in the OpenAI dialect.
    pub status: StatusCode,
    /// `code` in the OpenAI dialect.
    pub code: Option<&'static str>,
    /// Status in the TGI dialect.
    pub native_status: StatusCode,
    /// `error_type` in the TGI dialect.
    pub native_type: &'static str,
    /// Suggested delay before a retry, unless the error has its own.
    pub retry_after: Option<Duration>,
}

impl KindAnswer {
    /// Returns `type` in the OpenAI dialect, which depends on the status.
    pub(super) fn openai_type(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_exceeded",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl Kind {
    /// Returns the answer to the kind, from the only table of statuses, types and codes.
    #[rustfmt::skip]
    pub(super) fn answer(self) -> KindAnswer {
        use StatusCode as S;
        let (status, code, native_type, retry_after) = match self {
            // Kind                    Status                      OpenAI's `code`              TGI's `error_type`  Retry after
            Self::BrokenBody
            | Self::BrokenHead
            | Self::CutBody
            | Self::Invalid         => (S::BAD_REQUEST,           "",                          "validation",            None),
            Self::ContextLength     => (S::BAD_REQUEST,           "context_length_exceeded",   "validation",            None),
            Self::NoKey
            | Self::InvalidKey      => (S::UNAUTHORIZED,          "invalid_api_key",           "unauthorized",          None),
            Self::MissingScope(_)   => (S::FORBIDDEN,             "insufficient_scope",        "insufficient_scope",    None),
            Self::ForeignHost       => (S::FORBIDDEN,             "host_not_allowed",          "host_not_allowed",      None),
            Self::ForeignOrigin     => (S::FORBIDDEN,             "origin_not_allowed",        "origin_not_allowed",    None),
            Self::PriorityNotAllowed => (S::FORBIDDEN,            "priority_not_allowed",      "priority_not_allowed",  None),
            Self::SessionLimit      => (S::FORBIDDEN,             "session_limit",             "session_limit",         None),
            Self::ModelNotFound     => (S::NOT_FOUND,             "model_not_found",           "not_found",             None),
            Self::NotFound          => (S::NOT_FOUND,             "not_found",                 "not_found",             None),
            Self::MethodNotAllowed  => (S::METHOD_NOT_ALLOWED,    "method_not_allowed",        "method_not_allowed",    None),
            Self::Timeout           => (S::REQUEST_TIMEOUT,       "request_timeout",           "timeout",               None),
            Self::Deadline          => (S::REQUEST_TIMEOUT,       "timeout",                   "timeout",               None),
            Self::SessionBusy       => (S::CONFLICT,              "session_busy",              "conflict",              RETRY_BUSY),
            Self::SessionExists     => (S::CONFLICT,              "session_exists",            "conflict",              None),
            Self::SessionTakenOver  => (S::CONFLICT,              "session_taken_over",        "conflict",              RETRY_BUSY),
            Self::TooLarge          => (S::PAYLOAD_TOO_LARGE,     "request_too_large",         "too_large",             None),
            Self::PromptBeyondLimit => (S::PAYLOAD_TOO_LARGE,     "token_limit_exceeded",      "too_large",             None),
            Self::Busy              => (S::TOO_MANY_REQUESTS,     "rate_limit_exceeded",       "overloaded",            RETRY_BUSY),
            Self::KeyLimit(_)       => (S::TOO_MANY_REQUESTS,     "rate_limit_exceeded",       "rate_limited",          RETRY_BUSY),
            Self::Generation        => (S::INTERNAL_SERVER_ERROR, "generation_failed",         "generation",            None),
            Self::Incomplete        => (S::INTERNAL_SERVER_ERROR, "generation_failed",         INCOMPLETE,              None),
            Self::SessionUnknown    => (S::INTERNAL_SERVER_ERROR, "session_state_unknown",     "session_state_unknown", None),
            Self::Internal          => (S::INTERNAL_SERVER_ERROR, "",                          "internal",              None),
            Self::NoPlace           => (S::SERVICE_UNAVAILABLE,   "connection_limit",          "connection_limit",      RETRY_BUSY),
            Self::QueueTimeout      => (S::SERVICE_UNAVAILABLE,   "queue_timeout",             "overloaded",            RETRY_BUSY),
            Self::SessionsAway      => (S::SERVICE_UNAVAILABLE,   "session_store_unavailable", "unavailable",           RETRY_DATABASE),
            Self::Loading           => (S::SERVICE_UNAVAILABLE,   "model_loading",             "unavailable",           RETRY_LOADING),
            Self::Draining          => (S::SERVICE_UNAVAILABLE,   "shutting_down",             "unavailable",           RETRY_GONE),
            Self::Unavailable       => (S::SERVICE_UNAVAILABLE,   "unavailable",               "unavailable",           RETRY_GONE),
        };
        // TGI has statuses that OpenAI does not use for requests that are well-formed but not valid, and for
        // failed generations.
        let native_status = match self {
            Self::Invalid | Self::ContextLength => S::UNPROCESSABLE_ENTITY,
            Self::Generation => S::FAILED_DEPENDENCY,
            _ => status,
        };
        let code = (!code.is_empty()).then_some(code);
        KindAnswer { status, code, native_status, native_type, retry_after }
    }
}

impl ApiError {
    /// Returns the outcome that a request with this error is counted as.
    pub(in crate::http) fn outcome(&self) -> Outcome {
        match self.kind {
            Kind::CutBody => Outcome::Cancelled,
            Kind::KeyLimit(_) => Outcome::RateLimited,
            _ => Outcome::of(self.kind.answer().status),
        }
    }

    /// Returns the suggested delay before a retry.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.retry_after.or(self.kind.answer().retry_after)
    }

    /// Returns the reason that `/metrics` counts a refused API key under.
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

    /// Returns the `WWW-Authenticate` challenge to a missing or wrong API key (RFC 6750).
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
