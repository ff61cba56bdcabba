//! Clients that stop reading: ends an answer if its client reads nothing for `--stall-timeout`.
//!
//! hyper polls an answer when its connection has room, and otherwise waits, forever if necessary. A
//! [`StallClock`] watches one connection in two places:
//!
//! - Its socket, by [`Clocked`]: a write that waits for room. HTTP/1 has only this case, and the
//!   connection is closed.
//! - Over HTTP/2 the body of each answer, by [`ClockedBody`]: the client reads from the socket, but gives a
//!   stream no window. The body is dropped, which frees everything that the request holds. The connection
//!   is closed if it has no other streams, since a stream without a window can't be ended properly.
//!
//! The clock runs only while there is something for the client to read. The engine has suspended the
//! request long before. This module must not inspect answers.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Version};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

/// Maximum unsent bytes that the system buffers for a connection. Its default is megabytes, and a client
/// that does not read would be noticed only when they are full.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 64 * 1024;

/// Watches whether the client of a connection reads; cheap to clone.
#[derive(Clone)]
pub(super) struct StallClock(Arc<ConnectionState>);

struct ConnectionState {
    timeout: Duration,
    /// Time since when a write to the socket waits for room.
    blocked: Mutex<Option<Instant>>,
    /// Bodies over HTTP/2 that have not ended.
    bodies: Mutex<Vec<Weak<Slot>>>,
    /// Number of requests whose answers have not ended.
    open: AtomicUsize,
    /// Whether the connection was closed because its client stopped reading.
    closed: AtomicBool,
}

/// Reports whether the client stopped reading: an extension of each request.
#[derive(Clone)]
pub(super) struct Reader {
    connection: Arc<ConnectionState>,
    stalled: Arc<AtomicBool>,
}

/// Counts a request as open until its answer has ended.
struct Open(Arc<ConnectionState>);

/// The body of one answer over HTTP/2, which its stream and the clock share.
struct Slot {
    state: Mutex<Sending>,
    reader: Reader,
}

/// State of a body.
struct Sending {
    /// The body; `None` once it has been dropped.
    body: Option<(Body, Open)>,
    /// Time since when the client has read nothing; `None` while it waits for the server.
    since: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StallClock {
    /// Creates the clock of a new connection.
    pub(super) fn new(timeout: Duration) -> Self {
        Self(Arc::new(ConnectionState {
            timeout,
            blocked: Mutex::new(None),
            bodies: Mutex::default(),
            open: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }))
    }

    /// Returns the connection's socket, watched.
    pub(super) fn socket(&self, stream: TcpStream) -> Clocked {
        #[cfg(target_os = "linux")]
        if let Err(error) = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT) {
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT not set");
        }
        Clocked {
            stream,
            clock: self.clone(),
        }
    }

    /// Counts a request, and gives it a [`Reader`].
    pub(super) fn begin<B>(&self, request: &mut Request<B>) -> Exchange {
        let reader = Reader {
            connection: Arc::clone(&self.0),
            stalled: Arc::default(),
        };
        request.extensions_mut().insert(reader.clone());
        Exchange {
            is_stream: request.version() == Version::HTTP_2,
            open: Open::new(&self.0),
            reader,
        }
    }

    /// Drops bodies that the client has not read for too long. Returns when the connection must be closed.
    pub(super) async fn expired(&self) {
        loop {
            let now = Instant::now();
            let mut next = now + self.0.timeout;
            if let Some(since) = *lock(&self.0.blocked) {
                let end = since + self.0.timeout;
                if end <= now {
                    self.0.closed.store(true, Ordering::Relaxed);
                    return;
                }
                next = next.min(end);
            }
            let ended = self.end_stalled(now, &mut next);
            if ended > 0 {
                tracing::info!(streams = ended, "stalled streams ended");
                if self.0.open.load(Ordering::Relaxed) == 0 {
                    return;
                }
            }
            sleep_until(next).await;
        }
    }

    /// Drops the bodies that are due at `now` and returns their number. Sets `next` to the time of the next
    /// one if that is earlier.
    fn end_stalled(&self, now: Instant, next: &mut Instant) -> usize {
        let bodies = lock(&self.0.bodies).clone();
        let mut ended = 0;
        for slot in bodies.iter().filter_map(Weak::upgrade) {
            let mut state = lock(&slot.state);
            let Some(end) = state.since.map(|since| since + self.0.timeout) else {
                continue;
            };
            if end > now {
                *next = end.min(*next);
            } else if let Some(body) = state.body.take() {
                drop(state);
                slot.reader.stalled.store(true, Ordering::Relaxed);
                drop(body);
                ended += 1;
            }
        }
        ended
    }
}

/// A request that is being answered.
pub(super) struct Exchange {
    /// Whether the request is a stream of HTTP/2.
    is_stream: bool,
    open: Open,
    reader: Reader,
}

impl Exchange {
    /// Returns the answer with its body watched.
    pub(super) fn answered(self, response: Response) -> Response {
        if !self.is_stream || response.body().is_end_stream() {
            return response;
        }
        response.map(|body| self.watched(body))
    }

    fn watched(self, body: Body) -> Body {
        let connection = Arc::clone(&self.reader.connection);
        let slot = Arc::new(Slot {
            state: Mutex::new(Sending {
                body: Some((body, self.open)),
                since: Some(Instant::now()),
            }),
            reader: self.reader,
        });
        let mut bodies = lock(&connection.bodies);
        bodies.retain(|body| body.strong_count() > 0);
        bodies.push(Arc::downgrade(&slot));
        Body::new(ClockedBody(slot))
    }
}

impl Reader {
    /// Returns whether the answer was ended because its client stopped reading.
    pub(super) fn stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed) || self.connection.closed.load(Ordering::Relaxed)
    }
}

impl Open {
    fn new(shared: &Arc<ConnectionState>) -> Self {
        shared.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body over HTTP/2, watched.
struct ClockedBody(Arc<Slot>);

impl HttpBody for ClockedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut state = lock(&self.0.state);
        state.since = None;
        let polled = state.poll_frame(context);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            state.since = Some(Instant::now());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.0.state);
        let ended = |(body, _): &(Body, Open)| body.is_end_stream();
        state.body.as_ref().is_some_and(ended)
    }

    fn size_hint(&self) -> SizeHint {
        let state = lock(&self.0.state);
        let hint = state.body.as_ref().map(|(body, _)| body.size_hint());
        hint.unwrap_or_default()
    }
}

impl Sending {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some((body, _)) = &mut self.body else {
            let stalled = io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading");
            return Poll::Ready(Some(Err(axum::Error::new(stalled))));
        };
        Pin::new(body).poll_frame(context)
    }
}

/// A connection's socket, watched.
pub(super) struct Clocked {
    stream: TcpStream,
    clock: StallClock,
}

impl Clocked {
    /// Returns the socket itself.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Records the result of a write.
    fn note<T>(&self, written: &Poll<io::Result<T>>) {
        let mut blocked = lock(&self.clock.0.blocked);
        if written.is_pending() {
            blocked.get_or_insert_with(Instant::now);
        } else {
            *blocked = None;
        }
    }
}

impl AsyncRead for Clocked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Clocked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Drop for Clocked {
    /// Discards the unsent bytes if the client stopped reading; otherwise the system would keep them for
    /// minutes.
    fn drop(&mut self) {
        if self.clock.0.closed.load(Ordering::Relaxed) {
            let socket = SockRef::from(&self.stream);
            if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
                tracing::debug!(%error, "SO_LINGER not set");
            }
        }
    }
}
