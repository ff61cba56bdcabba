//! The layer that checks API keys.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tracing::Span;

use super::limit_headers::tell;
use super::{Meter, Needs, shown};
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::outcome::StreamEnd;
use crate::keys::{Account, KeyScope, Keys, Place};

/// Refuses requests without a valid key, without the route's scope, or beyond the key's limits.
pub(in crate::http) async fn check(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(keys) = &app.access().keys else {
        return next.run(request).await;
    };
    let route = request.extensions().get::<MatchedPath>();
    let needs = Needs::of(request.method(), route.map(MatchedPath::as_str));
    if needs == Needs::Nothing {
        return next.run(request).await;
    }
    let mut response = match authenticate(keys, request.headers(), needs) {
        Err(refused) => refused.into_response(),
        Ok(account) => {
            Span::current().record("key", account.key.name.as_str());
            let limited = needs == Needs::Scope(KeyScope::Generate);
            let place = limited.then(|| account.usage.begin(Instant::now()));
            let mut response = match place.transpose() {
                Err(reached) => ApiError::from(reached).into_response(),
                Ok(place) => {
                    request
                        .extensions_mut()
                        .insert(Meter(Some(Arc::clone(&account))));
                    held(next.run(request).await, place)
                }
            };
            if limited {
                tell(
                    &account.usage.levels(Instant::now()),
                    response.headers_mut(),
                );
            }
            response
        }
    };
    if let Some(reason) = response.extensions().get().and_then(ApiError::refused_key) {
        app.observations().key_refused(reason);
    }
    if needs == Needs::Scope(KeyScope::Generate) {
        // A cache must not give one key's answer to another.
        response.headers_mut().append(
            header::VARY,
            HeaderValue::from_static("authorization, x-api-key"),
        );
    }
    response
}

fn authenticate(keys: &Keys, headers: &HeaderMap, needs: Needs) -> Result<Arc<Account>, ApiError> {
    let shown = shown(headers)?.ok_or_else(ApiError::no_key)?;
    let account = keys.authenticate(shown).ok_or_else(ApiError::invalid_key)?;
    match needs {
        Needs::Scope(scope) if !account.key.has(scope) => Err(ApiError::missing_scope(scope)),
        _ => Ok(account),
    }
}

/// Returns the answer with a body that holds the request's place until it has ended.
fn held(response: Response, place: Option<Place>) -> Response {
    if place.is_none() || response.body().is_end_stream() {
        return response;
    }
    let end = response.extensions().get::<StreamEnd>().cloned();
    response.map(|body| Body::new(BodyWithPlace { body, place, end }))
}

/// Body of an answer that keeps its request's place among the key's concurrent requests.
struct BodyWithPlace {
    body: Body,
    /// `None` once the answer has ended.
    place: Option<Place>,
    /// End of the stream, if the answer is one.
    end: Option<StreamEnd>,
}

impl HttpBody for BodyWithPlace {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let goes_on = matches!(frame, Some(Ok(_)))
            && !self.body.is_end_stream()
            && !self.end.as_ref().is_some_and(StreamEnd::is_noted);
        if !goes_on {
            // Before the last frame is sent: the client can send its next request as soon as it has read it.
            self.place = None;
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
