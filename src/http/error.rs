//! The only place where an error becomes an HTTP answer.
//!
//! Handlers of every dialect fail with an [`ApiError`]. It leaves the handler as a response
//! extension; [`render`], the layer around all routes, knows the path and so the dialect, and
//! writes the body: OpenAI's error object under `/v1`, TGI's `{error, error_type}` elsewhere.
//! In a stream that has begun, the dialect sends [`ApiError::openai`] or [`ApiError::native_event`]
//! as its last event. Nothing else may choose a status.

mod constructors;
mod conversions;
mod kind;
pub(super) mod render;
mod shown;

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use self::kind::{INCOMPLETE, Kind};
pub(super) use self::shown::{shown, shown_within};

/// A failed request, before any dialect.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(super) struct ApiError {
    kind: Kind,
    message: String,
    /// The field at fault.
    param: Option<String>,
    /// Suggested delay before a retry, if it depends on more than the kind.
    retry_after: Option<Duration>,
}

/// OpenAI's error object.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"error": {"message": "`top_p` must be above 0 and at most 1, got 2", "type": "invalid_request_error", "param": "top_p", "code": null}}))]
pub(super) struct OpenAiError {
    /// The error.
    error: OpenAiErrorBody,
}

/// The error, for humans and programs.
#[derive(Debug, Serialize, ToSchema)]
struct OpenAiErrorBody {
    /// Message for humans: names field, value and limit.
    message: String,
    /// `invalid_request_error`, `rate_limit_exceeded` or `server_error`.
    r#type: &'static str,
    /// The invalid field, if there is exactly one.
    param: Option<String>,
    /// Code for programs: `context_length_exceeded`, `model_not_found`, `not_found`,
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
    /// Message for humans: names field, value and limit.
    error: String,
    /// Code for programs: `validation`, `not_found`, `method_not_allowed`, `timeout`, `too_large`,
    /// `conflict`, `session_limit`, `session_state_unknown`, `overloaded`, `unavailable`,
    /// `generation`, `incomplete_generation`, `host_not_allowed`, `origin_not_allowed`,
    /// `priority_not_allowed`, `connection_limit`, `unauthorized`, `insufficient_scope`,
    /// `rate_limited` or `internal`.
    error_type: &'static str,
}
impl ApiError {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: shown::message(message.into()),
            param: None,
            retry_after: None,
        }
    }

    /// Returns the error object of the OpenAI dialect.
    pub(super) fn openai(&self) -> OpenAiError {
        let answer = self.kind.answer();
        OpenAiError {
            error: OpenAiErrorBody {
                message: self.message.clone(),
                r#type: answer.openai_type(),
                param: self.param.clone(),
                code: answer.code,
            },
        }
    }

    /// Returns the error object of the TGI dialect.
    pub(super) fn native(&self) -> NativeError {
        NativeError {
            error: self.message.clone(),
            error_type: self.kind.answer().native_type,
        }
    }

    /// Returns the error object of the TGI dialect in a stream that has begun. All errors that end a stream
    /// early have the same type there, because it is too late for the client to try another server.
    pub(super) fn native_event(&self) -> NativeError {
        let cut_short = matches!(self.kind, Kind::Draining | Kind::Unavailable);
        NativeError {
            error_type: if cut_short {
                INCOMPLETE
            } else {
                self.kind.answer().native_type
            },
            ..self.native()
        }
    }

    /// Returns the answer in the dialect of `path`.
    fn answer(&self, path: &str) -> Response {
        let mut response = if path == "/v1" || path.starts_with("/v1/") {
            (self.kind.answer().status, Json(self.openai())).into_response()
        } else {
            (self.kind.answer().native_status, Json(self.native())).into_response()
        };
        if let Some(after) = self.retry_after() {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
            // Official OpenAI clients read this header first.
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
            // A retry would repeat a turn that may have been stored, or a request past its deadline.
            let headers = response.headers_mut();
            let name = HeaderName::from_static("x-should-retry");
            headers.insert(name, HeaderValue::from_static("false"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// Returns a placeholder that [`render`] replaces.
    fn into_response(self) -> Response {
        let mut response = self.kind.answer().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
/// Returns a duration in seconds, rounded up.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_not_as_long_as_the_request() {
        let error = ApiError::invalid(&"k".repeat(1 << 20), "m".repeat(1 << 20));
        assert_eq!(error.message.chars().count(), 1001);
        assert_eq!(error.param.map(|param| param.chars().count()), Some(201));
    }

    #[test]
    fn a_retry_delay_is_rounded_up() {
        let busy = ApiError::busy("busy", Duration::from_millis(2100)).answer("/");
        assert_eq!(busy.headers()[header::RETRY_AFTER], "3");
        assert_eq!(busy.headers()["retry-after-ms"], "2100");
    }
}
