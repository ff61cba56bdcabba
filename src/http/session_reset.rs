//! How a client learns that its session begins anew because the stored history could not be read: by
//! a header, which comes first also in a stream, and by the field `history_lost` of the answer.
//!
//! The session goes on without its past, so an answer that did not say so would look like any other.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use crate::session::Turn;

const HEADER: HeaderName = HeaderName::from_static("x-skald-session-reset");

/// Returns whether the client of a request must be told.
pub(super) fn is_told(turn: Option<&Turn>) -> bool {
    turn.is_some_and(Turn::history_lost)
}

/// Puts the header on an answer, if its client must be told.
pub(super) fn tell(mut response: Response, history_lost: bool) -> Response {
    if history_lost {
        let value = HeaderValue::from_static("history-lost");
        response.headers_mut().insert(HEADER, value);
    }
    response
}
