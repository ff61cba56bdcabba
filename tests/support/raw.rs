//! HTTP/1 as bytes, for what no client would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::pace::PATIENCE;

/// An answer as it came.
#[derive(Debug)]
pub struct RawAnswer {
    /// 0 if there was none.
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl RawAnswer {
    /// Parses all that came, which may begin with messages of status 100.
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

/// A connection on which `request` was sent.
pub async fn sent(address: SocketAddr, request: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("sent");
    socket
}

/// Reads until the server closes the connection.
pub async fn rest(socket: &mut TcpStream) -> RawAnswer {
    let mut answer = Vec::new();
    let whole = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    // A reset is an end too.
    let _ = whole.expect("the server closes the connection");
    RawAnswer::parse(&String::from_utf8_lossy(&answer))
}

/// Sends `request`, whose connection the server is to close, and returns the answer.
pub async fn ask(address: SocketAddr, request: &str) -> RawAnswer {
    rest(&mut sent(address, request).await).await
}

/// A GET of `path` with these lines of head.
pub fn get(path: &str, lines: &[&str]) -> String {
    let lines = head(lines);
    format!("GET {path} HTTP/1.1\r\n{lines}connection: close\r\n\r\n")
}

/// A POST of `body` to `path` with these lines of head.
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
