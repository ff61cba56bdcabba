//! Server-sent events: how a stream of answers goes over the wire.
//!
//! A stream that is silent for a while sends a comment. Headers tell caches and proxies to pass
//! every event on at once. What an event says is
//! the dialects' business, by way of [`Writer`].

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use super::app::InFlight;
use super::error::ApiError;
use super::generation::{Step, TextGeneration, merge};
use super::outcome::{Outcome, StreamEnd};

/// An event whose data is `value` as JSON.
pub(super) fn json(value: &impl Serialize) -> Event {
    Event::default().json_data(value).unwrap_or_else(|error| {
        // Only a map with keys that are no strings could do that; there is none.
        tracing::error!(%error, "an event could not be written as JSON");
        Event::default().comment("an event could not be written")
    })
}

/// The answer that sends the events of `generations` as they come; `keep_alive` is the longest
/// silence. Its body owns the generations, so dropping it cancels them, and `in_flight`, so a drain
/// waits for its end.
pub(super) fn respond<W: Writer>(
    generations: Vec<TextGeneration>,
    writer: W,
    in_flight: InFlight,
    keep_alive: Duration,
) -> Response {
    let end = StreamEnd::default();
    let events = events(generations, writer, in_flight, end.clone());
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

/// How a dialect writes the steps of its generations as events.
pub(super) trait Writer: Send + 'static {
    /// The events for one step of the generation with this index.
    fn step(&mut self, index: usize, step: Result<Step, ApiError>) -> Vec<Event>;

    /// Whether the last event of the stream has been written.
    fn done(&self) -> bool;
}

/// The stream of all events of `generations`.
fn events<W: Writer>(
    generations: Vec<TextGeneration>,
    writer: W,
    in_flight: InFlight,
    end: StreamEnd,
) -> impl Stream<Item = Event> + Send {
    let state = (merge(generations), writer, in_flight, end);
    stream::unfold(
        state,
        |(mut steps, mut writer, in_flight, end)| async move {
            if writer.done() {
                return None;
            }
            let (index, step) = steps.next().await?;
            if let Err(error) = &step {
                end.note(error.outcome());
            }
            let events = writer.step(index, step);
            if writer.done() {
                end.note(Outcome::Success);
            }
            Some((stream::iter(events), (steps, writer, in_flight, end)))
        },
    )
    .flatten()
}
