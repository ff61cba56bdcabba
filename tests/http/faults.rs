//! Faults at every stage of a request: the server is asked to stop while the request waits, is prefilled,
//! decodes, or is stalled; and bodies that end before they are complete.

use std::time::Duration;

use crate::support::load::{endless, held, slow, streamed};
use crate::support::pace::{PATIENCE, until};
use crate::support::process::Process;
use crate::support::reader::{Http1, Http2};
use crate::support::{Setup, TestServer, client};
use serde_json::{Value, json};
use skald::http::HttpConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const COMPLETIONS: &str = "/v1/completions";

/// Returns a request with a prompt that takes many steps.
fn long_prompt() -> Value {
    json!({"prompt": vec![300; 900], "max_tokens": 4, "ignore_eos": true})
}

fn prefilling(setup: &mut Setup, drain_timeout: Duration) {
    setup.engine.max_step_tokens = 64;
    setup.http.drain_timeout = drain_timeout;
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_prompt_lets_it_finish() {
    let (server, gate) = held(2, |setup| prefilling(setup, PATIENCE));
    let request = client().post(server.url(COMPLETIONS));
    let request = tokio::spawn(request.body(long_prompt().to_string()).send());
    server.until("running", |status| status.steps == 2).await;
    server.stop();
    until("draining", async || {
        server.get("/readyz").await.status != 200
    })
    .await;
    gate.open();
    let answer = request.await.expect("no panic").expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    server.join();
}

#[tokio::test]
async fn a_prompt_that_outlasts_the_drain_ends_with_an_error() {
    let server = slow(Duration::from_millis(200), |setup| {
        prefilling(setup, Duration::from_millis(50));
    });
    let request = client().post(server.url(COMPLETIONS));
    let request = tokio::spawn(request.body(long_prompt().to_string()).send());
    server.until("running", |status| status.running == 1).await;
    server.stop();
    let answer = request.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status(), 503);
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["error"]["code"], "shutting_down");
    server.join();
}

/// The drain timeout bounds the wait for the client and its connection.
#[tokio::test]
async fn a_stop_does_not_wait_for_a_client_that_does_not_read() {
    let short = Duration::from_millis(100);
    for (stall_timeout, drain_timeout) in [(short, PATIENCE), (PATIENCE, short)] {
        let http = HttpConfig {
            stall_timeout,
            drain_timeout,
            ..HttpConfig::default()
        };
        let setup = Setup {
            http,
            ..Setup::default()
        };
        let server = TestServer::with(setup);
        let connection = Http2::connect(server.address, 0).await;
        let _unread = connection.post(COMPLETIONS, &streamed(endless())).await;
        server.stop();
        until("ended", async || server.has_ended()).await;
        server.join();
    }
}

#[tokio::test]
async fn sigterm_ends_a_process_whose_clients_do_not_read() {
    let mut server = Process::start(&["--drain-timeout", "100ms"]);
    let address = server.address().expect("it is ready");
    let address = address.strip_prefix("http://").expect("an address");
    let address = address.parse().expect("an address");
    let mut body = streamed(endless());
    let over_2 = Http2::connect(address, 0).await;
    let _unread = over_2.post(COMPLETIONS, &body).await;
    body["logprobs"] = json!(20);
    let _over_1 = Http1::post(address, COMPLETIONS, &body).await;
    server.terminate();
    server.ended_within(PATIENCE);
}

/// Waits until a stopping server reports it; probes are answered meanwhile.
async fn until_draining(server: &TestServer) {
    until("draining", async || {
        server.get("/readyz").await.status != 200
    })
    .await;
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_body_refuses_its_request() {
    let (server, gate) = held(2, |setup| prefilling(setup, PATIENCE));
    let running = client().post(server.url(COMPLETIONS));
    let running = tokio::spawn(running.body(long_prompt().to_string()).send());
    server.until("running", |status| status.steps == 2).await;
    let body = json!({"prompt": "A", "max_tokens": 2}).to_string();
    let (first, rest) = body.split_at(10);
    let mut socket = TcpStream::connect(server.address).await.expect("connects");
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{first}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    // The server has received its head: a request that came later is answered.
    assert_eq!(server.get("/livez").await.status, 200);
    server.stop();
    until_draining(&server).await;
    socket.write_all(rest.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    ended.expect("in time").expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("shutting_down"),
        "{answer}"
    );
    gate.open();
    let running = running.await.expect("no panic").expect("an answer");
    assert_eq!(running.status(), 200);
    server.join();
}

#[tokio::test]
async fn a_stop_while_a_request_waits_for_its_session_lets_both_turns_finish_or_says_so() {
    for (drain_timeout, status) in [(PATIENCE, 200), (Duration::from_millis(50), 503)] {
        let server = slow(Duration::from_millis(100), |setup| {
            prefilling(setup, drain_timeout);
        });
        let turn = |mut body: Value| {
            body["session_id"] = json!("tale");
            let request = client().post(server.url(COMPLETIONS));
            tokio::spawn(request.body(body.to_string()).send())
        };
        let first = turn(long_prompt());
        server.until("running", |status| status.running == 1).await;
        let second = turn(json!({"prompt": "A", "max_tokens": 2}));
        server.until_waiting(1).await;
        server.stop();
        for turn in [first, second] {
            let answer = turn.await.expect("no panic").expect("an answer");
            assert_eq!(answer.status(), status);
        }
        server.join();
    }
}

#[tokio::test]
async fn a_stop_while_a_grammar_is_compiled_is_not_held_up() {
    let server = slow(Duration::from_millis(1), |setup| {
        setup.http.drain_timeout = Duration::from_millis(50);
    });
    // The server takes about a second to refuse the grammar.
    let doubling = (0..40).fold("t0: \"a\"\n".to_owned(), |grammar, n| {
        format!("{grammar}t{}: t{n} t{n}\n", n + 1)
    });
    let body = json!({"prompt": "A", "guided_grammar": format!("start: t40\n{doubling}")});
    let compiling = tokio::spawn(
        client()
            .post(server.url(COMPLETIONS))
            .body(body.to_string())
            .send(),
    );
    server.stop();
    until("ended", async || server.has_ended()).await;
    // Either answered, or closed with the connection.
    if let Ok(answer) = compiling.await.expect("no panic") {
        assert!(
            [400, 503].contains(&answer.status().as_u16()),
            "{}",
            answer.status()
        );
    }
    server.join();
}

/// Sends a part of a request and nothing else. Returns everything that the client receives.
async fn cut_off(server: &TestServer, request: &str) -> String {
    let mut socket = TcpStream::connect(server.address)
        .await
        .expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("sent");
    socket.shutdown().await.expect("half closed");
    let mut answer = Vec::new();
    // A reset ends it too.
    let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    let _ = ended.expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_not_a_request() {
    let server = TestServer::start();
    let json = json!({"prompt": "A", "max_tokens": 2}).to_string();
    let declared = |path: &str| {
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n");
        head + &json
    };
    let chunked = |path: &str, rest: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        format!("{head}{:x}\r\n{json}{rest}", json.len())
    };
    for path in [COMPLETIONS, "/generate", "/v1/embeddings", "/tokenize"] {
        for request in [
            declared(path),
            chunked(path, ""),
            // The body is complete, but its end is missing.
            chunked(path, "\r\n"),
            chunked(path, "\r\nnot a length\r\n"),
        ] {
            let answer = cut_off(&server, &request).await;
            let is_refusal = answer.is_empty() || answer.starts_with("HTTP/1.1 400");
            assert!(is_refusal, "{path}: {answer}");
        }
    }
    let status = server.engine().status();
    assert_eq!((status.steps, status.running, status.waiting), (0, 0, 0));
    let body = json!({"prompt": "A", "max_tokens": 2});
    server.post(COMPLETIONS, body).await.ok();
}
