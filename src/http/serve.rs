//! The server: accepts connections until it is told to stop, then drains.
//!
//! A stop goes in this order: not ready at once; for `drain_delay` requests are served as before, so
//! that routers see it before a client does; then no new generations, though connections are still
//! accepted, so that probes and clients are told so; streams in flight finish, or after
//! `drain_timeout` end with an error event; connections close; the engine stops.
//!
//! From the beginning of a stop each answer over HTTP/1 closes its connection: a client that keeps
//! its connections open would otherwise never ask its balancer for another server.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Version, header};
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::app::{App, HttpConfig, State};
use super::stall::StallClock;

/// How long the last bytes may take to reach clients once generation is over.
const FLUSH: Duration = Duration::from_secs(2);
/// How long sessions may take to reach the disk once generation is over.
const SAVE: Duration = Duration::from_secs(10);
/// Bytes of one answer that may wait for a client of HTTP/2 beside those that it has a window for.
const SEND_BUFFER: usize = 64 * 1024;
/// Pause after a failure to accept (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `stop` is cancelled, then drains and returns.
///
/// # Errors
/// If the listener cannot be used at all.
pub async fn run(listener: TcpListener, app: App, stop: CancellationToken) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening");
    let server = Server {
        router: super::router(app.clone()),
        app: app.clone(),
        config: *app.config(),
        graceful: GracefulShutdown::new(),
        abort: CancellationToken::new(),
    };
    // Whatever ends this function also ends the connections.
    let _abort = server.abort.clone().drop_guard();

    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = server.accept(&listener) => {}
    }
    let drain_delay = server.config.drain_delay;
    if app.leave() && !drain_delay.is_zero() {
        tracing::info!(?drain_delay, "not ready any more: still serving requests");
        tokio::select! {
            biased;
            () = sleep(drain_delay) => {}
            () = server.accept(&listener) => {}
        }
    }
    app.drain();
    let drain_timeout = server.config.drain_timeout;
    tracing::info!(?drain_timeout, "stopping: streams in flight may finish");
    tokio::select! {
        biased;
        () = app.drained() => {}
        () = sleep(drain_timeout) => {
            tracing::warn!("streams are still in flight after the drain timeout: ending them");
        }
        () = server.accept(&listener) => {}
    }
    let serving = match app.state() {
        State::Draining(serving) => serving,
        _ => None,
    };
    if let Some(serving) = &serving {
        serving.engine.stop();
    }
    drop(listener);
    // Not until the streams that were just ended have written their error events.
    let _ = timeout(FLUSH, app.drained()).await;
    if let Some(serving) = &serving
        && timeout(SAVE, serving.sessions.saved()).await.is_err()
    {
        tracing::warn!("not all sessions could be saved in time");
    }
    if timeout(FLUSH, server.graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not take their last bytes");
    }
    Ok(())
}

struct Server {
    router: Router,
    app: App,
    config: HttpConfig,
    graceful: GracefulShutdown,
    abort: CancellationToken,
}

impl Server {
    /// Accepts connections for ever.
    async fn accept(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    let connection = Connection {
                        router: self.router.clone(),
                        app: self.app.clone(),
                        config: self.config,
                        client,
                        watcher: self.graceful.watcher(),
                    };
                    let abort = self.abort.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = connection.serve(stream) => {}
                            () = abort.cancelled() => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

struct Connection {
    router: Router,
    app: App,
    config: HttpConfig,
    client: SocketAddr,
    watcher: Watcher,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let client = self.client;
        // Every event is small and wanted at once.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%client, %error, "TCP_NODELAY could not be set");
        }
        let header_timeout = self.config.header_timeout;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_send_buf_size(SEND_BUFFER);
        let clock = StallClock::new(self.config.stall_timeout);

        let asked = Arc::new(AtomicBool::new(false));
        let service = service_fn({
            let (asked, clock) = (Arc::clone(&asked), clock.clone());
            move |mut request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(ConnectInfo(client));
                let exchange = clock.begin(&mut request);
                let answer = answer(self.router.clone(), self.app.clone(), request);
                async move { answer.await.map(|response| exchange.answered(response)) }
            }
        });
        let stream = TokioIo::new(clock.socket(stream));
        let connection = builder.serve_connection(stream, service);
        let connection = self.watcher.watch(connection.into_owned());
        tokio::pin!(connection);
        // hyper's own timer only starts once it knows which version of HTTP the client speaks.
        let silent = async {
            sleep(header_timeout).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%client, %error, "connection ended");
                }
            }
            () = silent => tracing::debug!(%client, "no request came"),
            () = clock.expired() => tracing::info!(%client, "stalled connection closed"),
        }
    }
}

/// Answers a request. A server that is about to stop closes the connection with the answer; HTTP/2
/// has no header for that, and is told when the last streams have ended.
async fn answer(
    router: Router,
    app: App,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let has_header = request.version() < Version::HTTP_2;
    let mut response = router.oneshot(request.map(Body::new)).await?;
    if has_header && app.is_stopping() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response)
}
