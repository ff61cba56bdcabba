//! HTTP/1 as bytes, for requests that no client library sends.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::pace::PATIENCE;

/// An answer as received.
#[derive(Debug)]
pub struct RawAnswer {
    /// Status; 0 if there was no answer.
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl RawAnswer {
    /// Parses received text, which may begin with messages of status 100.
    pub fn parse(mut text: &str) -> Self {
        const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
        while let Some(rest) = text.strip_prefix(CONTINUE) {
            text = rest;
        }
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or(0),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }
}

/// Connects and sends `request`.
pub async fn sent(address: SocketAddr, request: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("sent");
    socket
}

/// Reads until the server closes the connection.
pub async fn rest(socket: &mut TcpStream) -> RawAnswer {
    let mut answer = Vec::new();
    let whole = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    // A reset ends it too.
    let _ = whole.expect("the server closes the connection");
    RawAnswer::parse(&String::from_utf8_lossy(&answer))
}

/// Sends `request`, after which the server closes the connection, and returns the answer.
pub async fn ask(address: SocketAddr, request: &str) -> RawAnswer {
    rest(&mut sent(address, request).await).await
}

/// Returns a GET of `path` with these header lines.
pub fn get(path: &str, lines: &[&str]) -> String {
    let lines = head(lines);
    format!("GET {path} HTTP/1.1\r\n{lines}connection: close\r\n\r\n")
}

/// Returns a POST of `body` to `path` with these header lines.
pub fn post(path: &str, lines: &[&str], body: &str) -> String {
    let lines = head(lines);
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\n{lines}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

fn head(lines: &[&str]) -> String {
    lines.iter().flat_map(|line| [line, "\r\n"]).collect()
}
