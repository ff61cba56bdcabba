//! Reports to the client that its session starts anew because the stored history could not be read: by a
//! header, which streams have too, and by the field `history_lost` of the answer.
//!
//! The session continues without its history, which the answer alone would not show.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

const HEADER: HeaderName = HeaderName::from_static("x-skald-session-reset");

/// Adds the header to an answer whose session starts anew.
pub(super) fn tell(mut response: Response, history_lost: bool) -> Response {
    if history_lost {
        let value = HeaderValue::from_static("history-lost");
        response.headers_mut().insert(HEADER, value);
    }
    response
}
