//! The error responses of each kind of path, as the API description lists them. `error.rs` creates them.

use utoipa::IntoResponses;

use super::error::{NativeError, OpenAiError};

/// The errors of paths under `/v1`.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum OpenAiErrors {
    /// The body is not JSON, or a field has a wrong type or value (`context_length_exceeded`: the
    /// prompt and the requested tokens do not fit the model's context)
    #[response(status = 400)]
    Invalid(OpenAiError),
    /// The model, path or session does not exist (`model_not_found`, `not_found`)
    #[response(status = 404)]
    NotFound(OpenAiError),
    /// The body did not arrive in time, or the answer was not complete within the request's `timeout`
    #[response(status = 408)]
    Timeout(OpenAiError),
    /// The body is too large, or the prompt has more tokens than the API key's limit per minute
    /// (`token_limit_exceeded`)
    #[response(status = 413)]
    TooLarge(OpenAiError),
    /// Too many requests are waiting, the request would wait too long, or too much input is being
    /// parsed, tokenized or compiled; see `Retry-After`
    #[response(status = 429)]
    Busy(OpenAiError),
    /// Generation failed, or it is unknown whether the session has stored the turn
    /// (`session_state_unknown`)
    #[response(status = 500)]
    Failed(OpenAiError),
    /// The model is being loaded, the server is shutting down, the request waited too long for its place
    /// (`queue_timeout`), the inference worker is stuck, or the session database is unavailable
    /// (`session_store_unavailable`); see `Retry-After`
    #[response(status = 503)]
    Unavailable(OpenAiError),
}

/// The errors of paths under `/v1` that do not generate.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum OpenAiLookupErrors {
    /// The name is not a valid session name
    #[response(status = 400)]
    Invalid(OpenAiError),
    /// The model or session does not exist
    #[response(status = 404)]
    NotFound(OpenAiError),
    /// The disk or the session database failed
    #[response(status = 500)]
    Failed(OpenAiError),
    /// The model is being loaded, or the session database is unavailable
    /// (`session_store_unavailable`); see `Retry-After`
    #[response(status = 503)]
    Unavailable(OpenAiError),
}

/// Further errors of paths under `/v1` that change a session.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum SessionErrors {
    /// The API key has reached its maximum number of sessions (`session_limit`)
    #[response(status = 403)]
    Limit(OpenAiError),
    /// Another request is using the session (`session_busy`), a session with this name exists
    /// (`session_exists`), or another server took over the session during the turn, which was
    /// discarded (`session_taken_over`)
    #[response(status = 409)]
    Conflict(OpenAiError),
}

/// The errors of all other paths that only report on the server.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum NativeLookupErrors {
    /// The server failed
    #[response(status = 500)]
    Failed(NativeError),
    /// The model is being loaded; see `Retry-After`
    #[response(status = 503)]
    Unavailable(NativeError),
}

/// Further errors of all other paths that can continue a session.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum NativeSessionErrors {
    /// The API key has reached its maximum number of sessions (`session_limit`)
    #[response(status = 403)]
    Limit(NativeError),
    /// Another request is using the session, or another server took it over during the turn, which was
    /// discarded
    #[response(status = 409)]
    Conflict(NativeError),
}

/// The errors of all other paths.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum NativeErrors {
    /// The body is not JSON
    #[response(status = 400)]
    Broken(NativeError),
    /// The body did not arrive in time, or the answer was not complete within the request's `timeout`
    #[response(status = 408)]
    Timeout(NativeError),
    /// The body is too large, or the prompt has more tokens than the API key's limit per minute
    #[response(status = 413)]
    TooLarge(NativeError),
    /// A field has a wrong type or value
    #[response(status = 422)]
    Invalid(NativeError),
    /// Generation failed
    #[response(status = 424)]
    Generation(NativeError),
    /// Too many requests are waiting, the request would wait too long, or too much input is being
    /// parsed, tokenized or compiled; see `Retry-After`
    #[response(status = 429)]
    Busy(NativeError),
    /// The server failed, or it is unknown whether the session has stored the turn
    /// (`session_state_unknown`)
    #[response(status = 500)]
    Failed(NativeError),
    /// The model is being loaded, the server is shutting down, the request waited too long for its place
    /// (`overloaded`), the inference worker is stuck, or the session database is unavailable; see
    /// `Retry-After`
    #[response(status = 503)]
    Unavailable(NativeError),
}

/// The errors of paths that read a body but do not generate.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum NativeBodyErrors {
    /// The body is not JSON
    #[response(status = 400)]
    Broken(NativeError),
    /// The requested model is not served
    #[response(status = 404)]
    NotFound(NativeError),
    /// The body did not arrive in time
    #[response(status = 408)]
    Timeout(NativeError),
    /// The body is too large
    #[response(status = 413)]
    TooLarge(NativeError),
    /// A field has a wrong type or value
    #[response(status = 422)]
    Invalid(NativeError),
    /// Too much input is being tokenized; see `Retry-After`
    #[response(status = 429)]
    Busy(NativeError),
    /// The model is being loaded; see `Retry-After`
    #[response(status = 503)]
    Unavailable(NativeError),
}
