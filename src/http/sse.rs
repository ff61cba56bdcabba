//! Sends streamed answers as server-sent events.
//!
//! A silent stream sends comments. Headers tell caches and proxies to forward every event immediately. The
//! content of events is up to the dialect's [`Renderer`].

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use super::app::InFlight;
use super::generation::{TextGeneration, merge};
use super::outcome::{Outcome, StreamEnd};
use super::renderer::Renderer;

/// Returns an event whose data is `value` as JSON.
pub(super) fn json(value: &impl Serialize) -> Event {
    Event::default().json_data(value).unwrap_or_else(|error| {
        // Fails only for maps whose keys are not strings, which no event has.
        tracing::error!(%error, "event not serialized");
        Event::default().comment("an event could not be written")
    })
}

/// Returns the answer that sends the events of `generations` as they occur, and a comment after each
/// `keep_alive` of silence. Its body owns the generations, so dropping it cancels them, and `in_flight`, so
/// a drain waits for its end.
pub(super) fn respond<R: Renderer>(
    generations: Vec<TextGeneration>,
    renderer: R,
    in_flight: InFlight,
    keep_alive: Duration,
) -> Response {
    let end = StreamEnd::default();
    let events = events(generations, renderer, in_flight, end.clone());
    let comments = KeepAlive::new().interval(keep_alive).text("keep-alive");
    let mut response = Sse::new(events.map(Ok::<_, Infallible>))
        .keep_alive(comments)
        .into_response();
    response.extensions_mut().insert(end);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

/// Returns the stream of all events of `generations`.
fn events<R: Renderer>(
    generations: Vec<TextGeneration>,
    renderer: R,
    in_flight: InFlight,
    end: StreamEnd,
) -> impl Stream<Item = Event> + Send {
    let state = (merge(generations), renderer, in_flight, end);
    stream::unfold(
        state,
        |(mut steps, mut renderer, in_flight, end)| async move {
            if renderer.is_done() || end.is_noted() {
                return None;
            }
            let (index, step) = steps.next().await?;
            let events = match step {
                Ok(step) => renderer.step(index, step),
                Err(error) => {
                    end.note(error.outcome());
                    vec![renderer.error(&error)]
                }
            };
            if renderer.is_done() {
                end.note(Outcome::Success);
            }
            Some((stream::iter(events), (steps, renderer, in_flight, end)))
        },
    )
    .flatten()
}
