//! Overload: which requests are refused, with which errors and retry hints; and requests with a time limit of
//! their own.

use std::time::Duration;

use crate::support::load::{begun, endless, held, slow, streamed};
use crate::support::pace::Gate;
use crate::support::sse::Events;
use crate::support::{Answer, TestServer, client};
use serde_json::{Value, json};
use skald::http::HttpConfig;

const COMPLETIONS: &str = "/v1/completions";

/// Starts a server with one place in the batch, and a running request that holds it.
async fn full(queue_timeout: Duration) -> (TestServer, reqwest::Response) {
    let server = slow(Duration::from_millis(5), |setup| {
        setup.engine.max_batch = 1;
        setup.engine.queue_timeout = queue_timeout;
    });
    let running = begun(&server, endless()).await;
    (server, running)
}

/// Returns requests in every dialect, streamed and not.
fn small() -> [(&'static str, Value); 6] {
    [
        (COMPLETIONS, json!({"prompt": "A", "max_tokens": 2})),
        (COMPLETIONS, json!({"prompt": "A", "stream": true, "n": 2})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "A"}], "stream": true}),
        ),
        ("/generate", json!({"inputs": "A"})),
        ("/generate_stream", json!({"inputs": "A"})),
        ("/v1/embeddings", json!({"input": ["A", "B"]})),
    ]
}

/// Returns the code of an error, in either dialect.
fn code(answer: &Answer) -> &str {
    let code = &answer.body["error"]["code"];
    let code = code.as_str().or(answer.body["error_type"].as_str());
    code.unwrap_or_default()
}

#[tokio::test]
async fn a_request_that_waited_too_long_is_told_so_before_its_answer_begins() {
    let (server, running) = full(Duration::from_millis(300)).await;
    for (path, body) in small() {
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, 503, "{path}: {}", answer.body);
        let expected = if path.starts_with("/v1") {
            "queue_timeout"
        } else {
            "overloaded"
        };
        assert_eq!(code(&answer), expected, "{path}");
        assert!(answer.message().contains("--queue-timeout"), "{path}");
        assert!(!answer.header("retry-after").is_empty(), "{path}");
    }
    // The refused requests have left the queue.
    server.until("alone", |status| status.waiting == 0).await;
    drop(running);
    for (path, body) in small() {
        server.until("free", |status| status.running == 0).await;
        let answer = server.send(path, body.to_string()).await;
        assert_eq!(answer.status(), 200, "{path}");
    }
}

/// The worker accepts no requests at all.
#[tokio::test]
async fn a_worker_that_is_stuck_does_not_hold_requests_for_ever() {
    let (server, gate) = held(0, |setup| {
        setup.engine.queue_timeout = Duration::from_millis(300);
    });
    let stuck = client()
        .post(server.url(COMPLETIONS))
        .body(endless().to_string());
    let stuck = tokio::spawn(stuck.send());
    server
        .until("running", |status| !status.silence.is_zero())
        .await;
    for (path, body) in small() {
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, 503, "{path}: {}", answer.body);
    }
    stuck.abort();
    gate.open();
    let (path, body) = small()[0].clone();
    server.post(path, body).await.ok();
}

#[tokio::test]
async fn a_request_that_would_wait_too_long_is_refused_with_the_measured_time() {
    let server = slow(Duration::from_millis(10), |setup| {
        setup.engine.max_batch = 1;
        setup.engine.queue_timeout = Duration::from_secs(10);
    });
    // Each takes 0.3 s.
    let body = json!({"prompt": "A", "max_tokens": 30, "ignore_eos": true}).to_string();
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let request = client().post(server.url(COMPLETIONS)).body(body.clone());
            tokio::spawn(request.send())
        })
        .collect();
    server
        .until("measured", |status| status.begun_per_second.is_some())
        .await;
    for path in [COMPLETIONS, "/v1/embeddings"] {
        let body = json!({"prompt": "A", "input": "A"});
        let refused = server.post(path, body).await;
        assert_eq!(refused.status, 429, "{}", refused.body);
        assert_eq!(code(&refused), "rate_limit_exceeded");
        let message = refused.message();
        assert!(message.contains("estimated wait"), "{message}");
        assert!(message.contains("--queue-timeout"), "{message}");
        // Half of a wait of more than ten seconds, not the one second that is the hint without a measurement.
        let milliseconds: u64 = refused.header("retry-after-ms").parse().expect("a number");
        assert!(milliseconds > 5000, "{milliseconds}");
        let seconds: u64 = refused.header("retry-after").parse().expect("a number");
        assert_eq!(seconds, milliseconds.div_ceil(1000));
    }
    let mut answered = 0;
    for request in requests {
        match request
            .await
            .expect("no panic")
            .expect("an answer")
            .status()
        {
            status if status == 200 => answered += 1,
            status => assert_eq!(status, 503, "accepted, and waited too long"),
        }
    }
    assert!(answered > 0);
    // The queue is empty again.
    let body = json!({"prompt": "A", "max_tokens": 1});
    server.post(COMPLETIONS, body).await.ok();
}

/// Adds a time limit to a request.
fn within(path: &str, mut body: Value, seconds: f64) -> Value {
    if path.starts_with("/v1") {
        body["timeout"] = json!(seconds);
    } else {
        body["parameters"]["timeout"] = json!(seconds);
    }
    body
}

#[track_caller]
fn is_past_deadline(path: &str, answer: &Answer) {
    assert_eq!(answer.status, 408, "{path}: {}", answer.body);
    assert_eq!(code(answer), "timeout", "{path}");
    assert!(answer.message().contains("`timeout`"), "{path}");
    assert_eq!(answer.header("x-should-retry"), "false", "{path}");
}

#[tokio::test]
async fn a_request_in_the_queue_ends_at_its_own_timeout() {
    let (server, running) = full(Duration::from_secs(100)).await;
    for (path, body) in small() {
        let answer = server.post(path, within(path, body, 0.2)).await;
        is_past_deadline(path, &answer);
    }
    server.until("alone", |status| status.waiting == 0).await;
    drop(running);
}

#[tokio::test]
async fn a_request_that_waits_for_its_session_ends_at_its_own_timeout() {
    let server = slow(Duration::from_millis(5), |_| {});
    let mut body = endless();
    body["session_id"] = json!("busy");
    let running = begun(&server, body).await;
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": "A", "session_id": "busy"})),
        ("/generate", json!({"inputs": "A", "session_id": "busy"})),
    ] {
        let answer = server.post(path, within(path, body, 0.2)).await;
        is_past_deadline(path, &answer);
    }
    server.until_waiting(0).await;
    drop(running);
}

#[tokio::test]
async fn a_running_request_ends_at_its_own_timeout() {
    let server = slow(Duration::from_millis(5), |_| {});
    let answer = server
        .post(COMPLETIONS, within(COMPLETIONS, endless(), 0.3))
        .await;
    is_past_deadline(COMPLETIONS, &answer);
    let native = json!({
        "inputs": "A", "overflow": "slide",
        "parameters": {"max_new_tokens": 200_000, "do_sample": false}
    });
    let answer = server
        .post("/generate", within("/generate", native.clone(), 0.3))
        .await;
    is_past_deadline("/generate", &answer);

    // The text is what the stream has sent, and the session keeps the same.
    let mut body = within(COMPLETIONS, streamed(endless()), 0.5);
    body["session_id"] = json!("late");
    // The session's text would include an end-of-text token, the stream's does not.
    body["logit_bias"] = json!({"8191": -100});
    let events = server.stream(COMPLETIONS, body).await;
    assert!(!events.done);
    let last = events.data.last().expect("an event");
    assert_eq!(last["error"]["code"], "timeout");
    let session = server.caller().idle("late").await;
    let text = format!("On and on{}", events.text_of(0));
    assert_eq!(session["text"], json!(text));
    let native = within("/generate_stream", native, 0.5);
    let events: Events = server.stream("/generate_stream", native).await;
    let last = events.data.last().expect("an event");
    assert_eq!(last["error_type"], "timeout");
    server
        .until("free", |status| {
            (status.running, status.kv_blocks_used) == (0, 0)
        })
        .await;
}

#[tokio::test]
async fn a_timeout_is_checked_and_changes_nothing_where_there_is_time() {
    let server = TestServer::start();
    for (path, body) in small() {
        for wrong in [json!(0), json!(-1), json!(86_401), json!("1s")] {
            let mut body = within(path, body.clone(), 1.0);
            if path.starts_with("/v1") {
                body["timeout"] = wrong;
            } else {
                body["parameters"]["timeout"] = wrong;
            }
            let refused = server.post(path, body).await;
            let status = if path.starts_with("/v1") { 400 } else { 422 };
            assert_eq!(refused.status, status, "{path}: {}", refused.body);
            assert!(refused.message().contains("timeout"), "{path}");
        }
    }
    let body = json!({"prompt": "A", "max_tokens": 9, "seed": 1});
    let without = server.post(COMPLETIONS, body.clone()).await.ok();
    let with = server.post(COMPLETIONS, within(COMPLETIONS, body, 3600.0));
    assert_eq!(with.await.ok()["choices"], without["choices"]);
}

/// A stop ends waiting requests too.
#[tokio::test]
async fn a_queue_ends_with_the_server() {
    let gate = Gate::after(1);
    let server = slow(Duration::from_millis(1), |setup| {
        setup.engine.step_hook = Some(gate.hook());
        setup.engine.max_batch = 1;
        setup.http = HttpConfig {
            drain_timeout: Duration::from_millis(100),
            ..HttpConfig::default()
        };
    });
    let running = server
        .send(COMPLETIONS, streamed(endless()).to_string())
        .await;
    let waiting = client()
        .post(server.url(COMPLETIONS))
        .body(endless().to_string());
    let waiting = tokio::spawn(waiting.send());
    server.until("waiting", |status| status.waiting == 1).await;
    server.stop();
    gate.open();
    let waiting = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(waiting.status(), 503);
    let waiting: Value = waiting.json().await.expect("JSON");
    assert_eq!(waiting["error"]["code"], "shutting_down");
    let running = Events::parse(&running.text().await.expect("a whole body"));
    let last = running.data.last().expect("an event");
    assert_eq!(last["error"]["code"], "shutting_down");
    server.join();
}
