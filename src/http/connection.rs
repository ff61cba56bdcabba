//! One connection, from the handshake to its end: protocol, timeouts, and the facts that its requests need.
//!
//! It ends when its client closes it, when it is unused for `header_timeout` (including a head that does
//! not arrive), when its place is needed for another connection, and when the server stops.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Version, header};
use axum::response::Response;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::access::{Listening, NoPlace};
use super::app::App;
use super::places::{self, Place};
use super::stall::StallClock;
use super::transport::{Exchange, Phase, Transport, Wire};

/// Interval of pings to HTTP/2 clients, and maximum time for their answers.
const PING: Duration = Duration::from_secs(20);
/// Maximum bytes of a request head in HTTP/1; longer heads are answered with 431.
const LONGEST_HEAD: usize = 64 << 10;
/// Maximum concurrent requests in an HTTP/2 connection: the minimum that RFC 9113 (6.5.2) recommends.
const STREAMS: u32 = 100;
/// Maximum time for the graceful shutdown of an unused connection.
const GOODBYE: Duration = Duration::from_secs(2);
/// Maximum bytes of an answer that are buffered beyond the window of an HTTP/2 client.
const SEND_BUFFER: usize = 64 * 1024;
/// A comment in a stream of events, which clients ignore.
const COMMENT: &[u8] = b":\n\n";

/// A connection and its context.
pub(super) struct Connection {
    pub router: Router,
    pub app: App,
    pub client: SocketAddr,
    pub listening: Listening,
    pub tls: Option<TlsAcceptor>,
    pub place: Arc<Place>,
    /// Cancelled when the server stops: the connection ends with its last answer.
    pub stop: CancellationToken,
}

impl Connection {
    /// Serves the connection until it ends or its place is needed.
    pub(super) async fn serve(self, socket: TcpStream) {
        let (place, client) = (Arc::clone(&self.place), self.client);
        tokio::select! {
            () = self.run(socket) => (),
            () = place.evicted() => tracing::debug!(%client, "connection closed for a new one"),
        }
    }

    async fn run(self, socket: TcpStream) {
        let client = self.client;
        // Events are small and must be sent immediately.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%client, %error, "TCP_NODELAY not set");
        }
        let header_timeout = self.app.config().header_timeout;
        let clock = StallClock::new(self.app.config().stall_timeout);
        let socket = clock.socket(socket);
        let wire = match &self.tls {
            None => Wire::Plain(socket),
            Some(acceptor) => match timeout(header_timeout, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => Wire::Tls(Box::new(stream)),
                Ok(Err(error)) => {
                    return tracing::debug!(%client, %error, "TLS handshake failed");
                }
                Err(_) => return tracing::debug!(%client, "TLS handshake timed out"),
            },
        };
        let exchange = Arc::new(Exchange::default());
        let io = TokioIo::new(Transport::new(wire, Arc::clone(&exchange)));
        let (place, stop) = (Arc::clone(&self.place), self.stop.clone());
        let service = service_fn({
            let clock = clock.clone();
            move |request: Request<Incoming>| self.answer(&exchange, &clock, request)
        });
        let builder = protocols(header_timeout);
        let mut connection = pin!(builder.serve_connection(io, service));
        let mut is_ending = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%client, %error, "connection ended");
                    }
                    return;
                }
                () = stop.cancelled(), if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = clock.expired() => {
                    return tracing::info!(%client, "stalled connection closed");
                }
                () = place.unused_for(header_timeout) => {
                    tracing::debug!(%client, "unused connection closed");
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(GOODBYE, connection).await;
                    return;
                }
            }
        }
    }

    /// Begins to answer a request. The work before the future is done as soon as the head has arrived, so
    /// that the bytes that follow are interpreted correctly; the future is polled later.
    fn answer(
        &self,
        exchange: &Arc<Exchange>,
        clock: &StallClock,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        let noted = Arc::new(self.place.request());
        let reading = clock.begin(&mut request);
        let extensions = request.extensions_mut();
        extensions.insert(ConnectInfo(self.client));
        extensions.insert(self.listening);
        let is_reserved = self.place.is_reserved();
        if is_reserved {
            extensions.insert(NoPlace);
        }
        let version = request.version();
        // In HTTP/2 each stream ends separately.
        let exchange = (version < Version::HTTP_2).then(|| Arc::clone(exchange));
        if let Some(exchange) = &exchange {
            exchange.set(Phase::Receiving);
        }
        let request = request.map(|body| {
            let body = Received {
                body,
                exchange: exchange.clone(),
                noted: Arc::clone(&noted),
                whole: if version == Version::HTTP_11 {
                    Phase::Awaited
                } else {
                    Phase::AwaitedPlainly
                },
            };
            if body.is_end_stream() {
                body.arrived();
            }
            Body::new(body)
        });
        let (router, app) = (self.router.clone(), self.app.clone());
        async move {
            let mut response = reading.answered(router.oneshot(request).await?);
            if let Some(exchange) = &exchange {
                let is_refused =
                    response.status().is_client_error() || response.status().is_server_error();
                let is_unread = exchange.phase() == Phase::Receiving && is_refused;
                exchange.set(if is_unread {
                    Phase::Unread
                } else {
                    Phase::Answering
                });
                // HTTP/2 has no such header; its clients are notified when the last streams have ended.
                if is_unread || is_reserved || app.is_stopping() {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
            }
            let is_events = response
                .headers()
                .get(header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
            Ok(response.map(|body| {
                Body::new(Sent {
                    body,
                    exchange,
                    is_events,
                    _noted: noted,
                })
            }))
        }
    }
}

fn protocols(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(LONGEST_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

/// The body of a request, which records its complete arrival.
struct Received {
    body: Incoming,
    exchange: Option<Arc<Exchange>>,
    noted: Arc<places::Request>,
    /// The phase after the body has arrived.
    whole: Phase,
}

impl Received {
    fn arrived(&self) {
        self.noted.arrived();
        if let Some(exchange) = &self.exchange
            && exchange.phase() == Phase::Receiving
        {
            exchange.set(self.whole);
        }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.arrived();
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

/// The body of an answer; its request ends when the body is dropped.
struct Sent {
    body: Body,
    exchange: Option<Arc<Exchange>>,
    /// Whether the body is a stream of events, between which comments may be sent.
    is_events: bool,
    _noted: Arc<places::Request>,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let asks = || {
            self.exchange
                .as_ref()
                .is_some_and(|exchange| exchange.asks())
        };
        if frame.is_pending() && self.is_events && asks() {
            let comment = Frame::data(Bytes::from_static(COMMENT));
            return Poll::Ready(Some(Ok(comment)));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(exchange) = &self.exchange
            && exchange.phase() == Phase::Answering
        {
            exchange.set(Phase::Open);
        }
    }
}
