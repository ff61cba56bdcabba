//! The layer that renders errors in the dialect of the path.

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;

use super::ApiError;
use crate::http::app::App;

/// Renders errors in the dialect of the path; the layer around all routes. Errors quote the input of
/// clients, so only their kind is logged, unless prompts may be logged.
pub(in crate::http) async fn render(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        // Handlers' own answers with such a status are JSON (such as that of `/health`).
        None if (status.is_client_error() || status.is_server_error()) && !is_json(&response) => {
            ApiError::foreign(status)
        }
        None => return response,
    };
    let mut answer = error.answer(&path);
    answer.extensions_mut().insert(error.outcome());
    // Headers of inner layers: `Allow`, and the rest of a key's limits.
    let mut kept = std::mem::take(response.headers_mut());
    for of_the_body in [header::CONTENT_LENGTH, header::CONTENT_TYPE] {
        kept.remove(of_the_body);
    }
    answer.headers_mut().extend(kept);
    let status = answer.status().as_u16();
    if answer.status().is_server_error() {
        tracing::warn!(status, %error, "request failed");
    } else {
        let said = app.config().log_prompts;
        let said = said.then_some(tracing::field::display(&error));
        let (kind, param) = (error.kind, error.param.as_deref());
        tracing::debug!(status, ?kind, param, error = said, "request refused");
    }
    answer
}

fn is_json(response: &Response) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}
