//! Beam search at `/v1/completions`, over a real socket, with the built-in model.

use std::sync::LazyLock;

use crate::support::{Setup, TestServer};
use serde_json::{Value, json};
use skald::engine::EngineConfig;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/completions";
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fairy-tales");

fn search(prompt: &str, n: usize, max_tokens: usize) -> Value {
    json!({"prompt": prompt, "use_beam_search": true, "n": n, "max_tokens": max_tokens})
}

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    body
}

async fn complete(body: Value) -> Value {
    SERVER.post(PATH, body).await.ok()
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().expect("choices").iter();
    choices
        .map(|choice| choice["text"].as_str().expect("a text").to_owned())
        .collect()
}

fn score(choice: &Value, length_penalty: f64) -> f64 {
    let logprobs = choice["logprobs"]["token_logprobs"]
        .as_array()
        .expect("logprobs");
    let sum: f64 = logprobs.iter().map(|x| x.as_f64().expect("a number")).sum();
    sum / (logprobs.len() as f64).powf(length_penalty)
}

#[tokio::test]
async fn the_texts_are_those_of_transformers_best_first() {
    let file = std::fs::read_to_string(format!("{FIXTURES}/reference.json")).expect("references");
    let cases: Vec<Value> = serde_json::from_str(&file).expect("JSON");
    for case in &cases[..3] {
        let prompt = case["prompt"].as_str().expect("a text");
        let body = with(
            search(prompt, 4, 24),
            json!({"logprobs": 0, "temperature": 0}),
        );
        let answer = complete(body).await;
        let choices = answer["choices"].as_array().expect("choices");
        assert_eq!(choices.len(), 4);
        for (index, (choice, beam)) in choices
            .iter()
            .zip(case["beams"].as_array().unwrap())
            .enumerate()
        {
            let ids: Vec<u32> = serde_json::from_value(beam["ids"].clone()).expect("ids");
            let bytes: Vec<u8> = ids
                .iter()
                .flat_map(|&id| {
                    SERVER
                        .tokenizer()
                        .token_bytes(id)
                        .expect("a token")
                        .to_vec()
                })
                .collect();
            assert_eq!(choice["text"], String::from_utf8_lossy(&bytes).as_ref());
            assert_eq!(choice["index"], index);
            assert_eq!(choice["finish_reason"], "length");
            assert!(choice.get("seed").is_none(), "nothing was drawn");
            let expected = beam["score"].as_f64().expect("a score");
            assert!((score(choice, 1.0) - expected).abs() < 4e-4);
        }
        assert_eq!(answer["usage"]["completion_tokens"], 4 * 24);
        assert_eq!(answer["usage"]["prompt_tokens"], SERVER.ids(prompt).len());
    }
}

#[tokio::test]
async fn of_best_of_beams_the_best_n_are_returned_in_the_order_of_their_scores() {
    let body = |n| {
        let more = json!({
            "best_of": 6, "length_penalty": 0.5, "early_stopping": "never", "logprobs": 1,
            "stop_token_ids": SERVER.ids(","),
        });
        with(search("The old king", n, 30), more)
    };
    let all = complete(body(6)).await;
    let choices = all["choices"].as_array().expect("choices");
    let scores: Vec<f64> = choices.iter().map(|choice| score(choice, 0.5)).collect();
    assert!(scores.is_sorted_by(|a, b| *a >= b - 1e-5), "{scores:?}");
    assert!(
        choices
            .iter()
            .any(|choice| choice["finish_reason"] == "stop")
    );
    for choice in choices {
        assert!(!choice["text"].as_str().unwrap().contains(','));
    }
    let best = complete(body(2)).await;
    assert_eq!(texts(&best), texts(&all)[..2]);
}

#[tokio::test]
async fn every_prompt_has_its_own_beams_whatever_the_seed_and_with_its_echo() {
    let alone = complete(search("Hans", 2, 12)).await;
    let body = with(
        search("", 2, 12),
        json!({"prompt": ["The witch", "Hans"], "seed": 7, "echo": true}),
    );
    let both = complete(body).await;
    assert_eq!(texts(&both).len(), 4);
    assert!(texts(&both)[0].starts_with("The witch"));
    let echoed: Vec<String> = texts(&alone)
        .iter()
        .map(|text| format!("Hans{text}"))
        .collect();
    assert_eq!(texts(&both)[2..], echoed);
    let prompts = SERVER.ids("The witch").len() + SERVER.ids("Hans").len();
    assert_eq!(both["usage"]["prompt_tokens"], prompts);
}

#[tokio::test]
async fn early_stopping_and_neutral_sampling_fields_are_taken() {
    for early_stopping in [json!(true), json!(false), json!("never"), Value::Null] {
        let more = json!({
            "early_stopping": early_stopping, "temperature": 0.0, "top_p": 1, "top_k": -1,
            "min_p": 0, "typical_p": 1, "repetition_penalty": 1, "presence_penalty": 0,
            "frequency_penalty": 0, "logit_bias": {}, "stop": [], "stream": false,
        });
        let answer = complete(with(search("A hen", 3, 5), more)).await;
        assert_eq!(texts(&answer).len(), 3);
    }
    let one = complete(json!({"prompt": "A hen", "use_beam_search": true, "max_tokens": 5})).await;
    assert_eq!(texts(&one).len(), 1);
}

/// Fields beside a search for three beams, the error's `param`, parts of its message.
const REFUSED: &str = r#"
{"temperature": 0.7}              | temperature        | `temperature` | 0.7 | use_beam_search
{"top_k": 5}                      | top_k              | `top_k` | 5 | use_beam_search
{"top_p": 0.5}                    | top_p              | `top_p` | 0.5 | use_beam_search
{"min_p": 0.5}                    | min_p              | `min_p` | 0.5 | use_beam_search
{"typical_p": 0.5}                | typical_p          | `typical_p` | 0.5 | use_beam_search
{"repetition_penalty": 1.5}       | repetition_penalty | `repetition_penalty` | 1.5 | use_beam_search
{"presence_penalty": 0.5}         | presence_penalty   | `presence_penalty` | 0.5 | use_beam_search
{"frequency_penalty": -1}         | frequency_penalty  | `frequency_penalty` | -1 | use_beam_search
{"logit_bias": {"7": 3}}          | logit_bias         | `logit_bias` | 3 for 7 | use_beam_search
{"stop": "end"}                   | stop               | `stop` | stop_token_ids | use_beam_search
{"stream": true}                  | stream             | `stream` | use_beam_search
{"session_id": "s"}               | session_id         | `session_id` | use_beam_search
{"overflow": "slide"}             | overflow           | `overflow` | slide | use_beam_search
{"max_tokens": 0}                 | max_tokens         | `max_tokens` | got 0 | use_beam_search
{"best_of": 2}                    | best_of            | `best_of` | got 2 | `n` (3)
{"best_of": 21}                   | best_of            | `best_of` | 21 | 20
{"n": 129}                        | n                  | `n` | 129 | 128
{"prompt": ["a", "b"], "n": 65}   | n                  | 130 | 128
{"length_penalty": 11}            | length_penalty     | `length_penalty` | 11 | -10 to 10
{"length_penalty": "long"}        | length_penalty     | `length_penalty` | "long" | a number
{"early_stopping": "always"}      | early_stopping     | `early_stopping` | "always" | "never"
{"early_stopping": 1}             | early_stopping     | `early_stopping` | 1 | "never"
{"use_beam_search": "yes"}        | use_beam_search    | `use_beam_search` | "yes" | boolean
{"use_beam_search": false, "length_penalty": 0.5}    | length_penalty | `length_penalty` | 0.5 | without
{"use_beam_search": null, "early_stopping": true}    | early_stopping | `early_stopping` | without
"#;

#[tokio::test]
async fn what_does_not_go_with_beams_is_refused_with_the_field() {
    let lines = REFUSED.lines().filter(|line| !line.is_empty());
    for line in lines {
        let mut parts = line.split(" | ").map(str::trim);
        let fields: Value = serde_json::from_str(parts.next().expect("fields")).expect("JSON");
        let param = parts.next().expect("a param");
        let answer = SERVER.post(PATH, with(search("Hans", 3, 8), fields)).await;
        assert_eq!(answer.status, 400, "{line}: {}", answer.body);
        assert_eq!(
            answer.body["error"]["type"], "invalid_request_error",
            "{line}"
        );
        assert_eq!(
            answer.body["error"]["param"], param,
            "{line}: {}",
            answer.body
        );
        for part in parts {
            assert!(
                answer.message().contains(part),
                "{line}: {}",
                answer.message()
            );
        }
    }
}

#[tokio::test]
async fn more_beams_than_a_batch_holds_are_refused() {
    let server = TestServer::with(Setup {
        engine: EngineConfig {
            max_batch: 2,
            ..Setup::default().engine
        },
        ..Setup::default()
    });
    let answer = server.post(PATH, search("Hans", 3, 8)).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.body["error"]["param"], "best_of");
    assert!(answer.message().contains("3 beams"), "{}", answer.message());
    assert_eq!(
        texts(&server.post(PATH, search("Hans", 2, 8)).await.ok()).len(),
        2
    );
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_beams_with_it() {
    let server = TestServer::start();
    let body = with(
        search("Once upon a time", 4, 900),
        json!({"ignore_eos": true}),
    );
    let request = tokio::spawn({
        let (url, body) = (server.url(PATH), body.to_string());
        async move { crate::support::client().post(url).body(body).send().await }
    });
    server.until("running", |status| status.running == 4).await;
    request.abort();
    server
        .until("idle", |status| {
            (status.running, status.waiting, status.kv_blocks_used) == (0, 0, 0)
        })
        .await;
}
