//! Connections: how they end, their limits, and the isolation from hostile ones.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::load::{begun, endless, slow, streamed};
use crate::support::metrics::Metrics;
use crate::support::pace::{PATIENCE, until};
use crate::support::process::Process;
use crate::support::raw::{RawAnswer, ask, post, rest, sent};
use crate::support::{Setup, TestServer};
use bytesize::ByteSize;
use serde_json::json;
use skald::http::HttpConfig;
use skald::resources::Connections;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const HOST: &str = "host: localhost";

/// Returns the value of a series in a scrape.
fn value(text: &str, series: &str) -> f64 {
    Metrics::parse(text.to_owned()).get(series)
}

fn with(change: impl FnOnce(&mut HttpConfig)) -> TestServer {
    let mut setup = Setup::default();
    change(&mut setup.http);
    TestServer::with(setup)
}

/// Returns a request that takes a few steps.
fn short() -> String {
    json!({"prompt": "A", "max_tokens": 4, "ignore_eos": true}).to_string()
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_answer() {
    let server = slow(Duration::from_millis(5), |_| {});
    let stream = r#"{"prompt":"A","max_tokens":4,"ignore_eos":true,"stream":true}"#;
    for body in [short(), stream.to_owned()] {
        let request = post("/v1/completions", &[HOST], &body);
        let mut socket = sent(server.address, &request).await;
        socket.shutdown().await.unwrap();
        let answer = rest(&mut socket).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(
            answer.body.contains("\"finish_reason\":\"length\""),
            "{answer:?}"
        );
    }
    // Everything in one write, and in HTTP/1.0.
    let old = format!(
        "POST /v1/completions HTTP/1.0\r\ncontent-length: {}\r\n\r\n{}",
        short().len(),
        short()
    );
    let get = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned();
    for request in [old, get] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        let answer = rest(&mut socket).await;
        assert_eq!(answer.status, 200, "{request}: {answer:?}");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_its_place_with_its_sending_side_closed_gets_its_answer() {
    let server = slow(Duration::from_millis(5), |setup| setup.engine.max_batch = 1);
    let first = begun(&server, endless()).await;
    let mut second = sent(server.address, &post("/v1/completions", &[HOST], &short())).await;
    second.shutdown().await.unwrap();
    server.until("waiting", |status| status.waiting == 1).await;
    drop(first);
    assert_eq!(rest(&mut second).await.status, 200);
}

#[tokio::test]
async fn a_client_that_has_gone_is_still_noticed() {
    let server = slow(Duration::from_millis(5), |_| {});
    for body in [endless(), streamed(endless())] {
        let request = post("/v1/completions", &[HOST], &body.to_string());
        let socket = sent(server.address, &request).await;
        server.until("running", |status| status.running == 1).await;
        drop(socket);
        server.until("free", |status| status.running == 0).await;
    }
    // Also in the queue, where nothing is written to the client.
    let server = slow(Duration::from_millis(5), |setup| setup.engine.max_batch = 1);
    let running = begun(&server, endless()).await;
    for body in [endless(), streamed(endless())] {
        let request = post("/v1/completions", &[HOST], &body.to_string());
        let socket = sent(server.address, &request).await;
        server.until("waiting", |status| status.waiting == 1).await;
        drop(socket);
        server.until("gone", |status| status.waiting == 0).await;
    }
    assert_eq!(server.engine().status().running, 1);
    drop(running);
}

#[tokio::test]
async fn a_body_that_ends_early_is_told_so() {
    let server = with(|_| ());
    for head in [
        "content-length: 100\r\n\r\n{\"prompt\":",
        "transfer-encoding: chunked\r\n\r\n5\r\n{\"pro",
        "transfer-encoding: chunked\r\n\r\n5\r\n{\"pr",
    ] {
        let request = format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n{head}");
        let mut socket = sent(server.address, &request).await;
        socket.shutdown().await.unwrap();
        let answer = rest(&mut socket).await;
        assert_eq!(answer.status, 400, "{head:?}: {answer:?}");
        assert!(answer.body.contains("ended before"), "{answer:?}");
    }
    // An error is reported even if the client continues to send or has closed its side.
    for chunks in [
        "not a length\r\n",
        "5\r\n{\"pro\r\nnot a length\r\n",
        "1\r\n{{\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
        );
        let mut socket = sent(server.address, &request).await;
        let answer = rest(&mut socket).await;
        assert_eq!(answer.status, 400, "{chunks:?}: {answer:?}");
        assert!(answer.body.contains("chunked encoding"), "{answer:?}");
    }
    // Without a half-close the answer has no receiver.
    let request = "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{";
    drop(sent(server.address, request).await);
    until("closed", async || open_connections(&server).await == 1.0).await;
    assert_eq!(server.engine().status().steps, 0);
}

/// Returns the number of open connections, including that of the scrape.
async fn open_connections(server: &TestServer) -> f64 {
    let text = server.get("/metrics").await.body;
    value(text.as_str().expect("text"), "skald_connections")
}

#[tokio::test]
async fn a_refusal_arrives_while_the_client_is_still_sending() {
    let server = with(|http| http.max_body = ByteSize::kib(1));
    let large = "x".repeat(8 << 20);
    let declared = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{large}",
        large.len()
    );
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    // Refused because of its head.
    let foreign = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: evil.example\r\ncontent-length: {}\r\n\r\n{large}",
        large.len()
    );
    for (request, status) in [(declared, 413), (chunked, 413), (foreign, 403)] {
        // Reads only after everything was sent, as simple clients do.
        let mut socket = sent(server.address, &request).await;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.expect("no reset");
        let answer = RawAnswer::parse(&String::from_utf8_lossy(&answer));
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.head.contains("connection: close"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_not_used_is_closed_in_both_protocols() {
    let server = with(|http| http.header_timeout = Duration::from_millis(300));
    let request = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let half = "GET /livez HTTP/1.1\r\nhost: local";
    for request in ["", half, request, &format!("{request}{half}")] {
        let answer = ask(server.address, request).await;
        let expected = if request.starts_with("GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n") {
            200
        } else {
            0
        };
        assert_eq!(answer.status, expected, "{request:?}: {answer:?}");
    }
    // A connection that sent only the preface, and one that was used.
    let socket = TcpStream::connect(server.address).await.unwrap();
    let (_client, connection) = h2::client::handshake(socket).await.unwrap();
    let ended = timeout(PATIENCE, connection).await.expect("it is closed");
    assert!(is_graceful(&ended), "{ended:?}");
    let socket = TcpStream::connect(server.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    let connection = tokio::spawn(connection);
    assert_eq!(h2_get(&mut client, "/livez").await, Some(200));
    let ended = timeout(PATIENCE, connection).await.expect("it is closed");
    assert!(is_graceful(&ended.unwrap()));
    // A stream counts as use, however long it takes.
    let stream = begun(&server, endless()).await;
    let other = ask(server.address, "").await;
    assert_eq!(other.status, 0);
    assert_eq!(server.engine().status().running, 1);
    drop(stream);
}

fn is_graceful(ended: &Result<(), h2::Error>) -> bool {
    match ended {
        Ok(()) => true,
        Err(error) => error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR),
    }
}

type Client = h2::client::SendRequest<axum::body::Bytes>;

async fn h2_get(client: &mut Client, path: &str) -> Option<u16> {
    let uri = format!("http://localhost{path}");
    let request = axum::http::Request::get(uri).body(()).unwrap();
    let mut ready = client.clone().ready().await.ok()?;
    let (response, _) = ready.send_request(request, true).ok()?;
    Some(response.await.ok()?.status().as_u16())
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_do_not_affect_others() {
    let server = with(|_| ());
    let body = axum::body::Bytes::from(endless().to_string());
    let mut resets = 0;
    // A connection that resets too many streams at once may be closed; the attacker opens another.
    for _ in 0..20 {
        let socket = TcpStream::connect(server.address).await.unwrap();
        let (client, connection) = h2::client::handshake(socket).await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..500 {
            let Ok(mut ready) = client.clone().ready().await else {
                break;
            };
            let uri = "http://localhost/v1/completions";
            let request = axum::http::Request::post(uri).body(()).unwrap();
            let Ok((_, mut stream)) = ready.send_request(request, false) else {
                break;
            };
            let _ = stream.send_data(body.clone(), true);
            // Let the request be sent.
            tokio::task::yield_now().await;
            stream.send_reset(h2::Reason::CANCEL);
            resets += 1;
        }
        connection.abort();
    }
    assert!(resets >= 1000, "{resets}");
    // Everything they held is released, and other requests are served.
    server
        .until("free", |status| {
            status.running + status.waiting == 0 && status.kv_blocks_used == 0
        })
        .await;
    until("closed", async || open_connections(&server).await == 1.0).await;
    let answer = ask(server.address, &post("/v1/completions", &[HOST], &short())).await;
    assert_eq!(answer.status, 200);
}

/// Opens connections with half-sent heads.
async fn half_sent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        sockets.push(sent(address, "POST /v1/completions HTTP/1.1\r\nhost: loc").await);
    }
    sockets
}

#[tokio::test]
async fn connections_that_wait_give_way_to_new_ones_and_busy_ones_do_not() {
    let server = with(|http| {
        http.connections = Connections {
            limit: 4,
            reserved: 2,
        };
        http.header_timeout = PATIENCE;
    });
    let stream = begun(&server, endless()).await;
    let _half = half_sent(server.address, 20).await;
    let unsent = "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{";
    let _bodies = [
        sent(server.address, unsent).await,
        sent(server.address, unsent).await,
    ];
    // A head that arrives is answered, and so is the next one.
    for _ in 0..3 {
        let answer = ask(server.address, &post("/v1/completions", &[HOST], &short())).await;
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        assert_eq!(server.get("/livez").await.status, 200);
    }
    let text = server.get("/metrics").await.body;
    let evicted = value(text.as_str().unwrap(), "skald_connections_evicted_total");
    assert!(evicted >= 14.0, "{evicted}");
    assert_eq!(server.engine().status().running, 1, "the stream goes on");
    drop(stream);
}

#[tokio::test]
async fn where_all_connections_are_busy_probes_are_answered_and_others_told_to_come_back() {
    let server = with(|http| {
        http.connections = Connections {
            limit: 2,
            reserved: 2,
        };
    });
    let streams = [
        begun(&server, endless()).await,
        begun(&server, endless()).await,
    ];
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let refused = server.post("/v1/completions", json!({"prompt": "A"})).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.body["error"]["code"], "connection_limit");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.header("connection"), "close");
    let native = server.post("/generate", json!({"inputs": "A"})).await;
    assert_eq!(
        (native.status, &native.body["error_type"]),
        (503, &json!("connection_limit"))
    );
    let text = server.get("/metrics").await.body;
    assert!(value(text.as_str().unwrap(), "skald_connections_refused_total") >= 2.0);
    let [first, _second] = streams;
    drop(first);
    until("a place is free", async || {
        let small = json!({"prompt": "A", "max_tokens": 1});
        server.post("/v1/completions", small).await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hundred_half_sent_heads_under_a_limit_of_256_files_stop_no_probe() {
    let server = Process::start_with_files(256, &["--header-timeout", "10m"]);
    let url = server.address().expect("it is ready");
    let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
    assert_eq!(server.logged("listening")[0]["max_connections"], 160);
    let half = half_sent(address, 400).await;
    let caller = server.caller();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(caller.get(path).await.status, 200, "{path}");
    }
    // Requests other than probes are served, or refused with a retry hint.
    until("served", async || {
        let small = json!({"prompt": "A", "max_tokens": 1});
        caller.post("/v1/completions", small).await.status == 200
    })
    .await;
    assert_eq!(
        server.logged("connection not accepted"),
        [] as [serde_json::Value; 0]
    );
    drop(half);
    server.stop();
}

/// Opens 10,000 connections with a request each, or as many as this process and the server can open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_are_kept_and_served() {
    let files = skald::resources::raise_file_limit().unwrap_or(10_500);
    let count = files.saturating_sub(500).min(10_000);
    let server = Process::start(&["--header-timeout", "10m"]);
    let limit = server.logged("listening")[0]["max_connections"]
        .as_u64()
        .unwrap();
    let count = count.min(usize::try_from(limit).unwrap() - 10);
    println!("{count} connections");
    let url = server.address().expect("it is ready");
    let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        sockets.push(TcpStream::connect(address).await.expect("a connection"));
    }
    for round in 0..2 {
        for socket in &mut sockets {
            let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
            socket.write_all(request).await.expect("sent");
        }
        for socket in &mut sockets {
            let mut answer = vec![0; 512];
            let read = timeout(PATIENCE, socket.read(&mut answer)).await;
            let read = read.expect("an answer in time").expect("an answer");
            assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "round {round}");
        }
    }
    let metrics = server.caller().get("/metrics").await.body;
    let open = value(metrics.as_str().unwrap(), "skald_connections");
    assert!(open >= count as f64, "{open}");
    let small = json!({"prompt": "A", "max_tokens": 1});
    assert_eq!(
        server.caller().post("/v1/completions", small).await.status,
        200
    );
    drop(sockets);
    let caller = server.caller();
    until("they are gone", async || {
        let metrics = caller.get("/metrics").await.body;
        value(metrics.as_str().unwrap(), "skald_connections") == 1.0
    })
    .await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_does_not_stop_the_server() {
    let server = Process::start(&[]);
    server.signal("HUP");
    server.until_logged(
        "SIGHUP received, nothing to reload; other settings are read at the start only",
    );
    server.signal("HUP");
    let small = json!({"prompt": "A", "max_tokens": 1});
    assert_eq!(
        server.caller().post("/v1/completions", small).await.status,
        200
    );
    server.stop();
}
