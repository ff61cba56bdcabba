//! Requests of routers and platforms: SGLang's descriptions, vLLM's `/tokenize`, `/ping`, and the answers of
//! a server that is asked to stop.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::support::load::{begun, endless, slow, streamed};
use crate::support::{Setup, TestServer};
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

async fn tokenized(body: Value) -> Value {
    SERVER.post("/tokenize", body).await.ok()
}

/// Returns the status of a refusal and the first field that its message quotes.
async fn refused(path: &str, body: Value) -> (u16, String) {
    let answer = SERVER.post(path, body).await;
    let message = answer.body["error"].as_str().expect("an error").to_owned();
    assert_eq!(answer.body["error_type"], "validation", "{message}");
    let field = message.split('`').nth(1).unwrap_or_default().to_owned();
    (answer.status, field)
}

#[tokio::test]
async fn a_model_is_described_as_sglang_does() {
    let info = SERVER.get("/info").await.ok();
    let model = SERVER.get("/model_info").await.ok();
    assert_eq!(model, SERVER.get("/get_model_info").await.ok());
    assert_eq!(model["is_generation"], true);
    assert_eq!(model["model_type"], info["model"]["architecture"]);
    assert_eq!(model["architectures"], json!(["GPT2LMHeadModel"]));
    for field in ["model_path", "tokenizer_path"] {
        assert!(
            !model[field].as_str().expect("a path").is_empty(),
            "{field}"
        );
    }
}

#[tokio::test]
async fn a_server_is_described_as_sglang_does() {
    let info = SERVER.get("/info").await.ok();
    let server = SERVER.get("/server_info").await.ok();
    assert_eq!(server, SERVER.get("/get_server_info").await.ok());
    let limits = &info["limits"];
    for (field, fact) in [
        ("served_model_name", &info["model_id"]),
        ("version", &info["version"]),
        ("dtype", &info["model"]["dtype"]),
        ("context_length", &limits["max_context_tokens"]),
        ("max_running_requests", &limits["max_batch_requests"]),
        ("max_queued_requests", &limits["max_queue_requests"]),
        ("max_prefill_tokens", &limits["max_step_tokens"]),
    ] {
        assert_eq!(&server[field], fact, "{field}");
    }
    let blocks = info["engine"]["kv_blocks"].as_u64().expect("a number");
    let page = server["page_size"].as_u64().expect("a number");
    assert_eq!(server["max_total_num_tokens"], blocks * page);
}

#[tokio::test]
async fn the_load_counts_what_runs() {
    let server = slow(Duration::from_millis(5), |_| {});
    let idle = json!([{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}]);
    assert_eq!(server.get("/get_load").await.ok(), idle);
    let stream = begun(&server, endless()).await;
    let load = server.get("/get_load").await.ok();
    assert_eq!(load[0]["num_reqs"], 1);
    assert!(load[0]["num_tokens"].as_u64().expect("a number") >= 16);
    drop(stream);
    server.until("idle", |status| status.running == 0).await;
    assert_eq!(server.get("/get_load").await.ok(), idle);
}

#[tokio::test]
async fn nothing_is_described_before_the_model_is_there() {
    let server = TestServer::with(Setup {
        load: false,
        ..Setup::default()
    });
    for path in ["/model_info", "/server_info", "/get_load", "/ping"] {
        assert_eq!(server.get(path).await.status, 503, "{path}");
    }
    let body = json!({"model": "tgi", "prompt": "a"});
    assert_eq!(server.post("/tokenize", body).await.status, 503);
    assert_eq!(SERVER.get("/ping").await.status, 200);
}

#[tokio::test]
async fn a_text_is_tokenized_as_vllm_does() {
    let model = SERVER.get("/info").await.ok()["model_id"].clone();
    let text = "Once upon a time <|endoftext|>";
    let ids = SERVER.ids(text);
    let answer = tokenized(json!({"model": model, "prompt": text})).await;
    let context = SERVER.get("/info").await.ok()["limits"]["max_context_tokens"].clone();
    assert_eq!(
        answer,
        json!({"count": ids.len(), "max_model_len": context, "tokens": ids, "token_strs": null})
    );

    let asked = json!({"prompt": "a time", "return_token_strs": true, "add_special_tokens": true});
    let names = tokenized(asked).await["token_strs"].clone();
    assert_eq!(names, json!(["a", "\u{120}time"]));
    let plain = json!({"prompt": "<|endoftext|>", "parse_special": false});
    assert!(tokenized(plain).await["count"].as_u64() > Some(1));
    let empty = tokenized(json!({"prompt": ""})).await;
    assert_eq!((&empty["count"], &empty["tokens"]), (&json!(0), &json!([])));
}

#[tokio::test]
async fn a_conversation_is_tokenized_as_a_chat_reads_it() {
    let messages = json!([
        {"role": "system", "content": "Tales."},
        {"role": "user", "content": [{"type": "text", "text": "Who was the king?"}]},
    ]);
    for flags in [
        json!({}),
        json!({"add_generation_prompt": false}),
        json!({"add_generation_prompt": false, "continue_final_message": true}),
    ] {
        let mut body = json!({"messages": messages, "max_completion_tokens": 0});
        let fields = flags.as_object().expect("fields").clone();
        body.as_object_mut().expect("fields").extend(fields);
        let chat = SERVER.post("/v1/chat/completions", body.clone()).await.ok();
        let counted = tokenized(body).await;
        assert_eq!(counted["count"], chat["usage"]["prompt_tokens"], "{flags}");
        let tokens = counted["tokens"].as_array().expect("tokens");
        assert_eq!(json!(tokens.len()), counted["count"]);
    }
}

#[tokio::test]
async fn tokens_become_text_as_vllm_and_llama_cpp_have_it() {
    let body = json!({"model": "tgi", "tokens": SERVER.ids("Long ago")});
    let answer = SERVER.post("/detokenize", body).await.ok();
    assert_eq!(answer, json!({"content": "Long ago", "prompt": "Long ago"}));
}

#[tokio::test]
async fn a_bad_body_is_refused_for_its_field() {
    let message = json!({"role": "user", "content": "a"});
    for (body, field) in [
        (json!({"prompt": 3}), "prompt"),
        (json!({"prompt": ["a"]}), "prompt"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "a"}), "messages"),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "king", "content": "a"}]}),
            "messages[0].role",
        ),
        (json!({"prompt": "a", "model": 3}), "model"),
        (
            json!({"prompt": "a", "return_token_strs": "yes"}),
            "return_token_strs",
        ),
        (
            json!({"prompt": "a", "add_special_tokens": 1}),
            "add_special_tokens",
        ),
        (
            json!({"messages": [message], "tools": [{"type": "function"}]}),
            "tools",
        ),
        (
            json!({
                "messages": [message],
                "add_generation_prompt": true, "continue_final_message": true,
            }),
            "continue_final_message: true",
        ),
        (json!({"model": "tgi"}), "content"),
    ] {
        assert_eq!(
            refused("/tokenize", body.clone()).await,
            (422, field.to_owned()),
            "{body}"
        );
    }
    for (first, second) in [
        ("prompt", "messages"),
        ("content", "prompt"),
        ("inputs", "prompt"),
    ] {
        let mut body = json!({first: "a", second: "a"});
        if second == "messages" {
            body[second] = json!([message]);
        }
        let answer = SERVER.post("/tokenize", body).await;
        let said = answer.message().to_owned();
        assert_eq!(answer.status, 422, "{said}");
        for field in [first, second] {
            assert!(said.contains(&format!("`{field}`")), "{said}");
        }
    }
    let body = json!({"tokens": [0, 4_000_000_000_u32]});
    assert_eq!(refused("/detokenize", body).await.0, 422);
}

#[tokio::test]
async fn another_model_is_not_found() {
    for (path, body) in [
        ("/tokenize", json!({"model": "gpt-5", "prompt": "a"})),
        ("/detokenize", json!({"model": "gpt-5", "tokens": [1]})),
    ] {
        let answer = SERVER.post(path, body).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.body["error_type"], "not_found");
        assert!(answer.message().contains("gpt-5"));
    }
    // Endpoints without `model` ignore it, as they ignore other unknown fields.
    let body = json!({"model": "gpt-5", "content": "a"});
    assert_eq!(SERVER.post("/tokenize", body).await.status, 200);
}

/// Waits until a server reports that it is not ready.
async fn until_leaving(server: &TestServer) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.get("/health").await.status == 200 {
        assert!(Instant::now() < deadline, "still ready");
    }
}

#[tokio::test]
async fn a_server_that_leaves_is_not_ready_and_still_serves() {
    let server = TestServer::with(Setup {
        http: skald::http::HttpConfig {
            drain_delay: Duration::from_secs(60),
            ..skald::http::HttpConfig::default()
        },
        ..Setup::default()
    });
    let welcome = server.get("/ping").await;
    assert!(!welcome.headers.contains_key("connection"));
    server.stop();
    until_leaving(&server).await;
    for path in ["/health", "/readyz", "/ping"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.body["status"], "draining");
        assert_eq!(answer.header("connection"), "close");
    }
    assert_eq!(server.get("/livez").await.status, 200);
    let body = json!({"prompt": "a", "max_tokens": 2, "ignore_eos": true});
    let answer = server.post("/v1/completions", body.clone()).await;
    assert_eq!(answer.header("connection"), "close");
    assert_eq!(answer.ok()["usage"]["completion_tokens"], 2);
    let events = server.stream("/v1/completions", streamed(body)).await;
    assert!(events.done);
    assert!(!server.has_ended());
}

#[tokio::test]
async fn after_the_delay_new_requests_are_refused_and_streams_finish() {
    let server = slow(Duration::from_millis(10), |setup| {
        setup.http.drain_delay = Duration::from_millis(100);
    });
    let mut body = endless();
    body["max_tokens"] = json!(80);
    let stream = begun(&server, body).await;
    server.stop();
    let deadline = Instant::now() + Duration::from_secs(5);
    let refused = loop {
        let answer = server
            .post("/v1/completions", json!({"prompt": "a", "max_tokens": 1}))
            .await;
        if answer.status == 503 {
            break answer;
        }
        assert!(Instant::now() < deadline, "requests are still accepted");
    };
    assert_eq!(refused.body["error"]["code"], "shutting_down");
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(refused.header("connection"), "close");
    let text = stream.text().await.expect("a whole stream");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    server.join();
}
