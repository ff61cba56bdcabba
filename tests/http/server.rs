//! The server around the dialects: probes, request ids, limits, clients that disconnect, a worker that
//! panics, a full queue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::support::load::{begun, endless, held, slow, streamed};
use crate::support::pace::{PATIENCE, until};
use crate::support::sse::{Events, Live};
use crate::support::{Setup, TestServer, client};
use serde_json::json;
use skald::engine::EngineConfig;
use skald::http::HttpConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

#[tokio::test]
async fn probes_and_info_tell_how_the_server_is() {
    for path in ["/livez", "/readyz", "/health"] {
        assert_eq!(
            SERVER.get(path).await.ok(),
            json!({"status": "ok"}),
            "{path}"
        );
    }
    let info = SERVER.get("/info").await.ok();
    assert_eq!(info["model_id"], "fairy-tales");
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["model"]["n_layer"], 6);
    assert_eq!(info["model"]["n_inner"], 1280);
    assert_eq!(info["limits"]["max_context_tokens"], 1024);
    assert_eq!(info["limits"]["max_stop_strings"], 16);
    assert_eq!(info["engine"]["alive"], true);
    assert!(
        info["features"]
            .as_array()
            .unwrap()
            .contains(&json!("sessions"))
    );
}

#[tokio::test]
async fn without_a_model_the_server_is_alive_but_not_ready() {
    let server = TestServer::with(Setup {
        load: false,
        ..Setup::default()
    });
    assert_eq!(server.get("/livez").await.status, 200);
    for path in ["/readyz", "/health"] {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (503, &json!("loading"))
        );
    }
    let openai = server.post("/v1/completions", json!({"prompt": "a"})).await;
    assert_eq!(openai.status, 503);
    assert_eq!(openai.body["error"]["code"], "model_loading");
    assert_eq!(openai.header("retry-after"), "5");
    assert_eq!(openai.header("retry-after-ms"), "5000");
    let native = server.post("/generate", json!({"inputs": "a"})).await;
    assert_eq!(native.status, 503);
    assert_eq!(native.body["error_type"], "unavailable");
    assert_eq!(server.get("/v1/models").await.status, 503);
    assert_eq!(server.get("/info").await.status, 503);
    // Loading fails for good.
    server.app.fail("disk on fire".to_owned());
    let answer = server.get("/readyz").await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (503, &json!("disk on fire"))
    );
    let failed = server.post("/generate", json!({"inputs": "a"})).await;
    assert!(failed.message().contains("disk on fire"));
}

#[tokio::test]
async fn every_answer_bears_a_request_id() {
    let send = |id: &'static str| async move {
        let request = client()
            .get(SERVER.url("/nowhere"))
            .header("x-request-id", id);
        let answer = request.send().await.unwrap();
        answer.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(send("mine-1.2:3").await, "mine-1.2:3");
    assert_ne!(send("not mine").await, "not mine");
    let long: &'static str = Box::leak("x".repeat(200).into_boxed_str());
    assert_eq!(send(long).await.len(), 32);
    let fresh = SERVER.get("/livez").await;
    assert_eq!(fresh.header("x-request-id").len(), 32);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_in_the_dialect_of_the_path() {
    let openai = SERVER.get("/v1/nothing").await;
    assert_eq!(openai.status, 404);
    assert_eq!(openai.body["error"]["code"], "not_found");
    let native = SERVER.get("/nothing").await;
    assert_eq!(
        (native.status, &native.body["error_type"]),
        (404, &json!("not_found"))
    );
    let openai = SERVER.get("/v1/completions").await;
    assert_eq!(openai.status, 405);
    assert_eq!(openai.body["error"]["code"], "method_not_allowed");
    assert_eq!(openai.header("allow"), "POST");
    let native = SERVER.delete("/generate").await;
    assert_eq!((native.status, native.header("allow")), (405, "POST"));
    let not_utf8 = SERVER.get("/v1/sessions/%ff").await;
    assert_eq!(not_utf8.status, 400);
    assert_eq!(not_utf8.body["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn the_content_type_does_not_matter() {
    for kind in [
        "application/json",
        "text/plain",
        "application/x-www-form-urlencoded",
    ] {
        let request = client()
            .post(SERVER.url("/generate"))
            .header("content-type", kind)
            .body(r#"{"inputs":"A","parameters":{"max_new_tokens":1}}"#);
        assert_eq!(request.send().await.unwrap().status(), 200, "{kind}");
    }
    let bare = client()
        .post(SERVER.url("/generate"))
        .body(r#"{"inputs":"A","parameters":{"max_new_tokens":1}}"#);
    assert_eq!(bare.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_body_that_is_too_large_or_too_slow_is_refused() {
    let limited = |change: fn(&mut HttpConfig)| {
        let mut setup = Setup {
            load: false,
            ..Setup::default()
        };
        setup.http = HttpConfig {
            max_body: bytesize::ByteSize::kib(1),
            // No timeout, however slow the machine is.
            body_timeout: PATIENCE,
            header_timeout: PATIENCE,
            ..setup.http
        };
        change(&mut setup.http);
        TestServer::with(setup)
    };
    let server = limited(|_| ());
    let large = json!({"prompt": "x".repeat(2000)}).to_string();
    let declared = server.post_text("/v1/completions", large.clone()).await;
    assert_eq!(declared.status, 413);
    assert_eq!(declared.body["error"]["code"], "request_too_large");
    assert!(
        declared.message().contains("1024"),
        "{}",
        declared.message()
    );
    // Without a content length, the size is counted while the body is read.
    let chunked = raw(
        &server,
        &format!(
            "POST /generate HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
            large.len()
        ),
    )
    .await;
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");
    assert!(chunked.contains("too_large"), "{chunked}");
    let server = limited(|http| http.body_timeout = Duration::from_millis(100));
    let slow = raw(
        &server,
        "POST /generate HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 20\r\n\r\n{",
    )
    .await;
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
    // A head that never ends and a silent connection are closed.
    let server = limited(|http| http.header_timeout = Duration::from_millis(200));
    for head in ["GET /livez HTTP/1.1\r\nhost: localhost\r\n", ""] {
        raw(&server, head).await;
    }
}

/// Sends bytes and reads until the server closes the connection.
async fn raw(server: &TestServer, request: &str) -> String {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let whole = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    // A reset ends it too: the server does not read the rest of a request that it refuses.
    let _ = whole.expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn http_2_without_tls_is_spoken() {
    let mut socket = TcpStream::connect(SERVER.address).await.unwrap();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    // :method GET, :scheme http, :path /livez, :authority x
    let headers = [&[0x82, 0x86, 0x04, 6][..], b"/livez", &[0x01, 1], b"x"].concat();
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(4, 0, 0, &[]));
    request.extend(frame(1, 5, 1, &headers));
    socket.write_all(&request).await.unwrap();
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload).await.unwrap();
        if head[3] == 1 {
            assert_eq!((head[8], payload[0]), (1, 0x88), "200 on stream 1");
            break;
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let server = TestServer::start();
    let response = begun(&server, endless()).await;
    server.until("running", |status| status.running == 1).await;
    drop(response);
    server.until("free", |status| status.running == 0).await;

    // Also without a stream, where the first byte would be sent at the end.
    let request = client()
        .post(server.url("/v1/completions"))
        .body(endless().to_string())
        .send();
    let request = tokio::spawn(request);
    server.until("running", |status| status.running == 1).await;
    request.abort();
    server.until("free", |status| status.running == 0).await;

    // Also all choices of one request.
    let mut several = endless();
    several["n"] = json!(3);
    let response = begun(&server, several).await;
    server.until("running", |status| status.running == 3).await;
    drop(response);
    server
        .until("free", |status| {
            status.running == 0 && status.kv_blocks_used == 0
        })
        .await;
}

#[tokio::test]
async fn a_session_keeps_what_a_client_that_went_away_received() {
    let server = slow(Duration::from_millis(5), |_| {});
    let mut body = endless();
    body["session_id"] = json!("cut-off");
    let response = begun(&server, body).await;
    drop(response);
    // The engine notices within a step; the turn is committed after that.
    let session = server.caller().idle("cut-off").await;
    let text = session["text"].as_str().unwrap();
    assert!(text.starts_with("On and on") && text.len() > "On and on".len());
    assert_eq!(session["busy"], false);
}

#[tokio::test]
async fn a_full_queue_is_told_before_the_stream_begins() {
    let server = slow(Duration::from_millis(20), |setup| {
        setup.engine.max_batch = 1;
        setup.engine.queue_limit = 1;
    });
    let running = begun(&server, endless()).await;
    let waiting = tokio::spawn({
        let request = client()
            .post(server.url("/v1/completions"))
            .body(endless().to_string());
        request.send()
    });
    server.until("waiting", |status| status.waiting == 1).await;
    let refused = server.post("/v1/completions", streamed(endless())).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.body["error"]["code"], "rate_limit_exceeded");
    assert_eq!(refused.header("retry-after"), "1");
    let refused = server
        .post("/generate_stream", json!({"inputs": "a"}))
        .await;
    assert_eq!(
        (refused.status, &refused.body["error_type"]),
        (429, &json!("overloaded"))
    );
    assert_eq!(refused.header("retry-after"), "1");
    drop(running);
    waiting.abort();
    server
        .until("free", |status| status.running + status.waiting == 0)
        .await;
    let at_last = server.post(
        "/generate",
        json!({"inputs": "a", "parameters": {"max_new_tokens": 1}}),
    );
    assert_eq!(at_last.await.status, 200);
}

#[tokio::test]
async fn a_panic_in_the_worker_fails_its_requests_and_no_others() {
    let panics = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&panics);
    let server = TestServer::with(Setup {
        engine: EngineConfig {
            step_hook: Some(Arc::new(move |_| {
                assert!(!hook.swap(false, Ordering::SeqCst), "injected");
            })),
            ..Setup::default().engine
        },
        ..Setup::default()
    });
    let small = json!({"prompt": "A", "max_tokens": 3});
    panics.store(true, Ordering::SeqCst);
    let failed = server.post("/v1/completions", small.clone()).await;
    assert_eq!(failed.status, 500);
    assert_eq!(failed.body["error"]["type"], "server_error");
    assert!(
        failed.message().contains("injected"),
        "{}",
        failed.message()
    );
    panics.store(true, Ordering::SeqCst);
    let native = json!({"inputs": "A", "parameters": {"max_new_tokens": 3}});
    let failed = server.post("/generate", native.clone()).await;
    assert_eq!(
        (failed.status, &failed.body["error_type"]),
        (424, &json!("generation"))
    );

    // In a stream that has begun the error is an event, and the last.
    let response = begun(&server, endless()).await;
    panics.store(true, Ordering::SeqCst);
    let events = Events::parse(&response.text().await.unwrap());
    assert!(!events.done);
    let last = events.data.last().unwrap();
    assert_eq!(last["error"]["type"], "server_error");
    assert_eq!(
        events
            .data
            .iter()
            .filter(|event| event.get("error").is_some())
            .count(),
        1
    );

    assert_eq!(server.post("/v1/completions", small).await.status, 200);
    assert_eq!(server.post("/generate", native).await.status, 200);
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_worker_that_is_gone_is_not_healthy() {
    let server = TestServer::start();
    server.engine().stop();
    server.until("stopped", |status| !status.alive).await;
    for path in ["/livez", "/readyz", "/health"] {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (503, &json!("worker stopped"))
        );
    }
    let refused = server.post("/v1/completions", json!({"prompt": "a"})).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.body["error"]["code"], "unavailable");
}

#[tokio::test]
async fn a_worker_that_has_work_and_makes_no_step_is_not_alive() {
    let (server, gate) = held(0, |setup| {
        setup.http.watchdog_timeout = Duration::from_millis(200);
    });
    let paths = ["/livez", "/readyz", "/health", "/ping"];
    // Without work a worker makes no steps and is alive.
    tokio::time::sleep(Duration::from_millis(250)).await;
    for path in paths {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let small = json!({"prompt": "A", "max_tokens": 3});
    let request = client().post(server.url("/v1/completions"));
    let waiting = tokio::spawn(request.body(small.to_string()).send());
    until("not alive", async || {
        server.get("/livez").await.status == 503
    })
    .await;
    for path in paths {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (503, &json!("worker stalled")),
            "{path}"
        );
        let why = answer.body["error"].as_str().expect("a reason");
        assert!(why.contains("watchdog-timeout"), "{why}");
    }
    let refused = server.post("/v1/completions", small).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.body["error"]["code"], "unavailable");
    assert_eq!(refused.header("retry-after"), "10");
    // The worker continues after a step that took longer than the limit.
    gate.open();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    for path in paths {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_silent_stream_sends_comments() {
    let (server, gate) = held(1, |setup| {
        setup.http.keep_alive = Duration::from_millis(30);
    });
    let body = json!({"prompt": "A", "max_tokens": 2, "stream": true});
    let mut response = server.send("/v1/completions", body.to_string()).await;
    let mut text = String::new();
    let comments = |text: &str| text.split("\n\n").filter(|e| e.starts_with(':')).count();
    while comments(&text) < 2 {
        let chunk = response.chunk().await.unwrap().expect("it goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    gate.open();
    text.push_str(&response.text().await.unwrap());
    let events = Events::parse(&text);
    assert!(events.done);
    assert_eq!(events.finish_reason(0), ["length"]);
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let (server, gate) = held(2, |_| {});
    let body = json!({"prompt": "A", "max_tokens": 9, "ignore_eos": true, "stream": true});
    let mut stream = Live::new(server.send("/v1/completions", body.to_string()).await);
    for _ in 0..5 {
        // The tokens after the next one are computed only after this event was received.
        let event = stream.next().await.unwrap().expect("an event");
        assert_eq!(event["choices"][0]["finish_reason"], json!(null));
        gate.allow(1);
    }
    gate.open();
    while stream.next().await.unwrap().is_some() {}
}
