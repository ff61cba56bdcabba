//! Submits the requests of one HTTP request and answers in the endpoint's dialect, at once or as a stream.
//!
//! What an answer looks like is the dialects' business, by way of [`Renderer`]. Nothing here may know a
//! wire format.

use axum::response::Response;
use axum::response::sse::Event;
use futures_util::future::try_join_all;

use super::app::{App, InFlight};
use super::error::ApiError;
use super::generation::{CompletedGeneration, GenerationStep, Submission, TextGeneration};
use super::layers::Scope;
use super::{session_reset, sse};
use crate::serving::Serving;

/// How an endpoint renders what its generations report.
pub(super) trait Renderer: Send + 'static {
    /// Returns whether the request asks for a stream.
    fn streams(&self) -> bool;

    /// Renders one step of the generation with this index.
    fn step(&mut self, generation: usize, step: GenerationStep) -> Vec<Event>;

    /// Renders the error that ends a stream.
    fn error(&self, error: &ApiError) -> Event;

    /// Returns whether the last event of the stream has been rendered.
    fn is_done(&self) -> bool;

    /// Renders the answer to a request that does not stream.
    ///
    /// # Errors
    /// If there is nothing to answer with, which is a fault of the server.
    fn whole(self, generations: Vec<CompletedGeneration>) -> Result<Response, ApiError>;
}

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
    scope.trace.asks(&serving.info.id, requests, per_prompt);
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
