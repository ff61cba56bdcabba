//! The layer that applies the access rules to every request.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{NoPlace, admit};
use crate::http::app::App;

/// Refuses requests without a host or to a foreign one, from pages of a foreign origin, or without a
/// place for their connection.
pub(in crate::http) async fn check(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Response {
    match admit(app.access(), &request) {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            if request.extensions().get::<NoPlace>().is_some() {
                app.observations().connections().refused.inc();
            }
            refused.into_response()
        }
    }
}
