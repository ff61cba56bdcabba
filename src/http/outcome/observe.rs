//! The layer that counts each request once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::{OTHER, Outcome, PROBES, StreamEnd};
use crate::http::app::App;
use crate::http::metrics::Observations;
use crate::http::request_trace::RequestTrace;
use crate::http::stall::Reader;

/// Counts each request once, by the template of its route.
pub(in crate::http) async fn observe(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Response {
    let endpoint = request.extensions().get::<MatchedPath>();
    // Written as in the API description, which has no wildcards: `/v1/models/{id}`.
    let endpoint = endpoint.map_or(OTHER, MatchedPath::as_str);
    let endpoint = endpoint.replace("{*", "{");
    if PROBES.contains(&endpoint.as_str()) {
        return next.run(request).await;
    }
    let mut pending = Pending {
        observations: Arc::clone(app.observations()),
        endpoint,
        trace: request.extensions().get().cloned().unwrap_or_default(),
        reader: request.extensions().get().cloned(),
        stream: StreamEnd::default(),
        counted: false,
    };
    let has_body = request.method() != Method::HEAD;
    let mut response = next.run(request).await;
    pending.trace.answered(response.status());
    let extensions = response.extensions_mut();
    if let Some(stream) = extensions.remove::<StreamEnd>() {
        pending.stream = stream;
    }
    let outcome = extensions.remove::<Outcome>();
    let outcome = outcome.unwrap_or_else(|| Outcome::of(response.status()));
    if !has_body || response.body().is_end_stream() {
        pending.end(outcome);
        return response;
    }
    response.map(|body| {
        Body::new(Observed {
            body,
            pending,
            outcome,
        })
    })
}

/// A request that has not been counted yet; counted as cancelled if dropped before its end.
struct Pending {
    observations: Arc<Observations>,
    endpoint: String,
    /// Trace of the request; its span ends when this is dropped, after those of the generations in the body.
    trace: RequestTrace,
    /// Reports whether the client stopped reading.
    reader: Option<Reader>,
    /// Outcome recorded by the stream, which takes precedence.
    stream: StreamEnd,
    counted: bool,
}

impl Pending {
    /// Counts the request, unless it has been counted.
    fn end(&mut self, outcome: Outcome) {
        if !self.counted {
            self.counted = true;
            let outcome = self.stream.noted().unwrap_or(outcome);
            self.observations.request(&self.endpoint, outcome);
            self.trace.ended(outcome);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end(if std::thread::panicking() {
            Outcome::ServerError
        } else if self.reader.as_ref().is_some_and(Reader::stalled) {
            Outcome::Stalled
        } else {
            Outcome::Cancelled
        });
    }
}

/// The body of an answer, observed to its end.
struct Observed {
    body: Body,
    pending: Pending,
    /// The outcome if the body is sent completely.
    outcome: Outcome,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let outcome = self.outcome;
        match &frame {
            Some(Err(_)) => self.pending.end(Outcome::ServerError),
            // Counted before the last frame is sent: afterwards the connection may not poll again, and the
            // client may read `/metrics`.
            Some(Ok(_)) if self.body.is_end_stream() || self.pending.stream.noted().is_some() => {
                self.pending.end(outcome);
            }
            Some(Ok(_)) => (),
            None => self.pending.end(outcome),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
