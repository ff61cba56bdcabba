//! The one place where an error becomes an HTTP answer.
//!
//! Handlers of every dialect fail with an [`ApiError`]. It leaves the handler as a response
//! extension; [`render`], the layer around all routes, knows the path and so the dialect, and
//! writes the body: OpenAI's error object under `/v1`, TGI's `{error, error_type}` elsewhere.
//! In a stream that has begun, the dialect sends [`ApiError::openai`] or [`ApiError::native_event`]
//! as its last event. Nothing else may decide on a status.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::app::App;
use super::outcome::Outcome;
use crate::engine::GenerateError;
use crate::keys::{KeyScope, LimitKind, LimitReached};
use crate::request::InvalidRequest;
use crate::session::SessionError;
use crate::text::TextError;

/// When to come back where requests queue up.
const RETRY_BUSY: Duration = Duration::from_secs(1);
/// When to come back where the model is still being loaded.
const RETRY_LOADING: Duration = Duration::from_secs(5);
/// When to come back where the session database is away.
const RETRY_DATABASE: Duration = Duration::from_secs(2);
/// When to come back to a server that is going away: another one may have its place.
const RETRY_GONE: Duration = Duration::from_secs(10);
/// Characters of a client's own value that an error repeats.
const SHOWN: usize = 200;
/// Characters of a whole message from its beginning and from its end, if it is longer than both.
const MESSAGE: (usize, usize) = (800, 200);
/// TGI's name for a generation that was cut short.
const INCOMPLETE: &str = "incomplete_generation";

/// What kind of failure it is; decides status, type and code in both dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
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

/// A failed request, before any dialect.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(super) struct ApiError {
    kind: Kind,
    message: String,
    /// The field at fault.
    param: Option<String>,
    /// When to come back, where it depends on more than the kind.
    retry_after: Option<Duration>,
}

/// OpenAI's error object.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"error": {"message": "`top_p` must be above 0 and at most 1, got 2", "type": "invalid_request_error", "param": "top_p", "code": null}}))]
pub(super) struct OpenAiError {
    /// What happened.
    error: OpenAiErrorBody,
}

/// What happened, for people and for programs.
#[derive(Debug, Serialize, ToSchema)]
struct OpenAiErrorBody {
    /// For people: names field, value and limit.
    message: String,
    /// `invalid_request_error`, `rate_limit_exceeded` or `server_error`.
    r#type: &'static str,
    /// The field at fault, if it is one field's.
    param: Option<String>,
    /// For programs: `context_length_exceeded`, `model_not_found`, `not_found`,
    /// `method_not_allowed`, `request_timeout`, `timeout`, `request_too_large`,
    /// `rate_limit_exceeded`, `queue_timeout`, `session_busy`, `session_exists`, `session_limit`, `session_taken_over`,
    /// `session_state_unknown`, `session_store_unavailable`, `model_loading`,
    /// `shutting_down`, `unavailable`, `generation_failed`, `host_not_allowed`,
    /// `origin_not_allowed`, `priority_not_allowed`, `connection_limit`, `invalid_api_key`,
    /// `insufficient_scope`, `token_limit_exceeded`, or null.
    code: Option<&'static str>,
}

/// TGI's error object.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"error": "`top_p` must be above 0 and at most 1, got 2", "error_type": "validation"}))]
pub(super) struct NativeError {
    /// For people: names field, value and limit.
    error: String,
    /// For programs: `validation`, `not_found`, `method_not_allowed`, `timeout`, `too_large`,
    /// `conflict`, `session_limit`, `session_state_unknown`, `overloaded`, `unavailable`,
    /// `generation`, `incomplete_generation`, `host_not_allowed`, `origin_not_allowed`,
    /// `priority_not_allowed`, `connection_limit`, `unauthorized`, `insufficient_scope`,
    /// `rate_limited` or `internal`.
    error_type: &'static str,
}

impl ApiError {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        let (head, tail) = MESSAGE;
        Self {
            kind,
            // Whatever got into it: an answer is not as long as the request.
            message: abridged(message.into(), head, tail),
            param: None,
            retry_after: None,
        }
    }

    /// Too much work of one kind is pending.
    pub(super) fn busy(message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(Kind::Busy, message)
        }
    }

    /// A field that is out of range, of the wrong type, or does not go with another.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(shown(field)),
            ..Self::new(Kind::Invalid, message)
        }
    }

    /// A body that is not JSON at all.
    pub(super) fn broken_body(message: impl Into<String>) -> Self {
        Self::new(Kind::BrokenBody, message)
    }

    /// A body that ended before it was whole: its client went away.
    pub(super) fn cut_body() -> Self {
        let message = "the request body ended before it was complete";
        Self::new(Kind::CutBody, message)
    }

    /// A head that HTTP does not allow.
    pub(super) fn broken_head(message: impl Into<String>) -> Self {
        Self::new(Kind::BrokenHead, message)
    }

    /// A host that is not one of the server's, and whether the setting for others takes it.
    pub(super) fn foreign_host(host: &str, can_be_allowed: bool) -> Self {
        let advice = advice("--allowed-host", host, can_be_allowed);
        let message = format!("requests to the host {:?} are refused{advice}", shown(host));
        Self::new(Kind::ForeignHost, message)
    }

    /// A page of an origin that may not call the server, and whether the setting for others takes it.
    pub(super) fn foreign_origin(origin: &str, can_be_allowed: bool) -> Self {
        let advice = advice("--cors-origin", origin, can_be_allowed);
        let origin = shown(origin);
        let message = format!("requests from pages of the origin {origin:?} are refused{advice}");
        Self::new(Kind::ForeignOrigin, message)
    }

    /// A request without a key to a server that checks them.
    pub(super) fn no_key() -> Self {
        Self::new(
            Kind::NoKey,
            "this server needs an API key; send it as `Authorization: Bearer KEY` or as \
             `X-Api-Key: KEY`",
        )
    }

    /// A key that is not one of the server's. Says neither the key nor what is wrong with it.
    pub(super) fn invalid_key() -> Self {
        Self::new(
            Kind::InvalidKey,
            "the API key is not valid; it may have been revoked or mistyped",
        )
    }

    /// A key that may not do what was asked.
    pub(super) fn missing_scope(scope: KeyScope) -> Self {
        Self::new(
            Kind::MissingScope(scope),
            format!("this API key lacks the scope `{}`", scope.as_str()),
        )
    }

    /// Why the key of a request was refused, as `/metrics` counts it.
    pub(super) fn refused_key(&self) -> Option<&'static str> {
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
    fn challenge(&self) -> Option<HeaderValue> {
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

    /// A connection beyond those that are served.
    pub(super) fn no_place() -> Self {
        Self::new(
            Kind::NoPlace,
            "connection limit reached (`--max-connections`); retry later",
        )
    }

    /// A body that is larger than `limit`.
    pub(super) fn too_large(limit: bytesize::ByteSize) -> Self {
        Self::new(
            Kind::TooLarge,
            format!(
                "the request body is larger than the limit of {limit} ({} bytes)",
                limit.as_u64()
            ),
        )
    }

    /// A body that did not arrive in time.
    pub(super) fn timeout(limit: Duration) -> Self {
        Self::new(
            Kind::Timeout,
            format!("the request body did not arrive within {limit:?}"),
        )
    }

    /// A request that was not answered before its own deadline.
    pub(super) fn past_deadline(timeout: Duration) -> Self {
        Self {
            param: Some("timeout".to_owned()),
            ..Self::new(
                Kind::Deadline,
                format!("the request was not answered within its `timeout` of {timeout:?}"),
            )
        }
    }

    /// A model this server does not serve.
    pub(super) fn model_not_found(asked: &str, served: &str) -> Self {
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
    pub(super) fn priority_not_allowed(priority: i32) -> Self {
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
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// A path that exists, but not with this method.
    pub(super) fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(Kind::MethodNotAllowed, message)
    }

    /// The model is not there yet.
    pub(super) fn loading() -> Self {
        Self::new(Kind::Loading, "the model is being loaded")
    }

    /// The server is about to stop.
    pub(super) fn draining() -> Self {
        Self::new(Kind::Draining, "the server is shutting down")
    }

    /// The model will not be there.
    pub(super) fn failed(why: &str) -> Self {
        Self::new(
            Kind::Unavailable,
            format!("the model could not be loaded: {why}"),
        )
    }

    /// The inference worker is gone.
    pub(super) fn worker_gone() -> Self {
        Self::new(
            Kind::Unavailable,
            "the inference worker has stopped; the server must be restarted",
        )
    }

    /// The inference worker has work and makes no step.
    pub(super) fn worker_stalled(silence: Duration, limit: Duration) -> Self {
        Self::new(
            Kind::Unavailable,
            format!(
                "the inference worker has work and has made no step for {:.1}s (limit {limit:?}, `--watchdog-timeout`); the server must be restarted",
                silence.as_secs_f64()
            ),
        )
    }

    /// A fault of the server itself; the log has the details.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// An answer for a panic in a handler, for the layer that catches them.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the signature of tower-http's panic handlers"
    )]
    pub(super) fn from_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        tracing::error!(panic = what, "a request handler panicked");
        Self::internal("the server failed on this request; see its log").into_response()
    }

    /// An error answer that did not come from us (a path that is not UTF-8, say).
    fn foreign(status: StatusCode) -> Self {
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

    /// Status, type and code as OpenAI has them.
    fn openai_kind(&self) -> (StatusCode, &'static str, Option<&'static str>) {
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
    fn native_kind(&self) -> (StatusCode, &'static str) {
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

    /// The error object of the OpenAI dialect.
    pub(super) fn openai(&self) -> OpenAiError {
        let (_, r#type, code) = self.openai_kind();
        OpenAiError {
            error: OpenAiErrorBody {
                message: self.message.clone(),
                r#type,
                param: self.param.clone(),
                code,
            },
        }
    }

    /// The error object of the TGI dialect.
    pub(super) fn native(&self) -> NativeError {
        NativeError {
            error: self.message.clone(),
            error_type: self.native_kind().1,
        }
    }

    /// The error object of the TGI dialect in a stream that has begun: what cuts it short has one
    /// name there, and it is too late to go elsewhere.
    pub(super) fn native_event(&self) -> NativeError {
        let cut_short = matches!(self.kind, Kind::Draining | Kind::Unavailable);
        NativeError {
            error_type: if cut_short {
                INCOMPLETE
            } else {
                self.native_kind().1
            },
            ..self.native()
        }
    }

    /// What a request that fails like this is counted as, whenever it does.
    pub(super) fn outcome(&self) -> Outcome {
        match self.kind {
            Kind::CutBody => Outcome::Cancelled,
            Kind::KeyLimit(_) => Outcome::RateLimited,
            _ => Outcome::of(self.openai_kind().0),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
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

    /// The whole answer, in the dialect of `path`.
    fn answer(&self, path: &str) -> Response {
        let mut response = if path == "/v1" || path.starts_with("/v1/") {
            (self.openai_kind().0, Json(self.openai())).into_response()
        } else {
            (self.native_kind().0, Json(self.native())).into_response()
        };
        if let Some(after) = self.retry_after() {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
            // Official OpenAI clients look at this one first.
            headers.insert(
                HeaderName::from_static("retry-after-ms"),
                HeaderValue::from(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            );
        }
        if let Some(challenge) = self.challenge() {
            let headers = response.headers_mut();
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if matches!(self.kind, Kind::SessionUnknown | Kind::Deadline) {
            // They would send a turn again that may have been kept, or ask again for what they no
            // longer want.
            let headers = response.headers_mut();
            let name = HeaderName::from_static("x-should-retry");
            headers.insert(name, HeaderValue::from_static("false"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// A placeholder that [`render`] writes out.
    fn into_response(self) -> Response {
        let mut response = self.openai_kind().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<InvalidRequest> for ApiError {
    fn from(invalid: InvalidRequest) -> Self {
        let kind = if invalid.context_length_exceeded {
            Kind::ContextLength
        } else {
            Kind::Invalid
        };
        Self {
            param: Some(shown(&invalid.field)),
            ..Self::new(kind, invalid.message)
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let (kind, param) = match &error {
            GenerateError::QueueFull { .. }
            | GenerateError::QueueTooSlow { .. }
            | GenerateError::Stalled { .. } => (Kind::Busy, None),
            GenerateError::QueueTimeout { .. } => (Kind::QueueTimeout, None),
            GenerateError::BatchTooSmall { .. } => (Kind::Invalid, Some("best_of")),
            GenerateError::NoCandidates => (Kind::Invalid, Some("logit_bias")),
            GenerateError::KvTooSmall { .. } | GenerateError::Grammar(_) => (Kind::Invalid, None),
            GenerateError::NotFinite | GenerateError::StepFailed(_) => (Kind::Generation, None),
            GenerateError::Incomplete => (Kind::Incomplete, None),
            GenerateError::ShuttingDown => (Kind::Draining, None),
            GenerateError::EngineGone => (Kind::Unavailable, None),
        };
        let retry_after = match &error {
            GenerateError::QueueFull { retry_after, .. }
            | GenerateError::QueueTooSlow { retry_after, .. }
            | GenerateError::QueueTimeout { retry_after, .. } => Some(*retry_after),
            _ => None,
        };
        Self {
            param: param.map(str::to_owned),
            retry_after,
            ..Self::new(kind, error.to_string())
        }
    }
}

impl From<LimitReached> for ApiError {
    fn from(reached: LimitReached) -> Self {
        let (kind, retry_after) = match &reached {
            LimitReached::Requests { retry_after, .. } => {
                (Kind::KeyLimit(LimitKind::Requests), Some(*retry_after))
            }
            LimitReached::Tokens { retry_after, .. } => {
                (Kind::KeyLimit(LimitKind::Tokens), Some(*retry_after))
            }
            LimitReached::Concurrent { .. } => (Kind::KeyLimit(LimitKind::Concurrent), None),
            LimitReached::PromptTooLarge { .. } => (Kind::PromptBeyondLimit, None),
        };
        Self {
            retry_after,
            ..Self::new(kind, reached.to_string())
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        if let SessionError::Database(reason) = &error {
            // Not for clients: it names tables and roles.
            tracing::error!(reason, "session database failed");
        }
        let (kind, param) = match &error {
            SessionError::Busy { .. } => (Kind::SessionBusy, Some("session_id")),
            SessionError::TooManyWait { .. } => (Kind::Busy, Some("session_id")),
            SessionError::Limit { .. } => (Kind::SessionLimit, Some("session_id")),
            SessionError::NotFound { .. } => (Kind::NotFound, None),
            SessionError::Exists { .. } => (Kind::SessionExists, Some("id")),
            SessionError::BeyondHistory { field, .. } => (Kind::Invalid, Some(*field)),
            SessionError::TakenOver { .. } => (Kind::SessionTakenOver, Some("session_id")),
            SessionError::Unknown { .. } => (Kind::SessionUnknown, Some("session_id")),
            SessionError::Away { .. } => (Kind::SessionsAway, None),
            SessionError::Disk { .. }
            | SessionError::Panicked { .. }
            | SessionError::Directory { .. }
            | SessionError::Database(_) => (Kind::Internal, None),
            SessionError::Engine(error) => return error.clone().into(),
        };
        Self {
            param: param.map(str::to_owned),
            ..Self::new(kind, error.to_string())
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::Template(error) => Self::invalid("messages", error.to_string()),
            TextError::Load { .. } | TextError::Encode(_) => Self::internal(error.to_string()),
        }
    }
}

/// The layer around all routes that writes errors out in the dialect of the path. Errors quote what
/// clients sent, so the log has their kind only, unless prompts may be logged.
pub(super) async fn render(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        // Our own answers with such a status are JSON (`/health`, say).
        None if (status.is_client_error() || status.is_server_error()) && !is_json(&response) => {
            ApiError::foreign(status)
        }
        None => return response,
    };
    let mut answer = error.answer(&path);
    answer.extensions_mut().insert(error.outcome());
    // What layers within have put on it: `Allow`, and what is left of a key's limits.
    let mut kept = std::mem::take(response.headers_mut());
    for of_the_body in [header::CONTENT_LENGTH, header::CONTENT_TYPE] {
        kept.remove(of_the_body);
    }
    answer.headers_mut().extend(kept);
    let status = answer.status().as_u16();
    if answer.status().is_server_error() {
        tracing::warn!(status, %error, "request failed");
    } else {
        let said = app.config().log_prompts;
        let said = said.then_some(tracing::field::display(&error));
        let (kind, param) = (error.kind, error.param.as_deref());
        tracing::debug!(status, ?kind, param, error = said, "request refused");
    }
    answer
}

/// Returns a duration in seconds, rounded up.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
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

/// Returns the first characters of a value that a client sent.
pub(super) fn shown(value: &str) -> String {
    abridged(value.to_owned(), SHOWN, 0)
}

/// Returns a message about a value that a client sent, the value cut short: what stands before and after
/// it says what was wrong.
pub(super) fn shown_within(message: &str) -> String {
    abridged(message.to_owned(), SHOWN, SHOWN)
}

/// Returns a text without its middle if it has more than `head` and `tail` characters.
fn abridged(text: String, head: usize, tail: usize) -> String {
    let byte = |character: Option<(usize, char)>| character.map_or(text.len(), |(at, _)| at);
    // Where it is ASCII, as most are, its length says whether anything is to be done.
    if text.len() <= head + tail {
        return text;
    }
    let begin = byte(text.char_indices().nth(head));
    let end = match tail {
        0 => text.len(),
        _ => byte(text.char_indices().nth_back(tail - 1)),
    };
    match (text.get(..begin), text.get(end..)) {
        (Some(first), Some(last)) if begin < end => format!("{first}…{last}"),
        _ => text,
    }
}

fn is_json(response: &Response) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_cut_and_what_stands_around_it_stays() {
        assert_eq!(shown("short"), "short");
        assert_eq!(shown(&"é".repeat(200)), "é".repeat(200));
        assert_eq!(shown(&"é".repeat(201)), format!("{}…", "é".repeat(200)));
        let message = format!(
            "`n`: invalid type: string {:?}, expected an integer",
            "x".repeat(1000)
        );
        let cut = shown_within(&message);
        assert!(cut.starts_with("`n`: invalid type: string \"xxx"), "{cut}");
        assert!(cut.ends_with("xxx\", expected an integer"), "{cut}");
        assert_eq!(cut.chars().count(), 401);
        let error = ApiError::invalid(&"k".repeat(1 << 20), "m".repeat(1 << 20));
        assert_eq!(error.message.chars().count(), 1001);
        assert_eq!(error.param.map(|param| param.chars().count()), Some(201));
    }

    #[test]
    fn a_hint_of_its_own_is_rounded_up() {
        let busy = ApiError::busy("busy", Duration::from_millis(2100)).answer("/");
        assert_eq!(busy.headers()[header::RETRY_AFTER], "3");
        assert_eq!(busy.headers()["retry-after-ms"], "2100");
    }
}
