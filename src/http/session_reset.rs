//! How a client learns that its session begins anew because the stored history could not be read: by
//! a header, which comes first also in a stream, and by the field `history_lost` of the answer.
//!
//! The session goes on without its past, so an answer that did not say so would look like any other.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

const HEADER: HeaderName = HeaderName::from_static("x-skald-session-reset");

/// Adds the header to an answer whose session begins anew.
pub(super) fn tell(mut response: Response, history_lost: bool) -> Response {
    if history_lost {
        let value = HeaderValue::from_static("history-lost");
        response.headers_mut().insert(HEADER, value);
    }
    response
}
