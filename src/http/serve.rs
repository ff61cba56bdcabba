//! The server: accepts connections until it is told to stop, then drains.
//!
//! A stop has these steps:
//!
//! 1. The server reports that it is not ready. For `drain_delay` it serves requests as before, so that
//!    routers notice before clients do.
//! 2. New generations are refused. Connections are still accepted, so that probes and clients get an answer.
//! 3. Streams in flight finish, or end with an error event after `drain_timeout`.
//! 4. Connections close, and the engine stops.
//!
//! From the beginning of a stop each answer over HTTP/1 closes its connection, because a client that keeps
//! its connections open would otherwise never be balanced to another server.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Listening;
use super::app::{App, State};
use super::connection::Connection;
use super::places::Places;

/// Maximum time to send the last bytes to clients after all generations have ended.
const FLUSH: Duration = Duration::from_secs(2);
/// Maximum time to store sessions after all generations have ended.
const SAVE: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted, such as without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The socket that accepts connections, and their encryption.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Creates a listener, whose connections are encrypted if there is an acceptor.
    #[must_use]
    pub fn new(socket: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        Self { socket, tls }
    }
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self::new(socket, None)
    }
}

/// Serves until `stop` is cancelled, then drains and returns.
///
/// # Errors
/// If the listener cannot be used at all.
pub async fn run(
    listener: impl Into<Listener>,
    app: App,
    stop: CancellationToken,
) -> io::Result<()> {
    let Listener {
        socket: listener,
        tls,
    } = listener.into();
    let listening = Listening {
        address: listener.local_addr()?,
        tls: tls.is_some(),
    };
    let config = *app.config();
    tracing::info!(
        address = %listening.address,
        tls = listening.tls,
        max_connections = config.connections.limit,
        "listening"
    );
    let counts = app.observations().connections().clone();
    let server = Server {
        router: super::router(app.clone()),
        app: app.clone(),
        listening,
        tls,
        places: Places::new(config.connections, counts),
        connections: TaskTracker::new(),
        ending: CancellationToken::new(),
        abort: CancellationToken::new(),
    };
    // The connections end whenever this function ends.
    let _abort = server.abort.clone().drop_guard();

    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = server.accept(&listener) => {}
    }
    let drain_delay = config.drain_delay;
    if app.leave() && !drain_delay.is_zero() {
        tracing::info!(?drain_delay, "draining started, requests still accepted");
        tokio::select! {
            biased;
            () = sleep(drain_delay) => {}
            () = server.accept(&listener) => {}
        }
    }
    app.drain();
    let drain_timeout = config.drain_timeout;
    tracing::info!(
        ?drain_timeout,
        "shutdown started, waiting for streams in flight"
    );
    tokio::select! {
        biased;
        () = app.drained() => {}
        () = sleep(drain_timeout) => {
            tracing::warn!("drain timeout reached, streams in flight cancelled");
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
    // The cancelled streams still have to write their error events.
    let _ = timeout(FLUSH, app.drained()).await;
    if let Some(serving) = &serving
        && timeout(SAVE, serving.sessions.saved()).await.is_err()
    {
        tracing::warn!("sessions not saved before the timeout");
    }
    server.ending.cancel();
    server.connections.close();
    if timeout(FLUSH, server.connections.wait()).await.is_err() {
        tracing::warn!("connections closed before their last bytes were sent");
    }
    Ok(())
}

struct Server {
    router: Router,
    app: App,
    listening: Listening,
    tls: Option<TlsAcceptor>,
    places: Places,
    /// Tasks of the open connections.
    connections: TaskTracker,
    /// Cancelled when connections must end after their last answers.
    ending: CancellationToken,
    /// Cancelled when connections must end immediately.
    abort: CancellationToken,
}

impl Server {
    /// Accepts connections forever.
    async fn accept(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((socket, client)) => self.serve(socket, client).await,
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    self.places.make_room();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection on its own task, once it has a place.
    async fn serve(&self, socket: TcpStream, client: SocketAddr) {
        let connection = Connection {
            router: self.router.clone(),
            app: self.app.clone(),
            client,
            listening: self.listening,
            tls: self.tls.clone(),
            place: Arc::new(self.places.take().await),
            stop: self.ending.clone(),
        };
        let abort = self.abort.clone();
        self.connections.spawn(async move {
            tokio::select! {
                () = connection.serve(socket) => {}
                () = abort.cancelled() => {}
            }
        });
    }
}
