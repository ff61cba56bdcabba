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
/// TGI's name for a generation that was cut short.
const INCOMPLETE: &str = "incomplete_generation";

/// What kind of failure it is; decides status, type and code in both dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BrokenBody,
    BrokenHead,
    ForeignHost,
    ForeignOrigin,
    NoPlace,
    Invalid,
    ContextLength,
    ModelNotFound,
    NotFound,
    MethodNotAllowed,
    Timeout,
    TooLarge,
    SessionBusy,
    SessionExists,
    SessionLimit,
    SessionTakenOver,
    SessionUnknown,
    SessionsAway,
    Busy,
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
    /// `method_not_allowed`, `request_timeout`, `request_too_large`, `rate_limit_exceeded`,
    /// `session_busy`, `session_exists`, `session_limit`, `session_taken_over`,
    /// `session_state_unknown`, `session_store_unavailable`, `model_loading`,
    /// `shutting_down`, `unavailable`, `generation_failed`, `host_not_allowed`,
    /// `origin_not_allowed`, `connection_limit`, or null.
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
    /// `connection_limit` or `internal`.
    error_type: &'static str,
}

impl ApiError {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
        }
    }

    /// A field that is out of range, of the wrong type, or does not go with another.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(field.to_owned()),
            ..Self::new(Kind::Invalid, message)
        }
    }

    /// A body that is not JSON at all.
    pub(super) fn broken_body(message: impl Into<String>) -> Self {
        Self::new(Kind::BrokenBody, message)
    }

    /// A head that HTTP does not allow.
    pub(super) fn broken_head(message: impl Into<String>) -> Self {
        Self::new(Kind::BrokenHead, message)
    }

    /// A host that is not one of the server's.
    pub(super) fn foreign_host(host: &str) -> Self {
        Self::new(
            Kind::ForeignHost,
            format!(
                "requests to the host {host:?} are refused; to serve them, start the server with \
                 --allowed-host {host}"
            ),
        )
    }

    /// A page of an origin that may not call the server.
    pub(super) fn foreign_origin(origin: &str) -> Self {
        Self::new(
            Kind::ForeignOrigin,
            format!(
                "requests from pages of the origin {origin:?} are refused; to serve them, start the \
                 server with --cors-origin {origin}"
            ),
        )
    }

    /// A connection beyond those that are served.
    pub(super) fn no_place() -> Self {
        Self::new(
            Kind::NoPlace,
            "the server has as many connections as it may have; retry later (--max-connections)",
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

    /// A model this server does not serve.
    pub(super) fn model_not_found(asked: &str, served: &str) -> Self {
        Self {
            param: Some("model".to_owned()),
            ..Self::new(
                Kind::ModelNotFound,
                format!("the model {asked:?} does not exist here; this server serves {served:?}"),
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
        Self::internal("the server failed on this request; its log says more").into_response()
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
            Kind::BrokenBody | Kind::BrokenHead | Kind::Invalid => {
                (StatusCode::BAD_REQUEST, INVALID, None)
            }
            Kind::ForeignHost => (StatusCode::FORBIDDEN, INVALID, Some("host_not_allowed")),
            Kind::ForeignOrigin => (StatusCode::FORBIDDEN, INVALID, Some("origin_not_allowed")),
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
            Kind::Busy => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_exceeded",
                Some("rate_limit_exceeded"),
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
            Kind::BrokenBody | Kind::BrokenHead => (StatusCode::BAD_REQUEST, "validation"),
            Kind::ForeignHost => (StatusCode::FORBIDDEN, "host_not_allowed"),
            Kind::ForeignOrigin => (StatusCode::FORBIDDEN, "origin_not_allowed"),
            Kind::NoPlace => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit"),
            Kind::Invalid | Kind::ContextLength => (StatusCode::UNPROCESSABLE_ENTITY, "validation"),
            Kind::Generation => (StatusCode::FAILED_DEPENDENCY, "generation"),
            Kind::SessionBusy | Kind::SessionExists | Kind::SessionTakenOver => {
                (StatusCode::CONFLICT, "conflict")
            }
            Kind::SessionUnknown => (StatusCode::INTERNAL_SERVER_ERROR, "session_state_unknown"),
            Kind::SessionLimit => (StatusCode::FORBIDDEN, "session_limit"),
            Kind::Busy => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
            Kind::ModelNotFound | Kind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Kind::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Kind::Timeout => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
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
        Outcome::of(self.openai_kind().0)
    }

    fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            Kind::Busy | Kind::NoPlace | Kind::SessionBusy | Kind::SessionTakenOver => {
                Some(RETRY_BUSY)
            }
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
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
            // Official OpenAI clients look at this one first.
            headers.insert(
                HeaderName::from_static("retry-after-ms"),
                HeaderValue::from(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            );
        }
        if self.kind == Kind::SessionUnknown {
            // They would send a turn again that may have been kept.
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
            param: Some(invalid.field),
            ..Self::new(kind, invalid.message)
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let (kind, param) = match &error {
            GenerateError::QueueFull { .. } => (Kind::Busy, None),
            GenerateError::BatchTooSmall { .. } => (Kind::Invalid, Some("best_of")),
            GenerateError::NoCandidates => (Kind::Invalid, Some("logit_bias")),
            GenerateError::KvTooSmall { .. } | GenerateError::Grammar(_) => (Kind::Invalid, None),
            GenerateError::NotFinite | GenerateError::StepFailed(_) => (Kind::Generation, None),
            GenerateError::Incomplete => (Kind::Incomplete, None),
            GenerateError::ShuttingDown => (Kind::Draining, None),
            GenerateError::EngineGone => (Kind::Unavailable, None),
        };
        Self {
            param: param.map(str::to_owned),
            ..Self::new(kind, error.to_string())
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
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
    if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
        answer.headers_mut().insert(header::ALLOW, allow);
    }
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

fn is_json(response: &Response) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}
