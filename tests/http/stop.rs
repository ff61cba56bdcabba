//! The graceful stop: new requests are refused, and streams in flight finish or end with an error.

use std::time::Duration;

use crate::support::load::{begun, endless, held, slow};
use crate::support::pace::{PATIENCE, until};
use crate::support::{Setup, TestServer, sse::Events};
use serde_json::json;

#[tokio::test]
async fn a_stop_lets_streams_finish_and_refuses_new_ones() {
    let (server, gate) = held(4, |setup| setup.http.drain_timeout = PATIENCE);
    let mut body = endless();
    body["max_tokens"] = json!(60);
    let response = begun(&server, body).await;
    server.stop();
    until("draining", async || {
        server.get("/readyz").await.status != 200
    })
    .await;
    let health = server.get("/health").await;
    assert_eq!(
        (health.status, &health.body["status"]),
        (503, &json!("draining"))
    );
    assert_eq!(server.get("/livez").await.status, 200);
    let refused = server.post("/v1/completions", json!({"prompt": "a"})).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.body["error"]["code"], "shutting_down");
    assert!(!refused.header("retry-after").is_empty());
    gate.open();
    let events = Events::parse(&response.text().await.unwrap());
    assert!(events.done, "the stream ran to its end");
    assert_eq!(events.finish_reason(0), ["length"]);
    server.join();
}

#[tokio::test]
async fn streams_that_outlast_the_drain_end_with_an_error() {
    let server = slow(Duration::from_millis(5), |setup| {
        setup.http.drain_timeout = Duration::from_millis(200);
    });
    let openai = begun(&server, endless()).await;
    // The greedy text repeats itself and does not end.
    let native = json!({
        "inputs": "A", "overflow": "slide",
        "parameters": {"max_new_tokens": 1_000_000, "do_sample": false}
    });
    let mut native = server.send("/generate_stream", native.to_string()).await;
    native.chunk().await.unwrap();
    server.stop();
    let (openai, native) = tokio::join!(openai.text(), native.text());
    let openai = Events::parse(&openai.unwrap());
    assert!(!openai.done);
    assert_eq!(
        openai.data.last().unwrap()["error"]["code"],
        "shutting_down"
    );
    let native = Events::parse(&native.unwrap());
    assert_eq!(
        native.data.last().unwrap()["error_type"],
        "incomplete_generation"
    );
    server.join();
}

#[tokio::test]
async fn a_stop_while_loading_ends_at_once() {
    let server = TestServer::with(Setup {
        load: false,
        ..Setup::default()
    });
    server.stop();
    until("ended", async || server.has_ended()).await;
    // A model that is loaded now is not served: its engine is stopped.
    let late = crate::support::serving(&Setup::default());
    let engine = late.engine.clone();
    server.app.ready(late);
    until("stopped", async || !engine.status().alive).await;
    server.join();
}
