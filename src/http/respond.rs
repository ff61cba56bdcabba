//! Submits the engine's requests of one HTTP request, and answers as a whole or as a stream.
//!
//! The [`Renderer`] decides the format of the answer. This module must not know a wire format.

use axum::response::Response;
use futures_util::future::try_join_all;

use super::app::{App, InFlight};
use super::error::ApiError;
use super::generation::{Submission, TextGeneration};
use super::layers::Scope;
use super::renderer::Renderer;
use super::{session_reset, sse};
use crate::serving::Serving;

/// Runs the requests of `submission` and renders the answer.
///
/// # Errors
/// The engine's refusal, or a generation's failure before the answer has begun.
pub(super) async fn respond<R: Renderer>(
    app: &App,
    in_flight: InFlight,
    serving: &Serving,
    submission: Submission,
    scope: &Scope,
    renderer: R,
) -> Result<Response, ApiError> {
    let (requests, per_prompt) = (&submission.requests, submission.per_prompt);
    let model = requests.first().map(|request| serving.name_of(request));
    let model = model.unwrap_or(&serving.info.id);
    scope.trace.asks(model, requests, per_prompt);
    let charge = scope.meter.take_prompts(requests, per_prompt)?;
    let history_lost = submission.history_lost();
    let generations = TextGeneration::start_all(app, serving, submission, scope).await?;
    charge.keep();
    let response = if renderer.streams() {
        sse::respond(generations, renderer, in_flight, app.config().keep_alive)
    } else {
        let completed = generations.into_iter().map(TextGeneration::complete);
        renderer.whole(try_join_all(completed).await?)?
    };
    Ok(session_reset::tell(response, history_lost))
}
