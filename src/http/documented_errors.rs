//! The error responses of each kind of path, as the contract describes them. `error.rs` makes them.

use utoipa::IntoResponses;

use super::error::{NativeError, OpenAiError};

/// The errors of paths under `/v1`.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum OpenAiErrors {
    /// The body is not JSON, or a field has a wrong type or value (`context_length_exceeded`: the
    /// prompt and what is to follow it do not fit the model's context)
    #[response(status = 400)]
    Invalid(OpenAiError),
    /// `model_not_found`, or no such path or session
    #[response(status = 404)]
    NotFound(OpenAiError),
    /// The body did not arrive in time, or the answer was not there within the request's `timeout`
    #[response(status = 408)]
    Timeout(OpenAiError),
    /// The body is too large, or the prompt has more tokens than the API key gets in a minute
    /// (`token_limit_exceeded`)
    #[response(status = 413)]
    TooLarge(OpenAiError),
    /// Too many requests are waiting, the request would wait too long, or too much is being parsed, tokenized or compiled; see
    /// `Retry-After`
    #[response(status = 429)]
    Busy(OpenAiError),
    /// Generation failed, or it is not known whether a session has kept the turn
    /// (`session_state_unknown`)
    #[response(status = 500)]
    Failed(OpenAiError),
    /// The model is being loaded, the server shuts down, the request has waited too long for its place
    /// (`queue_timeout`), the inference worker is stuck, or the database of sessions is away
    /// (`session_store_unavailable`); see `Retry-After`
    #[response(status = 503)]
    Unavailable(OpenAiError),
}

/// The errors of paths under `/v1` that do not generate.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum OpenAiLookupErrors {
    /// The name is not one a session can have
    #[response(status = 400)]
    Invalid(OpenAiError),
    /// There is no such model or session
    #[response(status = 404)]
    NotFound(OpenAiError),
    /// The disk or the database of sessions failed
    #[response(status = 500)]
    Failed(OpenAiError),
    /// The model is being loaded, or the database of sessions is away
    /// (`session_store_unavailable`); see `Retry-After`
    #[response(status = 503)]
    Unavailable(OpenAiError),
}

/// The errors of paths under `/v1` that change a session, beside the others.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum SessionErrors {
    /// This API key has as many sessions as it may have (`session_limit`)
    #[response(status = 403)]
    Limit(OpenAiError),
    /// Another request is on the session (`session_busy`), there is one of that name already
    /// (`session_exists`), or another server took the session in the middle of the turn, which is
    /// not kept (`session_taken_over`)
    #[response(status = 409)]
    Conflict(OpenAiError),
}

/// The errors of all other paths that only tell of the server.
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

/// The errors of all other paths that can go on with a session, beside the others.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described; `error.rs` makes them")]
pub(super) enum NativeSessionErrors {
    /// This API key has as many sessions as it may have (`session_limit`)
    #[response(status = 403)]
    Limit(NativeError),
    /// Another request is on the session, or another server took it in the middle of the turn, which
    /// is not kept
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
    /// The body did not arrive in time, or the answer was not there within the request's `timeout`
    #[response(status = 408)]
    Timeout(NativeError),
    /// The body is too large, or the prompt has more tokens than the API key gets in a minute
    #[response(status = 413)]
    TooLarge(NativeError),
    /// A field has a wrong type or value
    #[response(status = 422)]
    Invalid(NativeError),
    /// Generation failed
    #[response(status = 424)]
    Generation(NativeError),
    /// Too many requests are waiting, the request would wait too long, or too much is being parsed, tokenized or compiled; see
    /// `Retry-After`
    #[response(status = 429)]
    Busy(NativeError),
    /// The server failed, or it is not known whether a session has kept the turn
    /// (`session_state_unknown`)
    #[response(status = 500)]
    Failed(NativeError),
    /// The model is being loaded, the server shuts down, the request has waited too long for its place
    /// (`overloaded`), the inference worker is stuck, or the database of sessions is away; see
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
    /// The model named is not the one served
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
    /// Too much is being tokenized already; see `Retry-After`
    #[response(status = 429)]
    Busy(NativeError),
    /// The model is being loaded; see `Retry-After`
    #[response(status = 503)]
    Unavailable(NativeError),
}
