//! The bytes of a connection, plain or encrypted, and how their two directions end.
//!
//! A client that has sent its whole request may close its sending side and still wait for the answer
//! (a half-close, as `nc -N` does). To the server that looks like a client that has disconnected, whose
//! request must be cancelled immediately. Sending bytes distinguishes the two: the system of a
//! disconnected client answers with a reset. HTTP/1.1 has a message that every client ignores before an
//! answer, `100 Continue`, and streams of events have comments. So [`Transport`] sends the former, requests
//! the latter from the body, and checks for a reset.
//!
//! A connection that is closed while the client is still sending is reset, and the client loses the
//! answer that explains why. So after an answer to a request that was not read to its end, [`Transport`]
//! continues reading for a while before it closes (like nginx's lingering close).
//!
//! This module does not know requests; `connection` sets the phase of the exchange.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::stall::Clocked;

/// The message that detects whether a client is still connected.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Time until the first check for a reset; doubled for each further one, up to [`SLOWEST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_millis(10);
/// Longest time between two checks.
const SLOWEST_LOOK: Duration = Duration::from_secs(1);
/// Time after which another message is sent, because the client may have disconnected since.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Number of polls that the request's handler gets to read the rest of the body before the end of the
/// client's bytes counts as the end of the body too.
const TURNS: u8 = 4;
/// Maximum time for which a client's bytes are read after its answer.
const LINGER: Duration = Duration::from_secs(10);
/// Maximum bytes that are read in that time.
const LINGER_BYTES: usize = 64 << 20;

/// State of the exchange on an HTTP/1 connection; shared between the connection and its transport, which the
/// same task polls.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    phase: AtomicU8,
    /// Whether the client has ended its sending side, and a stream should send a comment to detect whether
    /// it is still connected.
    asks: AtomicBool,
}

/// A phase of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// No request: the end of the client's bytes ends the connection. The only phase of HTTP/2 connections.
    Open = 0,
    /// A request whose body has not been read to its end.
    Receiving = 1,
    /// A whole request, without an answer yet.
    Awaited = 2,
    /// The same in HTTP/1.0, which has no `100 Continue`.
    AwaitedPlainly = 3,
    /// The answer has begun.
    Answering = 4,
    /// The answer has begun, although the request was not read to its end; the connection is closed after
    /// the answer.
    Unread = 5,
}

impl Exchange {
    pub(super) fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            1 => Phase::Receiving,
            2 => Phase::Awaited,
            3 => Phase::AwaitedPlainly,
            4 => Phase::Answering,
            5 => Phase::Unread,
            _ => Phase::Open,
        }
    }

    /// Returns whether a stream should send a comment to detect whether its client is still connected, and
    /// resets the flag.
    pub(super) fn asks(&self) -> bool {
        self.asks.swap(false, Ordering::AcqRel)
    }
}

/// A socket, plain or with TLS on it.
pub(super) enum Wire {
    Plain(Clocked),
    Tls(Box<TlsStream<Clocked>>),
}

impl Wire {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket.socket(),
            Self::Tls(stream) => stream.get_ref().0.socket(),
        }
    }
}

/// The bytes of one connection.
pub(super) struct Transport {
    wire: Wire,
    exchange: Arc<Exchange>,
    /// Whether all written bytes were passed to the system, so that a message may follow.
    is_flushed: bool,
    /// Set while a client that has ended its sending side waits for an answer.
    watch: Option<Watch>,
    /// Turns left of [`TURNS`].
    turns: u8,
    linger: Option<Linger>,
}

/// Checks for the reset of a client that has disconnected.
struct Watch {
    next: Pin<Box<Sleep>>,
    pause: Duration,
    asked: Instant,
}

/// State of reading after the answer.
struct Linger {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Transport {
    pub(super) fn new(wire: Wire, exchange: Arc<Exchange>) -> Self {
        Self {
            wire,
            exchange,
            is_flushed: true,
            watch: None,
            turns: TURNS,
            linger: None,
        }
    }

    /// Polls for the end of the client's bytes. Pending while the client waits for an answer; ready if it has
    /// disconnected, or has no answer to wait for.
    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = self.exchange.phase();
        match phase {
            Phase::Open => return Poll::Ready(Ok(())),
            Phase::Receiving if self.turns == 0 => return Poll::Ready(Ok(())),
            Phase::Receiving => {
                self.turns -= 1;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Phase::Unread => return Poll::Pending,
            Phase::Awaited | Phase::AwaitedPlainly | Phase::Answering => (),
        }
        loop {
            if let Some(watch) = &mut self.watch {
                ready!(watch.next.as_mut().poll(context));
                if let Some(error) = self.wire.socket().take_error()? {
                    return Poll::Ready(Err(error));
                }
                let now = Instant::now();
                watch.pause = (watch.pause * 2).min(SLOWEST_LOOK);
                watch.next.as_mut().reset(now + watch.pause);
                if now - watch.asked < ASK_AGAIN {
                    continue;
                }
                watch.asked = now;
            } else {
                self.watch = Some(Watch {
                    next: Box::pin(tokio::time::sleep(FIRST_LOOK)),
                    pause: FIRST_LOOK,
                    asked: Instant::now(),
                });
            }
            match phase {
                Phase::Awaited => ready!(self.poll_continue(context))?,
                Phase::Answering => {
                    self.exchange.asks.store(true, Ordering::Release);
                    context.waker().wake_by_ref();
                }
                _ => (),
            }
        }
    }

    /// Writes the message that every client ignores. Does nothing while other bytes are unsent, because they
    /// detect a disconnected client too.
    fn poll_continue(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_flushed {
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut self.wire).poll_write(context, CONTINUE) {
            Poll::Ready(Ok(written)) if written < CONTINUE.len() => {
                Poll::Ready(Err(io::Error::other("a message was written in part")))
            }
            Poll::Ready(Ok(_)) => Pin::new(&mut self.wire).poll_flush(context),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // No room, because the client has not read earlier bytes.
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    /// Reads and discards the client's further bytes, within limits.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Linger {
            until: Box::pin(tokio::time::sleep(LINGER)),
            bytes: 0,
        });
        let mut forgotten = [0; 16 << 10];
        loop {
            if linger.bytes > LINGER_BYTES || linger.until.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut forgotten);
            match ready!(Pin::new(&mut self.wire).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => linger.bytes += buffer.filled().len(),
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(context, buffer))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            self.turns = TURNS;
            return Poll::Ready(Ok(()));
        }
        self.poll_ended(context)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_flushed = false;
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.wire).poll_flush(context))?;
        self.is_flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.wire).poll_shutdown(context))?;
            if self.exchange.phase() != Phase::Unread {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_linger(context).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_flushed = false;
        Pin::new(&mut self.wire).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(context, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
