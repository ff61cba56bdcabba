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

/// An event whose data is `value` as JSON.
pub(super) fn json(value: &impl Serialize) -> Event {
    Event::default().json_data(value).unwrap_or_else(|error| {
        // Only a map with keys that are no strings could do that; there is none.
        tracing::error!(%error, "an event could not be written as JSON");
        Event::default().comment("an event could not be written")
    })
}

/// The answer that sends `events` as they come; `keep_alive` is the longest silence.
pub(super) fn respond<S>(events: S, keep_alive: Duration) -> Response
where
    S: Stream<Item = Event> + Send + 'static,
{
    let comments = KeepAlive::new().interval(keep_alive).text("keep-alive");
    let mut response = Sse::new(events.map(Ok::<_, Infallible>))
        .keep_alive(comments)
        .into_response();
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

/// The stream of all events of `generations`. It owns them, so dropping it cancels them, and
/// `in_flight`, so a drain waits for its end.
pub(super) fn events<W: Writer>(
    generations: Vec<TextGeneration>,
    writer: W,
    in_flight: InFlight,
) -> impl Stream<Item = Event> + Send {
    let state = (merge(generations), writer, in_flight);
    stream::unfold(state, |(mut steps, mut writer, in_flight)| async move {
        if writer.done() {
            return None;
        }
        let (index, step) = steps.next().await?;
        let events = writer.step(index, step);
        Some((stream::iter(events), (steps, writer, in_flight)))
    })
    .flatten()
}
