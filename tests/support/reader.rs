//! Clients that read an answer only when a test asks for it.

use std::net::SocketAddr;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, Response};
use h2::RecvStream;
use h2::client::SendRequest;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Connects with the smallest receive buffer that the system allows.
pub async fn small_socket(server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a socket option");
    socket.connect(server).await.expect("a connection")
}

/// An answer over HTTP/1 of which only the head was read.
pub struct Http1 {
    pub response: Response<Body>,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Http1 {
    pub async fn post(server: SocketAddr, path: &str, body: &Value) -> Self {
        let socket = hyper_util::rt::TokioIo::new(small_socket(server).await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(socket)
            .await
            .expect("a connection");
        let connection = tokio::spawn(connection);
        let request = Request::post(path).header("host", server.to_string());
        let request = request.body(Body::from(body.to_string()));
        let response = sender.send_request(request.expect("a request")).await;
        Self {
            response: response.expect("an answer").map(Body::new),
            connection,
        }
    }

    /// Reads the rest; an error if it is not complete.
    pub async fn read(self) -> Result<String, axum::Error> {
        let bytes = to_bytes(self.response.into_body(), usize::MAX).await?;
        self.connection.abort();
        Ok(String::from_utf8(bytes.to_vec()).expect("UTF-8"))
    }
}

/// An HTTP/2 connection whose streams have this window.
pub struct Http2 {
    server: SocketAddr,
    key: Option<&'static str>,
    sender: SendRequest<Bytes>,
    windows: Option<oneshot::Sender<u32>>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    pub async fn connect(server: SocketAddr, window: u32) -> Self {
        let socket = TcpStream::connect(server).await.expect("a connection");
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(1 << 26)
            .handshake(socket)
            .await
            .expect("a connection");
        let (windows, opened) = oneshot::channel();
        let connection = tokio::spawn(async move {
            tokio::select! {
                ended = &mut connection => return ended,
                Ok(window) = opened => connection.set_initial_window_size(window)?,
            }
            connection.await
        });
        Self {
            server,
            key: None,
            sender,
            windows: Some(windows),
            connection,
        }
    }

    /// Sends a key with each request from now on.
    pub fn with_key(self, key: &'static str) -> Self {
        let key = Some(key);
        Self { key, ..self }
    }

    /// Sends a request and reads the head of its answer.
    pub async fn post(&self, path: &str, body: &Value) -> Response<RecvStream> {
        let mut request = Request::post(format!("http://{}{path}", self.server));
        if let Some(key) = self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(()).expect("a request");
        let mut sender = self.sender.clone().ready().await.expect("it is open");
        let (response, mut stream) = sender.send_request(request, false).expect("sent");
        let body = Bytes::from(body.to_string());
        stream.send_data(body, true).expect("sent");
        response.await.expect("an answer")
    }

    /// Sets the window of all streams.
    pub fn open(&mut self, window: u32) {
        let windows = self.windows.take().expect("opened once");
        windows.send(window).expect("it is open");
    }

    /// Waits until the server has closed the connection.
    pub async fn closed(self) {
        let _ = self.connection.await.expect("no panic");
    }
}

/// Reads the rest of an answer; an error if it is not complete.
pub async fn read_stream(response: Response<RecvStream>) -> Result<String, h2::Error> {
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        text.extend_from_slice(&data);
    }
    Ok(String::from_utf8(text).expect("UTF-8"))
}
