//! What wraps every request: its name, its trace, its span in the log.
//!
//! Each answer carries `X-Request-Id`: the client's own if it sent one that is fit to be logged,
//! a new one otherwise. The span bears it too, and the id of the trace, so every log line of the
//! request does, also those written while the answer is streamed.

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
/// The longest `X-Request-Id` taken over from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// The name a request has in logs and in its answer.
#[derive(Clone)]
struct ShownId(RequestId);

/// What a generating handler needs to know of the request besides its body.
pub(super) struct Scope {
    /// The name of the request.
    pub id: RequestId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The tenant whose share of the server it uses.
    pub share: Tenant,
    /// Permission for a `priority` below 0.
    pub may_prioritize: bool,
    /// Its trace.
    pub trace: RequestTrace,
    /// Admission of what is to be done for it outside the engine.
    pub admission: Admission,
    /// What its tokens are counted by.
    pub meter: Meter,
    session: Option<HeaderValue>,
}

impl Scope {
    /// Returns the session of the request: `session_id` of the body, else the `X-Session-Id` header (set
    /// by clients behind a proxy that routes by it).
    pub(super) fn session(&self, body: Option<&str>) -> Result<Option<SessionKey>, ApiError> {
        let header = self.session.as_ref().map(HeaderValue::as_bytes);
        let header = header.map(String::from_utf8_lossy);
        let name = body.or(header.as_deref());
        name.map(|name| self.session_key(name)).transpose()
    }

    /// Returns the priority of a request with this `priority` field.
    ///
    /// # Errors
    /// If it is out of range, or below 0 without the permission.
    pub(super) fn priority(&self, given: Option<i64>) -> Result<i32, ApiError> {
        let priority = priority(given)?;
        if priority < 0 && !self.may_prioritize {
            return Err(ApiError::priority_not_allowed(priority));
        }
        Ok(priority)
    }

    /// Returns the tenant's session of this name.
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

/// Returns the outermost layer: names the request, begins its trace, and puts the name on the answer.
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

/// Short, and of characters that mean nothing to a terminal, a log parser or a shell.
fn is_loggable(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@/+=".contains(c);
    !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.chars().all(allowed)
}

/// Returns the span of a request in the log. Its level is that of errors, so that no filter that lets a line
/// through takes the request's name off it.
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

/// Logs how a request was answered; probes, which come every few seconds, at a lower level.
pub(super) fn answered(response: &HttpResponse<Body>, latency: Duration, _: &Span) {
    let status = response.status().as_u16();
    let latency_ms = latency.as_secs_f64() * 1e3;
    tracing::debug!(status, latency_ms, "answered");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_plain_names_are_taken_over() {
        assert!(is_loggable("req-1:a.b/c=@"));
        assert!(!is_loggable(""));
        assert!(!is_loggable(&"a".repeat(129)));
        assert!(!is_loggable("a b"));
        assert!(!is_loggable("a\u{1b}[31m"));
    }
}
