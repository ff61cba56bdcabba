//! Every field with a value that is wrong, in both dialects: refused with a message that names
//! the field, the value and what is allowed. And the contract.

mod support;

use std::sync::LazyLock;

use serde_json::{Value, json};
use support::TestServer;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

/// A body's wrong field, what the message must contain, and what `param` must be.
type Case = (Value, &'static [&'static str], &'static str);

fn openai_cases() -> Vec<Case> {
    let long = "x".repeat(1025);
    vec![
        (json!({"model": 3}), &["`model`", "3", "string"], "model"),
        (json!({"prompt": 3}), &["`prompt`", "3", "string"], "prompt"),
        (
            json!({"prompt": []}),
            &["`prompt`", "at least one"],
            "prompt",
        ),
        (json!({"prompt": [[]]}), &["`prompt`", "empty"], "prompt"),
        (json!({"prompt": ["a", 1]}), &["`prompt", "mixes"], "prompt"),
        (
            json!({"prompt": [4096]}),
            &["`prompt`", "4096", "4095"],
            "prompt",
        ),
        (
            json!({"prompt": [-1]}),
            &["`prompt[0]`", "-1", "token id"],
            "prompt[0]",
        ),
        (
            json!({"max_tokens": -1}),
            &["`max_tokens`", "-1", "0"],
            "max_tokens",
        ),
        (
            json!({"max_tokens": 1.5}),
            &["`max_tokens`", "1.5", "integer"],
            "max_tokens",
        ),
        (
            json!({"max_tokens": "9"}),
            &["`max_tokens`", "\"9\"", "integer"],
            "max_tokens",
        ),
        (
            json!({"max_tokens": 99_999_999}),
            &["`max_tokens`", "99999999", "1048576"],
            "max_tokens",
        ),
        (
            json!({"temperature": 2.1}),
            &["`temperature`", "2.1", "0 to 2"],
            "temperature",
        ),
        (
            json!({"temperature": -0.1}),
            &["`temperature`", "-0.1", "0 to 2"],
            "temperature",
        ),
        (
            json!({"temperature": "hot"}),
            &["`temperature`", "\"hot\"", "a number"],
            "temperature",
        ),
        (json!({"top_p": 0}), &["`top_p`", "above 0", "0"], "top_p"),
        (
            json!({"top_p": 1.01}),
            &["`top_p`", "1.01", "at most 1"],
            "top_p",
        ),
        (json!({"n": 0}), &["`n`", "0", "1 to 128"], "n"),
        (json!({"n": 129}), &["`n`", "129", "1 to 128"], "n"),
        (
            json!({"best_of": 21}),
            &["`best_of`", "21", "20"],
            "best_of",
        ),
        (
            json!({"n": 3, "best_of": 2}),
            &["`best_of`", "2", "`n` (3)"],
            "best_of",
        ),
        (
            json!({"best_of": 2, "stream": true}),
            &["`best_of`", "stream"],
            "best_of",
        ),
        (json!({"prompt": ["a", "b"], "n": 65}), &["130", "128"], "n"),
        (
            json!({"stream": "yes"}),
            &["`stream`", "\"yes\"", "boolean"],
            "stream",
        ),
        (
            json!({"stream_options": {"include_usage": true}}),
            &["`stream_options`", "stream"],
            "stream_options",
        ),
        (
            json!({"stream": true, "stream_options": [true]}),
            &["`stream_options`", "object"],
            "stream_options",
        ),
        (
            json!({"logprobs": 21}),
            &["`logprobs`", "21", "0 to 20"],
            "logprobs",
        ),
        (
            json!({"logprobs": true}),
            &["`logprobs`", "true", "integer"],
            "logprobs",
        ),
        (json!({"echo": 1}), &["`echo`", "1", "boolean"], "echo"),
        (json!({"stop": 3}), &["`stop`", "3", "string"], "stop"),
        (json!({"stop": ""}), &["`stop`", "empty"], "stop"),
        (
            json!({"stop": vec!["a"; 17]}),
            &["`stop`", "17", "16"],
            "stop",
        ),
        (json!({"stop": [long]}), &["`stop`", "1025", "1024"], "stop"),
        (
            json!({"presence_penalty": 2.5}),
            &["`presence_penalty`", "2.5", "-2 to 2"],
            "presence_penalty",
        ),
        (
            json!({"frequency_penalty": -3}),
            &["`frequency_penalty`", "-3", "-2 to 2"],
            "frequency_penalty",
        ),
        (
            json!({"logit_bias": {"5": 101}}),
            &["`logit_bias.5`", "101", "-100 to 100"],
            "logit_bias.5",
        ),
        (
            json!({"logit_bias": {"five": 1}}),
            &["`logit_bias", "\"five\"", "token id"],
            "logit_bias.five",
        ),
        (
            json!({"logit_bias": {"4096": 1}}),
            &["`logit_bias`", "4096", "4095"],
            "logit_bias",
        ),
        (
            json!({"logit_bias": 3}),
            &["`logit_bias`", "3", "map"],
            "logit_bias",
        ),
        (json!({"seed": 1.5}), &["`seed`", "1.5", "integer"], "seed"),
        (
            json!({"suffix": "end"}),
            &["`suffix`", "\"end\"", "not supported"],
            "suffix",
        ),
        (json!({"user": 7}), &["`user`", "7", "string"], "user"),
        (json!({"top_k": -2}), &["`top_k`", "-2"], "top_k"),
        (
            json!({"min_p": 1.5}),
            &["`min_p`", "1.5", "0 to 1"],
            "min_p",
        ),
        (
            json!({"typical_p": 0}),
            &["`typical_p`", "above 0"],
            "typical_p",
        ),
        (
            json!({"repetition_penalty": 0}),
            &["`repetition_penalty`", "above 0"],
            "repetition_penalty",
        ),
        (
            json!({"repetition_penalty": 101}),
            &["`repetition_penalty`", "101", "100"],
            "repetition_penalty",
        ),
        (
            json!({"max_tokens": 3, "min_tokens": 4}),
            &["`min_tokens`", "4", "`max_tokens` (3)"],
            "min_tokens",
        ),
        (
            json!({"min_tokens": -1}),
            &["`min_tokens`", "-1"],
            "min_tokens",
        ),
        (
            json!({"ignore_eos": "no"}),
            &["`ignore_eos`", "\"no\"", "boolean"],
            "ignore_eos",
        ),
        (
            json!({"stop_token_ids": [4096]}),
            &["`stop_token_ids`", "4096", "4095"],
            "stop_token_ids",
        ),
        (
            json!({"stop_token_ids": [-1]}),
            &["`stop_token_ids[0]`", "-1", "integer"],
            "stop_token_ids[0]",
        ),
        (
            json!({"session_id": "a b"}),
            &["`session_id`", "a b", "A-Z"],
            "session_id",
        ),
        (json!({"session_id": "s", "n": 2}), &["session", "2"], "n"),
        (
            json!({"session_id": "s", "prompt": ["a", "b"]}),
            &["session", "2"],
            "prompt",
        ),
        (
            json!({"overflow": "wrap"}),
            &["`overflow`", "`wrap`", "`slide`"],
            "overflow",
        ),
    ]
}

#[tokio::test]
async fn every_wrong_field_of_a_completion_is_refused() {
    for (fields, parts, param) in openai_cases() {
        let mut body = json!({"prompt": "A", "max_tokens": 4});
        body.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let answer = SERVER.post("/v1/completions", body).await;
        assert_eq!(answer.status, 400, "{fields}: {}", answer.body);
        let error = &answer.body["error"];
        assert_eq!(error["type"], "invalid_request_error", "{fields}");
        assert_eq!(error["param"], param, "{fields}: {}", answer.message());
        assert!(error.get("code").is_some(), "{fields}");
        for part in parts {
            let message = answer.message();
            assert!(
                message.contains(part),
                "{fields}: {message:?} lacks {part:?}"
            );
        }
    }
}

fn native_cases() -> Vec<Case> {
    vec![
        (
            json!({"max_new_tokens": 0}),
            &["`max_new_tokens`", "0", "1"],
            "",
        ),
        (
            json!({"max_new_tokens": "9"}),
            &["`parameters.max_new_tokens`", "\"9\"", "integer"],
            "",
        ),
        (
            json!({"do_sample": 1}),
            &["`parameters.do_sample`", "1", "boolean"],
            "",
        ),
        (json!({"temperature": 0}), &["`temperature`", "above 0"], ""),
        (
            json!({"temperature": 101}),
            &["`temperature`", "101", "100"],
            "",
        ),
        (json!({"top_k": 0}), &["`top_k`", "0", "1"], ""),
        (json!({"top_p": 0}), &["`top_p`", "above 0"], ""),
        (json!({"top_p": 1.5}), &["`top_p`", "1.5"], ""),
        (json!({"typical_p": -1}), &["`typical_p`", "-1"], ""),
        (
            json!({"repetition_penalty": 0}),
            &["`repetition_penalty`", "above 0"],
            "",
        ),
        (
            json!({"frequency_penalty": 3}),
            &["`frequency_penalty`", "3", "-2 to 2"],
            "",
        ),
        (json!({"seed": 0}), &["`seed`", "0", "1"], ""),
        (
            json!({"seed": -1}),
            &["`parameters.seed`", "-1", "integer"],
            "",
        ),
        (json!({"stop": [""]}), &["`stop`", "empty"], ""),
        (json!({"stop": vec!["a"; 17]}), &["`stop`", "17", "16"], ""),
        (json!({"best_of": 0}), &["`best_of`", "0", "1 to 20"], ""),
        (json!({"best_of": 2}), &["`best_of`", "2", "sampling"], ""),
        (
            json!({"details": "all"}),
            &["`parameters.details`", "\"all\"", "boolean"],
            "",
        ),
        (json!({"truncate": 0}), &["`truncate`", "0", "1"], ""),
        (
            json!({"top_n_tokens": 0}),
            &["`top_n_tokens`", "0", "1 to 20"],
            "",
        ),
        (
            json!({"top_n_tokens": 21}),
            &["`top_n_tokens`", "21", "1 to 20"],
            "",
        ),
        (
            json!({"watermark": true}),
            &["`watermark`", "not supported"],
            "",
        ),
        (
            json!({"adapter_id": "mine"}),
            &["`adapter_id`", "\"mine\"", "not supported"],
            "",
        ),
        (
            json!({"grammar": {"type": "json", "value": "{}"}}),
            &["`grammar`", "not supported"],
            "",
        ),
    ]
}

async fn refused(path: &str, body: Value, parts: &[&str]) {
    let answer = SERVER.post(path, body.clone()).await;
    assert_eq!(answer.status, 422, "{body}: {}", answer.body);
    assert_eq!(answer.body["error_type"], "validation", "{body}");
    for part in parts {
        let message = answer.message();
        assert!(message.contains(part), "{body}: {message:?} lacks {part:?}");
    }
}

#[tokio::test]
async fn every_wrong_parameter_of_a_native_request_is_refused() {
    for (parameters, parts, _) in native_cases() {
        let body = json!({"inputs": "A", "parameters": parameters});
        refused("/generate", body, parts).await;
    }
    let cases: [(&str, Value, &[&str]); 12] = [
        ("/generate", json!({}), &["missing field `inputs`"]),
        (
            "/generate",
            json!({"inputs": ["a"]}),
            &["`inputs`", "string"],
        ),
        ("/generate", json!({"inputs": ""}), &["`inputs`", "empty"]),
        (
            "/generate",
            json!({"inputs": "A", "parameters": [1]}),
            &["`parameters`", "object"],
        ),
        (
            "/generate",
            json!({"inputs": "A", "stream": 1}),
            &["`stream`", "boolean"],
        ),
        (
            "/generate",
            json!({"inputs": "A", "session_id": ""}),
            &["`session_id`"],
        ),
        (
            "/generate",
            json!({"inputs": "A", "overflow": 1}),
            &["`overflow`"],
        ),
        (
            "/generate",
            json!({"inputs": "A", "session_id": "s", "parameters": {"best_of": 2, "do_sample": true}}),
            &["session", "2"],
        ),
        (
            "/generate_stream",
            json!({"inputs": "A", "parameters": {"best_of": 2, "do_sample": true}}),
            &["`best_of`", "stream"],
        ),
        (
            "/generate",
            json!({"inputs": "A", "stream": true, "parameters": {"decoder_input_details": true}}),
            &["`decoder_input_details`", "stream"],
        ),
        (
            "/generate",
            json!({"inputs": " a".repeat(1100)}),
            &["`inputs`", "1100", "1024"],
        ),
        (
            "/",
            json!({"inputs": "A", "overflow": "error", "parameters": {"max_new_tokens": 1024}}),
            &["`max_new_tokens`", "1024"],
        ),
    ];
    for (path, body, parts) in cases {
        refused(path, body, parts).await;
    }
}

#[tokio::test]
async fn wrong_token_requests_are_refused() {
    let cases: [(&str, Value, &[&str]); 7] = [
        ("/tokenize", json!({}), &["`content`", "missing"]),
        (
            "/tokenize",
            json!({"content": "a", "inputs": "b"}),
            &["`content`", "`inputs`"],
        ),
        (
            "/tokenize",
            json!({"content": 1}),
            &["`content`", "1", "string"],
        ),
        (
            "/tokenize",
            json!({"content": "a", "with_pieces": 1}),
            &["`with_pieces`", "boolean"],
        ),
        ("/detokenize", json!({}), &["missing field `tokens`"]),
        (
            "/detokenize",
            json!({"tokens": [1, 4096]}),
            &["`tokens[1]`", "4096", "4095"],
        ),
        (
            "/detokenize",
            json!({"tokens": [-1]}),
            &["`tokens[0]`", "-1"],
        ),
    ];
    for (path, body, parts) in cases {
        refused(path, body, parts).await;
    }
}

#[tokio::test]
async fn broken_json_says_where_in_both_dialects() {
    for (path, body, part) in [
        (
            "/v1/completions",
            "{\"prompt\": \"a\",\n  \"n\": }",
            "line 2 column 8",
        ),
        ("/v1/completions", "", "empty"),
        ("/v1/completions", "{\"prompt\": \"a\"", "line 1"),
        ("/v1/completions", "prompt=a", "line 1 column 1"),
        ("/generate", "{\"inputs\": \"a\",}", "line 1 column 16"),
        ("/generate", "{\"inputs\": \"a\"} {}", "line 1 column 17"),
    ] {
        let answer = SERVER.post_text(path, body.to_owned()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        assert!(
            answer.message().contains(part),
            "{body}: {}",
            answer.message()
        );
    }
    // No object at all: a wrong type, not broken.
    let answer = SERVER.post_text("/generate", "[1]".to_owned()).await;
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn the_committed_contract_is_the_one_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let made = skald::http::openapi().to_yaml().unwrap();
    assert!(
        committed.trim_end() == made.trim_end(),
        "openapi.yaml is not what the code says; `cargo run -- openapi > openapi.yaml` writes it anew"
    );
    let served = SERVER.get("/openapi.json").await.ok();
    let made: Value = serde_json::from_str(&skald::http::openapi().to_json().unwrap()).unwrap();
    assert_eq!(served, made);
}

#[test]
fn the_contract_is_whole() {
    let contract: Value = serde_json::from_str(&skald::http::openapi().to_json().unwrap()).unwrap();
    let paths = contract["paths"].as_object().unwrap();
    for path in [
        "/",
        "/generate",
        "/generate_stream",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/tokenize",
        "/detokenize",
        "/livez",
        "/readyz",
        "/health",
        "/info",
        "/openapi.json",
    ] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    let schemas = contract["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        for (field, of) in schema["properties"].as_object().into_iter().flatten() {
            let text = of.to_string();
            assert!(
                text.contains("description"),
                "{name}.{field} is not described"
            );
        }
    }
    let text = contract.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            schemas.contains_key(name),
            "{name} is referred to but not there"
        );
    }
}
