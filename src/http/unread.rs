//! Limits the memory of answers that have not been sent, and splits them into pieces.
//!
//! A whole answer stays in memory until its client has read it. So its bytes are counted from its creation
//! until the connection has them. If the [`Room`] is full, the answers that clients have not read for the
//! longest time are cut off. A finished answer is never refused, because its work is done and its turn may
//! be stored. Streams are not counted, because they create their events one by one as the client reads.
//!
//! This module must not inspect answers.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::app::App;
use super::keys::Meter;
use super::room::RoomEntry;

/// Maximum bytes of a piece of an answer that is passed to a connection: progress is seen piece by piece, and
/// at most one piece remains in the connection when an answer is dropped.
const PIECE: usize = 16 << 10;
/// Maximum bytes of an answer that is not counted; [`Places`](super::places::Places) limits the number of
/// open requests.
const SMALL: u64 = 4 << 10;

/// Counts whole answers, and splits all answers into pieces.
pub(super) async fn bound(State(app): State<App>, request: Request, next: Next) -> Response {
    let share = Meter::of(request.extensions()).share();
    let response = next.run(request).await;
    let size = response.body().size_hint().exact();
    let rest = Rest::default();
    let held = size.filter(|&bytes| bytes > SMALL).map(|bytes| {
        let given_up = Arc::clone(&rest.0);
        let mut held = app.unread().hold(share, move || {
            *given_up.lock().unwrap_or_else(PoisonError::into_inner) = None;
        });
        // The answer is sent even if its bytes exceed the room.
        let _ = held.grow(usize::try_from(bytes).unwrap_or(usize::MAX));
        held
    });
    response.map(|body| Body::new(Pieces { body, held, rest }))
}

/// The rest of a frame; `None` once it has been evicted.
struct Rest(Arc<Mutex<Option<Bytes>>>);

impl Default for Rest {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some(Bytes::new()))))
    }
}

/// The continuation of a frame.
enum Piece {
    Next(Bytes),
    /// The frame has ended.
    End,
    GivenUp,
}

impl Rest {
    fn set(&self, frame: Bytes) {
        let mut rest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rest) = &mut *rest {
            *rest = frame;
        }
    }

    fn piece(&self) -> Piece {
        let mut rest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *rest {
            None => Piece::GivenUp,
            Some(rest) if rest.is_empty() => Piece::End,
            Some(rest) if rest.len() <= PIECE => Piece::Next(std::mem::take(rest)),
            // Copied, because a slice would keep the whole answer in memory.
            Some(rest) => Piece::Next(Bytes::copy_from_slice(&rest.split_to(PIECE))),
        }
    }

    fn len(&self) -> u64 {
        let rest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rest.as_ref().map_or(0, |rest| rest.len() as u64)
    }
}

/// The body of an answer, in pieces.
struct Pieces {
    body: Body,
    /// Entry of the answer in the room.
    held: Option<RoomEntry>,
    rest: Rest,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, held, rest } = self.get_mut();
        loop {
            match rest.piece() {
                Piece::GivenUp => {
                    let unread = "the answer was not read, and its memory was needed";
                    let unread = io::Error::new(io::ErrorKind::TimedOut, unread);
                    return Poll::Ready(Some(Err(axum::Error::new(unread))));
                }
                Piece::Next(piece) => {
                    // Outside the lock of `rest`, which is taken under the room's.
                    if let Some(held) = held {
                        held.touch();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Piece::End => (),
            }
            let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(context)?) else {
                *held = None;
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(bytes) if bytes.is_empty() => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(bytes) => rest.set(bytes),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.len() == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len();
        let hint = self.body.size_hint();
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}
