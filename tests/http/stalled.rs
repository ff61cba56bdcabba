//! Clients that stop reading: their requests are set aside at once, so that others continue. They resume if
//! the client reads again, and are ended if it does not.

use std::time::{Duration, Instant};

use crate::support::keys::{FREE, KeysFile};
use crate::support::load::{endless, streamed};
use crate::support::metrics::Metrics;
use crate::support::pace::{PATIENCE, until};
use crate::support::reader::{Http1, Http2, read_stream, small_socket};
use crate::support::sse::Events;
use crate::support::{Setup, TestServer, client};
use bytesize::ByteSize;
use serde_json::{Value, json};
use skald::http::HttpConfig;
use skald::keys::KeyScope;
use tokio::io::AsyncWriteExt;

const COMPLETIONS: &str = "/v1/completions";

/// Starts a server with this many places in the batch that does not end stalled answers.
fn server(max_batch: usize) -> TestServer {
    ending_after(PATIENCE, max_batch)
}

/// Starts a server that ends answers whose clients do not read for `stall_timeout`.
fn ending_after(stall_timeout: Duration, max_batch: usize) -> TestServer {
    let mut setup = Setup::default();
    setup.engine.max_batch = max_batch;
    setup.http = HttpConfig {
        stall_timeout,
        ..HttpConfig::default()
    };
    TestServer::with(setup)
}

/// Returns a request whose text exceeds the buffers between the server and a client that does not read.
fn long(fields: &Value) -> Value {
    let mut body = json!({
        "prompt": "Once upon a time", "max_tokens": 900, "temperature": 1, "seed": 5,
        "ignore_eos": true, "stream": true, "overflow": "slide",
    });
    for (name, value) in fields.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// Returns text, log-probabilities and finish reasons of each choice of a stream.
fn told(stream: &str) -> Vec<(String, Vec<Value>, Vec<String>)> {
    let events = Events::parse(stream);
    assert!(events.done, "a whole stream");
    let of = |index| {
        let logprobs = events.choices(index).map(|c| c["logprobs"].clone());
        let finish = events.finish_reason(index).into_iter().map(str::to_owned);
        (events.text_of(index), logprobs.collect(), finish.collect())
    };
    (0..3).map(of).collect()
}

/// Returns the result of the same request for a client that reads.
async fn read_at_once(server: &TestServer, body: &Value) -> Vec<(String, Vec<Value>, Vec<String>)> {
    let response = server.send(COMPLETIONS, body.to_string()).await;
    assert_eq!(response.status(), 200);
    told(&response.text().await.expect("a whole body"))
}

/// Waits until this many requests are set aside and hold nothing.
async fn until_set_aside(server: &TestServer, requests: usize) {
    server
        .until("set aside", |status| {
            (status.stalled, status.running, status.kv_blocks_used) == (requests, 0, 0)
        })
        .await;
}

/// Asserts that another client is answered meanwhile.
async fn others_go_on(server: &TestServer) {
    let body = json!({"prompt": "The fox", "max_tokens": 20, "ignore_eos": true});
    let answer = server.post(COMPLETIONS, body).await.ok();
    assert_eq!(answer["usage"]["completion_tokens"], 20);
    let input = json!({"input": ["The fox", "The bear"]});
    server.post("/v1/embeddings", input).await.ok();
}

#[tokio::test]
async fn http_2_streams_without_a_window_give_up_their_places_and_lose_nothing() {
    let server = server(4);
    let requests = [
        long(&json!({})),
        long(&json!({"n": 2, "seed": 8})),
        long(&json!({"guided_regex": "([a-z]+ )+"})),
        long(&json!({"session_id": "stalled", "logprobs": 2})),
    ];
    let mut expected = Vec::new();
    for body in &requests {
        let mut alone = body.clone();
        if alone.get("session_id").is_some() {
            alone["session_id"] = json!("read");
        }
        expected.push(read_at_once(&server, &alone).await);
    }
    let mut client = Http2::connect(server.address, 0).await;
    let mut stalled = Vec::new();
    for body in &requests {
        stalled.push(client.post(COMPLETIONS, body).await);
    }
    until_set_aside(&server, 5).await;
    others_go_on(&server).await;
    until_set_aside(&server, 5).await;
    client.open(1 << 20);
    let texts = futures_util::future::join_all(stalled.into_iter().map(read_stream)).await;
    for (text, expected) in texts.into_iter().zip(&expected) {
        assert_eq!(&told(&text.expect("a whole body")), expected);
    }
    let caller = server.caller();
    assert_eq!(
        caller.history("stalled").await,
        caller.history("read").await
    );
}

#[tokio::test]
async fn http_1_streams_that_are_not_read_give_up_their_places_and_lose_nothing() {
    let server = server(3);
    let requests: Vec<Value> = (0..3)
        .map(|seed| long(&json!({"seed": seed, "logprobs": 20})))
        .collect();
    let mut expected = Vec::new();
    for body in &requests {
        expected.push(read_at_once(&server, body).await);
    }
    let mut stalled = Vec::new();
    for body in &requests {
        stalled.push(Http1::post(server.address, COMPLETIONS, body).await);
    }
    until_set_aside(&server, 3).await;
    others_go_on(&server).await;
    let texts = futures_util::future::join_all(stalled.into_iter().map(Http1::read)).await;
    for (text, expected) in texts.into_iter().zip(&expected) {
        assert_eq!(&told(&text.expect("a whole body")), expected);
    }
}

/// Waits until the number of completions with this outcome is `count`.
async fn until_outcome(server: &TestServer, outcome: &str, count: f64) {
    until(outcome, async || {
        let outcomes = Metrics::of(server).await.outcomes(COMPLETIONS);
        outcomes.get(outcome) == Some(&count)
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_nothing_is_taken_of_is_ended_and_its_session_goes_on() {
    let server = ending_after(Duration::from_millis(300), 2);
    let mut body = streamed(endless());
    body["logprobs"] = json!(20);
    body["session_id"] = json!("http-2");
    let over_2 = Http2::connect(server.address, 0).await;
    let _unread = over_2.post(COMPLETIONS, &body).await;
    body["session_id"] = json!("http-1");
    let over_1 = Http1::post(server.address, COMPLETIONS, &body).await;
    until_outcome(&server, "stalled", 2.0).await;
    server
        .until("free", |status| {
            (status.stalled, status.running, status.kv_blocks_used) == (0, 0, 0)
        })
        .await;
    // The connections can't be used any more.
    over_2.closed().await;
    let cut = over_1.read().await.expect_err("its connection is closed");
    assert_eq!(cut.to_string(), "error reading a body from connection");
    let caller = server.caller();
    let kept = caller.idle("http-1").await;
    assert!(kept["text"].as_str().unwrap().starts_with("On and on"));
    let next = json!({"prompt": "And", "max_tokens": 2, "session_id": "http-1"});
    server.post(COMPLETIONS, next).await.ok();
}

/// A proxy sends the streams of many clients over one connection.
#[tokio::test]
async fn the_other_streams_of_its_connection_go_on() {
    let server = ending_after(Duration::from_millis(300), 4);
    let shared = Http2::connect(server.address, 1 << 15).await;
    let read = shared.post(COMPLETIONS, &streamed(endless())).await;
    let mut read = read.into_body();
    let mut body = streamed(endless());
    body["logprobs"] = json!(20);
    let unread = shared.post(COMPLETIONS, &body).await;
    let ended = until_outcome(&server, "stalled", 1.0);
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => break,
            data = read.data() => {
                let data = data.expect("it goes on").expect("it goes on");
                read.flow_control().release_capacity(data.len()).expect("it is open");
            }
        }
    }
    let data = read.data().await.expect("it goes on").expect("it goes on");
    assert!(!data.is_empty());
    let reset = read_stream(unread).await.expect_err("its stream is reset");
    assert!(reset.is_reset(), "{reset}");
}

/// An answer without streaming that is too large for the buffers in between.
#[tokio::test]
async fn an_answer_that_is_not_read_is_ended_too() {
    let server = ending_after(Duration::from_millis(300), 4);
    let body = json!({"input": vec!["The fox"; 512]}).to_string();
    let mut socket = small_socket(server.address).await;
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket.write_all(body.as_bytes()).await.expect("sent");
    until("reset", async || {
        socket.take_error().expect("a socket").is_some()
    })
    .await;
    // A client that reads receives all of it.
    let whole = client()
        .post(server.url("/v1/embeddings"))
        .body(body)
        .send();
    let whole: Value = whole.await.expect("an answer").json().await.expect("whole");
    assert_eq!(whole["data"].as_array().map(Vec::len), Some(512));
}

/// Whole answers that are not read take a bounded amount of memory: those without progress for the longest
/// are cut off, of the key that holds the most.
#[tokio::test]
async fn answers_that_are_not_read_are_bounded() {
    let mut setup = Setup::default();
    setup.http.stall_timeout = PATIENCE;
    setup.http.max_pending = ByteSize::mib(3);
    let mut keys = KeysFile::new();
    let [greedy, honest] =
        ["greedy", "honest"].map(|name| keys.add(name, KeyScope::Generate, FREE));
    setup.access.keys = Some(keys.load());
    let server = TestServer::with(setup);
    // An answer of more than half a megabyte.
    let large = json!({"content": "a b c d e f g h ".repeat(4000), "with_pieces": true});
    let of_honest = Http2::connect(server.address, 0).await.with_key(honest);
    let kept = of_honest.post("/tokenize", &large).await;
    let mut of_greedy = Http2::connect(server.address, 0).await.with_key(greedy);
    let mut unread = Vec::new();
    for _ in 0..5 {
        unread.push(of_greedy.post("/tokenize", &large).await);
    }
    // None of them is old enough yet; a second later, others have all the space they need.
    let caller = server.caller().with_key(honest);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        caller.post("/tokenize", large.clone()).await.ok();
    }
    unread.push(of_greedy.post("/tokenize", &large).await);
    of_greedy.open(1 << 22);
    let mut cut = 0;
    for answer in unread {
        assert_eq!(answer.status(), 200);
        if let Err(error) = read_stream(answer).await {
            assert!(error.is_reset(), "{error}");
            cut += 1;
        }
    }
    assert!(cut > 0, "all were kept");
    let mut of_honest = of_honest;
    of_honest.open(1 << 22);
    let whole = read_stream(kept).await.expect("another key's is kept");
    assert!(whole.len() > 1 << 19);
}
