//! Limits of requests: every limit is reported at `/info`, is in the contract if a field has it, and is
//! enforced.

use std::sync::LazyLock;

use crate::support::{Setup, TestServer};
use serde_json::{Value, json};
use skald::engine::EngineConfig;
use skald::request::{Limits, SamplingOverrides, SessionId};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

/// Returns every limit with its place in `/info`. The limits are destructured completely, so a new one does
/// not compile until it is listed here.
fn listed() -> Vec<(&'static str, Value)> {
    let Limits {
        context_length,
        vocab_size,
        end_of_text,
        defaults,
        max_stop_strings,
        max_stop_string_bytes,
        max_top_logprobs,
        max_tokens,
        max_choices,
        max_grammar_bytes,
        max_expression_bytes,
        max_best_of,
        max_temperature,
        max_repetition_penalty,
        max_embedding_inputs,
        max_embedding_tokens,
        max_request_tokens,
        max_answer_logprobs,
        max_answer_text_bytes,
        max_session_tokens,
    } = Limits::for_model(1024, 8192, vec![8191]);
    assert_eq!(defaults, SamplingOverrides::default());
    vec![
        ("/limits/max_context_tokens", json!(context_length)),
        ("/limits/max_tokens", json!(max_tokens)),
        ("/limits/max_choices", json!(max_choices)),
        ("/limits/max_best_of_choices", json!(max_best_of)),
        ("/limits/max_stop_strings", json!(max_stop_strings)),
        (
            "/limits/max_stop_string_bytes",
            json!(max_stop_string_bytes),
        ),
        ("/limits/max_top_logprobs", json!(max_top_logprobs)),
        ("/limits/max_grammar_bytes", json!(max_grammar_bytes)),
        ("/limits/max_expression_bytes", json!(max_expression_bytes)),
        ("/limits/max_temperature", json!(max_temperature)),
        (
            "/limits/max_repetition_penalty",
            json!(max_repetition_penalty),
        ),
        ("/limits/max_embedding_inputs", json!(max_embedding_inputs)),
        ("/limits/max_embedding_tokens", json!(max_embedding_tokens)),
        ("/limits/max_request_tokens", json!(max_request_tokens)),
        ("/limits/max_answer_logprobs", json!(max_answer_logprobs)),
        (
            "/limits/max_answer_text_bytes",
            json!(max_answer_text_bytes),
        ),
        ("/limits/max_session_tokens", json!(max_session_tokens)),
        ("/model/vocab_size", json!(vocab_size)),
        ("/model/end_of_text", json!(end_of_text)),
        ("/sampling_defaults/temperature", json!(null)),
        // The places that TGI uses.
        ("/max_best_of", json!(max_best_of)),
        ("/max_stop_sequences", json!(max_stop_strings)),
        ("/max_total_tokens", json!(context_length)),
        ("/max_input_tokens", json!(context_length - 1)),
    ]
}

/// Limits that are settings of the server or the engine.
const SETTINGS: [&str; 13] = [
    "max_session_id_characters",
    "max_batch_requests",
    "max_queue_requests",
    "queue_timeout_seconds",
    "max_step_tokens",
    "max_sessions",
    "max_sessions_per_key",
    "session_ttl_seconds",
    "max_body_bytes",
    "stall_timeout_seconds",
    "max_pending_bytes",
    "header_timeout_seconds",
    "body_timeout_seconds",
];

#[tokio::test]
async fn info_tells_every_limit() {
    let info = SERVER.get("/info").await.ok();
    for (place, value) in listed() {
        assert_eq!(info.pointer(place), Some(&value), "{place}");
    }
    let limits = info["limits"].as_object().expect("an object");
    let engine = SERVER.engine().limits();
    assert_eq!(limits["max_batch_requests"], engine.max_batch);
    assert_eq!(limits["max_queue_requests"], engine.max_queue);
    assert_eq!(limits["max_session_id_characters"], SessionId::MAX_LENGTH);
    assert_eq!(
        info["max_concurrent_requests"],
        engine.max_batch + engine.max_queue
    );
    // And no others.
    for name in limits.keys() {
        let known = SETTINGS.contains(&name.as_str())
            || listed()
                .iter()
                .any(|(place, _)| place.strip_prefix("/limits/") == Some(name));
        assert!(known, "{name} is told, but no test knows it");
    }
}

#[tokio::test]
async fn the_contracts_bounds_are_the_limits() {
    let info = SERVER.get("/info").await.ok();
    let contract = SERVER.get("/openapi.json").await.ok();
    for (schema, field, limit) in [
        ("CompletionRequest", "n", "max_choices"),
        ("CompletionRequest", "best_of", "max_best_of_choices"),
        ("CompletionRequest", "logprobs", "max_top_logprobs"),
        (
            "CompletionRequest",
            "repetition_penalty",
            "max_repetition_penalty",
        ),
        ("Parameters", "best_of", "max_best_of_choices"),
        ("Parameters", "top_n_tokens", "max_top_logprobs"),
        ("Parameters", "temperature", "max_temperature"),
        ("Parameters", "repetition_penalty", "max_repetition_penalty"),
    ] {
        let bound = &contract["components"]["schemas"][schema]["properties"][field]["maximum"];
        assert_eq!(
            bound.as_f64(),
            info["limits"][limit].as_f64(),
            "{schema}.{field}"
        );
    }
    let described = |schema: &str, field: &str| {
        contract["components"]["schemas"][schema]["properties"][field].to_string()
    };
    for (text, limits) in [
        (
            described("EmbeddingsRequest", "input"),
            ["max_embedding_inputs", "max_embedding_tokens"],
        ),
        (
            described("CompletionRequest", "stop"),
            ["max_stop_strings", "max_stop_string_bytes"],
        ),
        (
            described("Parameters", "stop"),
            ["max_stop_strings", "max_stop_string_bytes"],
        ),
    ] {
        for limit in limits {
            let value = info["limits"][limit].to_string();
            assert!(text.contains(&value), "{limit} {value}: {text}");
        }
    }
}

#[tokio::test]
async fn a_request_at_a_limit_is_taken_and_one_beyond_it_is_refused() {
    let a = SERVER.ids(" a")[0];
    let completion = |fields: Value| ("/v1/completions", fields);
    let cases = [
        (
            completion(json!({"prompt": vec![a; 1016], "max_tokens": 8})),
            completion(json!({"prompt": vec![a; 1016], "max_tokens": 9})),
            "1024",
        ),
        (
            completion(json!({"prompt": vec!["a"; 128], "max_tokens": 1})),
            completion(json!({"prompt": vec!["a"; 129], "max_tokens": 1})),
            "128",
        ),
        (
            completion(json!({"prompt": "a", "max_tokens": 1, "n": 128})),
            completion(json!({"prompt": "a", "max_tokens": 1, "n": 129})),
            "128",
        ),
        (
            completion(json!({"prompt": "a", "max_tokens": 1, "best_of": 20})),
            completion(json!({"prompt": "a", "max_tokens": 1, "best_of": 21})),
            "20",
        ),
        (
            completion(json!({"prompt": "a", "max_tokens": 1, "stop": vec!["x"; 16]})),
            completion(json!({"prompt": "a", "max_tokens": 1, "stop": vec!["x"; 17]})),
            "16",
        ),
        (
            completion(json!({"prompt": "a", "max_tokens": 1, "stop": "x".repeat(1024)})),
            completion(json!({"prompt": "a", "max_tokens": 1, "stop": "x".repeat(1025)})),
            "1024",
        ),
        (
            completion(json!({"prompt": "a", "max_tokens": 1, "logprobs": 20})),
            completion(json!({"prompt": "a", "max_tokens": 1, "logprobs": 21})),
            "20",
        ),
        (
            ("/v1/embeddings", json!({"input": vec![a; 1024]})),
            ("/v1/embeddings", json!({"input": vec![a; 1025]})),
            "1024",
        ),
    ];
    for ((path, within), (_, beyond), limit) in cases {
        let taken = SERVER.post(path, within).await;
        assert_eq!(taken.status, 200, "{}", taken.body);
        let refused = SERVER.post(path, beyond).await;
        assert_eq!(refused.status, 400, "{limit}: {}", refused.body);
        assert!(refused.message().contains(limit), "{}", refused.message());
    }
    // An error about too many prompts names `prompt`, not `n`.
    let refused = SERVER
        .post("/v1/completions", json!({"prompt": vec!["a"; 129]}))
        .await;
    assert_eq!(refused.body["error"]["param"], "prompt");
}

#[tokio::test]
async fn a_context_limit_of_the_settings_is_that_of_every_request() {
    let server = TestServer::with(Setup {
        engine: EngineConfig {
            max_context: Some(64),
            ..Setup::default().engine
        },
        ..Setup::default()
    });
    let info = server.get("/info").await.ok();
    assert_eq!(info["limits"]["max_context_tokens"], 64);
    assert_eq!(info["max_total_tokens"], 64);
    assert_eq!(info["model"]["n_positions"], 1024);

    let models = server.get("/v1/models").await.ok();
    assert_eq!(models["data"][0]["max_model_len"], 64);
    let counted = json!({ "prompt": "Once" });
    let counted = server.post("/tokenize", counted).await.ok();
    assert_eq!(counted["max_model_len"], 64);

    let long = json!({ "prompt": vec![5; 60], "max_tokens": 5 });
    let refused = server.post("/v1/completions", long).await;
    assert_eq!(refused.status, 400);
    let message = refused.body["error"]["message"].to_string();
    assert!(
        message.contains("maximum context length is 64 tokens"),
        "{message}"
    );

    // A chat without a length takes what is left.
    let chat = json!({ "messages": [{"role": "user", "content": "Once"}], "temperature": 0, "ignore_eos": true });
    let answer = server.post("/v1/chat/completions", chat).await.ok();
    assert_eq!(answer["usage"]["total_tokens"], 64);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");

    // A text that slides goes on beyond it.
    let slid = json!({ "prompt": vec![5; 60], "max_tokens": 100, "overflow": "slide", "temperature": 0, "ignore_eos": true, "session_id": "s" });
    let answer = server.post("/v1/completions", slid).await.ok();
    assert_eq!(answer["usage"]["completion_tokens"], 100);
    // What the next token of such a session is computed from can be looked into.
    let looked = json!({ "session_id": "s", "stages": ["logits"] });
    let looked = server.post("/v1/inspect", looked).await.ok();
    assert!(
        looked["history"].as_u64() > Some(0),
        "{}",
        looked["history"]
    );
    let longer = json!({ "tokens": vec![5; 65], "stages": ["logits"] });
    let refused = server.post("/v1/inspect", longer).await;
    assert_eq!(refused.status, 400);
    let message = refused.body["error"]["message"].to_string();
    assert!(message.contains("the context is 64 tokens"), "{message}");
}
