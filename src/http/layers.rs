//! Layers around every request: its id, its trace, its span in the log.
//!
//! Each answer has an `X-Request-Id`: the client's own if it can safely be logged, otherwise a new one. The
//! span has this id and that of the trace, so all log lines of the request have them, including those
//! written while the answer is streamed.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Response as HttpResponse};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Level, Span};

use super::admission::Admission;
use super::app::App;
use super::error::ApiError;
use super::fields::priority;
use super::keys::{self, Meter};
use super::request_trace::RequestTrace;
use crate::request::{RequestId, SessionId, Tenant};
use crate::session::SessionKey;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
/// Maximum bytes of an `X-Request-Id` that is accepted from a client.
const MAX_REQUEST_ID: usize = 128;

/// The id of a request in logs and in its answer.
#[derive(Clone)]
struct ShownId(RequestId);

/// The context of a generating request besides its body.
pub(super) struct Scope {
    /// Id of the request.
    pub id: RequestId,
    /// Tenant that owns the request's sessions.
    pub tenant: Tenant,
    /// Tenant whose share of the server the request uses.
    pub share: Tenant,
    /// Whether the request may set a `priority` below 0.
    pub may_prioritize: bool,
    /// Trace of the request.
    pub trace: RequestTrace,
    /// Admission for the request's work outside the engine.
    pub admission: Admission,
    /// Counter of the request's tokens.
    pub meter: Meter,
    session: Option<HeaderValue>,
}

impl Scope {
    /// Returns the session of the request: `session_id` of the body, otherwise the `X-Session-Id` header
    /// (for proxies that route by it).
    pub(super) fn session(&self, body: Option<&str>) -> Result<Option<SessionKey>, ApiError> {
        let header = self.session.as_ref().map(HeaderValue::as_bytes);
        let header = header.map(String::from_utf8_lossy);
        let name = body.or(header.as_deref());
        name.map(|name| self.session_key(name)).transpose()
    }

    /// Returns the value of the `priority` field.
    ///
    /// # Errors
    /// If it is out of range, or below 0 without permission.
    pub(super) fn priority(&self, given: Option<i64>) -> Result<i32, ApiError> {
        let priority = priority(given)?;
        if priority < 0 && !self.may_prioritize {
            return Err(ApiError::priority_not_allowed(priority));
        }
        Ok(priority)
    }

    /// Returns the key of the tenant's session with this name.
    pub(super) fn session_key(&self, name: &str) -> Result<SessionKey, ApiError> {
        Ok(SessionKey {
            tenant: self.tenant,
            id: SessionId::parse(name)?,
        })
    }
}

impl FromRequestParts<App> for Scope {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let shown = parts.extensions.get::<ShownId>();
        let meter = Meter::of(&parts.extensions);
        let share = meter.share();
        Ok(Self {
            id: shown.map_or_else(RequestId::random, |shown| shown.0.clone()),
            tenant: keys::tenant(&parts.headers, &meter)?,
            share,
            trace: parts.extensions.get().cloned().unwrap_or_default(),
            admission: app.admission(share),
            may_prioritize: meter.may_prioritize(),
            meter,
            session: parts.headers.get(SESSION_ID).cloned(),
        })
    }
}

/// Gives the request an id, begins its trace, and adds the id to the answer; the outermost layer.
pub(super) async fn name_request(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Response {
    let given = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|given| given.to_str().ok())
        .filter(|given| is_loggable(given));
    let id = given.map_or_else(RequestId::random, RequestId::new);
    let trace = RequestTrace::begin(app.tracer(), &request, &id);
    let extensions = request.extensions_mut();
    extensions.insert(ShownId(id.clone()));
    extensions.insert(trace);
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Returns whether an id is short, and without special characters of terminals, log parsers and shells.
fn is_loggable(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@/+=".contains(c);
    !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.chars().all(allowed)
}

/// Returns the span of a request in the log. Its level is `error`, so that a filter that shows a line also
/// shows the request's id.
pub(super) fn span(request: &Request<Body>) -> Span {
    let id = request.extensions().get::<ShownId>();
    let trace = request.extensions().get::<RequestTrace>();
    let trace_id = trace.and_then(RequestTrace::id);
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>();
    tracing::span!(
        Level::ERROR,
        "request",
        id = id.map(|shown| tracing::field::display(shown.0.clone())),
        trace_id = trace_id.map(tracing::field::display),
        method = %request.method(),
        path = request.uri().path(),
        client = client.map(|client| tracing::field::display(client.0)),
        key = tracing::field::Empty,
    )
}

/// Logs the status and latency of an answer; those of probes, which arrive every few seconds, at a lower
/// level.
pub(super) fn answered(response: &HttpResponse<Body>, latency: Duration, _: &Span) {
    let status = response.status().as_u16();
    let latency_ms = latency.as_secs_f64() * 1e3;
    tracing::debug!(status, latency_ms, "request answered");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_plain_ids_are_accepted() {
        assert!(is_loggable("req-1:a.b/c=@"));
        assert!(!is_loggable(""));
        assert!(!is_loggable(&"a".repeat(129)));
        assert!(!is_loggable("a b"));
        assert!(!is_loggable("a\u{1b}[31m"));
    }
}
