//! The native dialect, that of text-generation-inference (TGI): `POST /generate`,
//! `POST /generate_stream` and `POST /`, with `session_id` and `overflow` added.
//!
//! | module | what it is for |
//! |---|---|
//! | [`request`] | the body, and how it becomes requests to the engine |
//! | [`answer`] | the objects of the answer, and its renderer |
//!
//! Nothing here may reach into the engine: generations run in [`super::generation`].

pub(super) mod answer;
pub(super) mod request;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use self::answer::{GenerateAnswer, NativeRenderer};
use self::request::GenerateBody;
use super::app::App;
use super::body::JsonBody;
use super::documented_errors::{NativeErrors, NativeSessionErrors};
use super::error::ApiError;
use super::layers::Scope;
use super::respond::respond;
use super::stream_schema::GenerateEvent;

/// Form of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Object,
    List,
    Stream,
}

/// Generate text
///
/// Returns one JSON object, or with `"stream": true` the server-sent events of `/generate_stream`.
#[utoipa::path(
    post,
    path = "/generate",
    tag = "native",
    request_body = GenerateBody,
    params(("X-Session-Id" = Option<String>, Header, description = "Session of the request, if the body has no `session_id`", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The text, or its events", content(
            (GenerateAnswer = "application/json"),
            (GenerateEvent = "text/event-stream"),
        ), headers(("X-Skald-Session-Reset" = Option<String>, description = "`history-lost` if the session starts anew because its stored history could not be read"))),
        NativeErrors,
        NativeSessionErrors,
    ),
)]
pub(super) async fn generate(
    State(app): State<App>,
    scope: Scope,
    JsonBody(body): JsonBody<GenerateBody>,
) -> Result<Response, ApiError> {
    answer(&app, &scope, body, Form::Object).await
}

/// Generate text as a stream
///
/// Returns server-sent events, `data: {event}`: one per token, the last with `generated_text` and, if
/// requested, `details`. Concatenating the `text` of all tokens that are not special gives the whole
/// text; a token that ends within a character has an empty `text`, and the token that completes the
/// character has it whole. If the generation fails after the stream has begun, the last event is
/// `data: {"error", "error_type"}`. A silent stream sends `: keep-alive`. Disconnecting cancels the
/// request. `stream` in the body is ignored.
#[utoipa::path(
    post,
    path = "/generate_stream",
    tag = "native",
    request_body = GenerateBody,
    params(("X-Session-Id" = Option<String>, Header, description = "Session of the request, if the body has no `session_id`", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The events", content(
            (GenerateEvent = "text/event-stream", example = json!("data: {\"index\":1,\"token\":{\"id\":444,\"text\":\" there\",\"logprob\":-0.51,\"special\":false},\"generated_text\":null,\"details\":null}\n\ndata: {\"index\":2,\"token\":{\"id\":306,\"text\":\" was\",\"logprob\":-0.12,\"special\":false},\"generated_text\":\" there was\",\"details\":null}\n\n")),
        ), headers(("X-Skald-Session-Reset" = Option<String>, description = "`history-lost` if the session starts anew because its stored history could not be read"))),
        NativeErrors,
        NativeSessionErrors,
    ),
)]
pub(super) async fn generate_stream(
    State(app): State<App>,
    scope: Scope,
    JsonBody(body): JsonBody<GenerateBody>,
) -> Result<Response, ApiError> {
    answer(&app, &scope, body, Form::Stream).await
}

/// Generate text (hosted inference endpoints' path)
///
/// Like `/generate`, but without `"stream": true` the answer is a list with one element.
#[utoipa::path(
    post,
    path = "/",
    tag = "native",
    request_body = GenerateBody,
    params(("X-Session-Id" = Option<String>, Header, description = "Session of the request, if the body has no `session_id`", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The text, or its events", content(
            (Vec<GenerateAnswer> = "application/json"),
            (GenerateEvent = "text/event-stream"),
        ), headers(("X-Skald-Session-Reset" = Option<String>, description = "`history-lost` if the session starts anew because its stored history could not be read"))),
        NativeErrors,
        NativeSessionErrors,
    ),
)]
pub(super) async fn root(
    State(app): State<App>,
    scope: Scope,
    JsonBody(body): JsonBody<GenerateBody>,
) -> Result<Response, ApiError> {
    answer(&app, &scope, body, Form::List).await
}

async fn answer(
    app: &App,
    scope: &Scope,
    body: GenerateBody,
    form: Form,
) -> Result<Response, ApiError> {
    let (serving, in_flight) = app.begin(scope.share)?;
    let form = if body.stream == Some(true) {
        Form::Stream
    } else {
        form
    };
    let (submission, options) = body.prepare(&serving, scope, form == Form::Stream).await?;
    let tokenizer = Arc::clone(&serving.tokenizer);
    let renderer = NativeRenderer::new(tokenizer, options, &submission, form);
    respond(app, in_flight, &serving, submission, scope, renderer).await
}
