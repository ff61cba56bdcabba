//! Answers that are made and not yet sent: how much memory they may take, and in what pieces they go.
//!
//! A whole answer stays in memory until its client has taken the last of it, which is up to the client. So
//! the bytes of those answers are counted, from the moment they are made until the socket has them, and
//! shared between tenants; what is beyond that is not answered but refused with 429. A stream makes its
//! events one by one as its client reads, and is not counted.
//!
//! Nothing here may look into an answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};

use super::app::App;
use super::error::ApiError;
use super::keys::Meter;
use super::room::{Held, Room};

/// Largest piece of an answer handed to a connection at once, in bytes: what a client takes is seen piece by
/// piece, and no more than this is out of reach when an answer is dropped.
const PIECE: usize = 16 << 10;
/// Answers up to this many bytes are not counted: those of all streams of a connection take no more than its
/// buffers do.
const SMALL: u64 = 4 << 10;
/// When a client that was refused is to come back: stalled answers are ended within half a minute, and others
/// go faster.
const RETRY: Duration = Duration::from_secs(5);

/// The bytes of an answer, with the room they take.
struct Counted {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The layer that counts whole answers, and cuts all into pieces.
pub(super) async fn bound(State(app): State<App>, request: Request, next: Next) -> Response {
    let share = Meter::of(request.extensions()).share();
    let response = next.run(request).await;
    let held = match response.body().size_hint().exact() {
        Some(bytes) if bytes > SMALL => {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            let mut held = app.unread().hold(share);
            if !held.grow(bytes) {
                return refusal(bytes, app.unread()).into_response();
            }
            Some(held)
        }
        _ => None,
    };
    response.map(|body| {
        Body::new(Pieces {
            body,
            held,
            rest: Bytes::new(),
        })
    })
}

/// The refusal of an answer.
fn refusal(bytes: usize, unread: &Room) -> ApiError {
    ApiError::busy(
        format!(
            "the answer has {bytes} bytes, and {} bytes of other answers have not been read by their clients; \
             read those, or retry later",
            unread.held()
        ),
        RETRY,
    )
}

/// The body of an answer, in pieces.
struct Pieces {
    body: Body,
    /// The room of an answer none of which was asked for yet.
    held: Option<Held>,
    /// What is left of a frame.
    rest: Bytes,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, held, rest } = self.get_mut();
        if rest.is_empty() {
            let Some(frame) = ready!(Pin::new(body).poll_frame(context)?) else {
                return Poll::Ready(None);
            };
            *rest = match frame.into_data() {
                Ok(bytes) => match held.take() {
                    Some(held) => Bytes::from_owner(Counted { bytes, _held: held }),
                    None => bytes,
                },
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
        }
        let piece = rest.split_to(PIECE.min(rest.len()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let hint = self.body.size_hint();
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}
