//! How a request to an API endpoint ended: exactly one outcome for each, counted and told to its trace
//! when its answer's last byte was handed to the connection or the client went away.
//!
//! A status says how an answer began; a stream can fail after a 200, and a client can leave before
//! the end. So [`observe`], the layer around all routes, wraps the body. Probes and `/metrics` are
//! neither counted nor traced. Nothing here may change an answer.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::app::App;
use super::metrics::Observations;
use super::request_trace::RequestTrace;
use super::stall::Reader;

/// What is asked every few seconds by orchestrators and Prometheus.
pub(super) const PROBES: [&str; 5] = ["/livez", "/readyz", "/health", "/ping", "/metrics"];
/// What paths without a route are counted as, so that clients can't make up labels.
const OTHER: &str = "other";

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The whole answer was sent.
    Success,
    /// The client went away before it was.
    Cancelled,
    /// The client stopped reading before it was.
    Stalled,
    /// The request was at fault: a 4xx but 429.
    ClientError,
    /// A queue was full: 429.
    Overloaded,
    /// A limit of the request's API key was reached: 429.
    RateLimited,
    /// The model is loading, or the server stops: 503.
    Unavailable,
    /// A fault of the server, or a generation that failed.
    ServerError,
}

impl Outcome {
    /// All of them.
    pub(super) const ALL: [Self; 8] = [
        Self::Success,
        Self::Cancelled,
        Self::Stalled,
        Self::ClientError,
        Self::Overloaded,
        Self::RateLimited,
        Self::Unavailable,
        Self::ServerError,
    ];

    /// Its name in `/metrics`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Cancelled => "cancelled",
            Self::Stalled => "stalled",
            Self::ClientError => "client_error",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::ServerError => "server_error",
        }
    }

    /// Creates the outcome of an answer with this status whose body is sent whole.
    pub(super) fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::TOO_MANY_REQUESTS => Self::Overloaded,
            StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable,
            status if status.is_client_error() => Self::ClientError,
            status if status.is_server_error() => Self::ServerError,
            _ => Self::Success,
        }
    }
}

/// Where a stream notes its outcome with its last event: an extension of its response. Clients close
/// the connection when they have read that event, not when the body ends.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamEnd(Arc<OnceLock<Outcome>>);

impl StreamEnd {
    /// Notes an outcome, if it is the first one.
    pub(super) fn note(&self, outcome: Outcome) {
        let _ = self.0.set(outcome);
    }

    /// Returns whether the last event was made.
    pub(super) fn is_noted(&self) -> bool {
        self.0.get().is_some()
    }

    fn noted(&self) -> Option<Outcome> {
        self.0.get().copied()
    }
}

/// Returns the layer that counts each request once, by the template of its route.
pub(super) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let endpoint = request.extensions().get::<MatchedPath>();
    // As in the API description, which has no wildcards: `/v1/models/{id}`.
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

/// A request that is still to be counted: as cancelled if it is dropped before it ended.
struct Pending {
    observations: Arc<Observations>,
    endpoint: String,
    /// Its span ends with this, after the generations in the body have.
    trace: RequestTrace,
    /// Whether its client reads.
    reader: Option<Reader>,
    /// What the stream itself notes comes first.
    stream: StreamEnd,
    counted: bool,
}

impl Pending {
    /// Counts the request, if it was not counted before.
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

/// The body of an answer, watched to its end.
struct Observed {
    body: Body,
    pending: Pending,
    /// The outcome if it is sent whole.
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
            // Counted before the last frame goes out: after it the connection need not ask again,
            // and the client may look at `/metrics`.
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
