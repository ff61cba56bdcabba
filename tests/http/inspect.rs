//! `POST /v1/inspect` over a real socket: the references' values, pages, bounds, and keys.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::support::{TestServer, client};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/inspect";
const PROMPT: &str = "Once upon a time there was a king who had three daughters,";
/// Between two f32 implementations.
const TOLERANCE: f32 = 2e-4;

async fn inspect(body: Value) -> Value {
    SERVER.post(PATH, body).await.ok()
}

/// Returns the message of the refusal of a body.
async fn refusal(body: Value) -> (u16, String) {
    let answer = SERVER.post(PATH, body).await;
    let message = answer.body["error"]["message"].as_str().expect("a message");
    (answer.status, message.to_owned())
}

fn numbers(value: &Value) -> Vec<f32> {
    let numbers = value.as_array().expect("numbers").iter();
    #[expect(clippy::cast_possible_truncation, reason = "they were written as f32")]
    let numbers = numbers.map(|x| x.as_f64().expect("a number") as f32);
    numbers.collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("Base64");
    BASE64_STANDARD.decode(text).expect("Base64")
}

fn halves(value: &Value) -> Vec<f32> {
    let bytes = bytes(value);
    let (halves, rest) = bytes.as_chunks();
    assert!(rest.is_empty());
    let halves = halves.iter().map(|&half| half::f16::from_le_bytes(half));
    halves.map(half::f16::to_f32).collect()
}

fn references() -> std::collections::HashMap<String, Tensor> {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/fairy-tales/reference.safetensors"
    );
    candle_core::safetensors::load(file, &Device::Cpu).expect("the reference tensors")
}

fn assert_near(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < tolerance,
            "{found} for {expected}"
        );
    }
}

#[tokio::test]
async fn attention_and_logits_are_the_references() {
    let references = references();
    let heads = (0..6).collect::<Vec<_>>();
    let answer = inspect(json!({
        "text": PROMPT, "encoding": "json",
        "attention": {"layers": heads}, "sampling": {"temperature": 0},
    }))
    .await;
    assert_eq!(
        (&answer["length"], &answer["next"]),
        (&json!(13), &Value::Null)
    );
    let expected: Vec<Vec<Vec<f32>>> = references["case0.attn"]
        .flatten(0, 1)
        .and_then(|heads| heads.to_vec3())
        .expect("weights");
    let found = answer["attention"].as_array().expect("heads");
    assert_eq!(found.len(), 30);
    for (n, (head, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(
            (&head["layer"], &head["head"]),
            (&json!(n / 5), &json!(n % 5))
        );
        let triangle = expected.iter().enumerate().flat_map(|(p, row)| &row[..=p]);
        let triangle: Vec<f32> = triangle.copied().collect();
        assert_near(&numbers(&head["values"]), &triangle, TOLERANCE);
    }
    let logits: Vec<Vec<f32>> = references["case0.logits"].to_vec2().expect("logits");
    assert_near(
        &numbers(&answer["logits"]["values"]),
        &logits[12],
        TOLERANCE,
    );
    let best = logits[12].iter().enumerate();
    let best = best.max_by(|a, b| a.1.total_cmp(b.1)).expect("logits").0;
    assert_eq!(answer["sampling"]["token"], json!(best));
    assert_eq!(answer["sampling"]["u"], Value::Null);
    assert_eq!(answer["lens"]["top"][6][12][0][0], json!(best));
}

#[tokio::test]
async fn base64_holds_what_json_does() {
    let body = |encoding: &str| {
        json!({
            "text": PROMPT, "encoding": encoding, "positions": {"from": 4, "to": 9},
            "attention": {"layers": [2], "heads": [1, 3], "qkv": true},
        })
    };
    let (short, long) = (inspect(body("base64")).await, inspect(body("json")).await);
    for head in 0..2 {
        let (short, long) = (&short["attention"][head], &long["attention"][head]);
        assert_near(&halves(&short["f16"]), &numbers(&long["values"]), 1e-3);
        assert_eq!(short["q"]["shape"], json!([5, 64]));
        let exact = bytes(&short["v"]["f32"]);
        let (exact, _) = exact.as_chunks();
        let exact: Vec<f32> = exact.iter().copied().map(f32::from_le_bytes).collect();
        assert_eq!(exact, numbers(&long["v"]["values"]));
    }
    assert_eq!(short["embedding"]["wte"]["shape"], json!([5, 320]));
    for stage in ["tokens", "residual", "mlp", "lens", "next", "positions"] {
        assert_eq!(short[stage], long[stage], "{stage}");
    }
    assert_eq!(short["next"], json!({"from": 0, "to": 4}));
    // The last position is on another page.
    assert!(short.get("logits").is_none() && short.get("sampling").is_none());
}

#[tokio::test]
async fn tokens_come_with_their_bytes_and_merges() {
    let answer = inspect(json!({"text": "Once upon <|endoftext|>", "stages": ["tokens"]})).await;
    let tokens = answer["tokens"].as_array().expect("tokens");
    let text: Vec<u8> = tokens
        .iter()
        .flat_map(|token| bytes(&token["bytes"]))
        .collect();
    assert_eq!(String::from_utf8_lossy(&text), "Once upon <|endoftext|>");
    assert_eq!(tokens.last().expect("a token")["merges"], json!([]));
    for token in &tokens[..2] {
        let merges = token["merges"].as_array().expect("merges");
        let last = merges.last().expect("a merge")["parts"]
            .as_array()
            .expect("parts");
        assert_eq!(last.len(), 1);
        assert_eq!(last[0], token["bytes"]);
    }
    let stages = answer.as_object().expect("an object").keys();
    let expected = [
        "cost",
        "fingerprint",
        "history",
        "id",
        "length",
        "model",
        "next",
        "positions",
        "tokens",
    ];
    let mut stages: Vec<&String> = stages.collect();
    stages.sort();
    assert_eq!(stages, expected);
}

/// The page shows what the next token would be; a generation with the same seed then gives it.
#[tokio::test]
async fn the_sampled_token_is_the_one_a_completion_gives() {
    let settings = json!({
        "temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 99,
    });
    let mut completion = settings.clone();
    completion["prompt"] = json!(PROMPT);
    completion["max_tokens"] = json!(12);
    completion["session_id"] = json!("sampled");
    SERVER.post("/v1/completions", completion).await.ok();
    let session = SERVER.get("/v1/sessions/sampled").await.ok();
    let tokens = session["tokens"].as_array().expect("tokens");
    let prompt = SERVER.ids(PROMPT).len();
    for n in [0, 1, 5, 11] {
        let mut sampling = settings.clone();
        sampling["n"] = json!(n);
        let so_far = &tokens[..prompt + n];
        let body = json!({"tokens": so_far, "stages": ["sampling"], "sampling": sampling});
        let found = &inspect(body).await["sampling"];
        assert_eq!(found["token"], tokens[prompt + n], "token {n}");
        let steps = found["steps"].as_array().expect("steps").iter();
        let filters: Vec<&Value> = steps.map(|step| &step["filter"]).collect();
        assert_eq!(
            filters,
            [
                "repetition_penalty",
                "temperature",
                "top_k",
                "top_p",
                "min_p"
            ]
        );
    }
}

#[tokio::test]
async fn a_session_is_inspected_and_left_as_it_was() {
    let session = "inspected";
    let body = json!({"prompt": PROMPT, "max_tokens": 8, "session_id": session, "seed": 3});
    SERVER.post("/v1/completions", body).await.ok();
    let before = SERVER.get(&format!("/v1/sessions/{session}")).await.ok();
    let answer = inspect(json!({"session_id": session, "stages": ["tokens", "lens"]})).await;
    assert_eq!(answer["length"], before["token_count"]);
    let shown = answer["tokens"].as_array().expect("tokens").iter();
    let shown: Vec<&Value> = shown.map(|token| &token["id"]).collect();
    let tokens = before["tokens"].as_array().expect("tokens");
    assert_eq!(shown, tokens.iter().collect::<Vec<_>>());
    let after = SERVER.get(&format!("/v1/sessions/{session}")).await.ok();
    assert_eq!(before["tokens"], after["tokens"]);
    let (status, message) = refusal(json!({"session_id": "unknown"})).await;
    assert_eq!(status, 404, "{message}");
}

/// The repetition penalty of a session counts all of its tokens, those beyond the window too.
#[tokio::test]
async fn a_session_beyond_the_window_is_sampled_as_a_completion_is() {
    let ids = SERVER.ids(&"Once upon a time there was a king. ".repeat(70));
    let settings = json!({"temperature": 0, "repetition_penalty": 3});
    let sampled = async |body: Value| inspect(body).await["sampling"]["token"].clone();
    let window = &ids[..588];
    let alone = json!({"tokens": window, "stages": ["sampling"], "sampling": settings.clone()});
    let unpenalized = sampled(alone).await;
    assert!(window.iter().all(|id| json!(id) != unpenalized));
    // 1,100 tokens: the context begins at the 512th.
    let mut history = vec![unpenalized.clone(); 512];
    history.extend(window.iter().map(|id| json!(id)));
    let mut completion = settings.clone();
    completion["prompt"] = json!(history);
    completion["max_tokens"] = json!(1);
    completion["session_id"] = json!("beyond");
    completion["overflow"] = json!("slide");
    SERVER.post("/v1/completions", completion).await.ok();
    let session = SERVER.get("/v1/sessions/beyond").await.ok();
    let next = &session["tokens"][1100];
    assert_ne!(*next, unpenalized);
    let fork = json!({"id": "beyond-1100", "at": 1100});
    let forked = SERVER.post("/v1/sessions/beyond/fork", fork).await;
    assert_eq!(forked.status, 201);
    let body = json!({"session_id": "beyond-1100", "stages": ["sampling"], "sampling": settings});
    assert_eq!(sampled(body).await, *next);
}

#[tokio::test]
async fn maps_of_four_heads_of_a_whole_window_are_possible() {
    let ids: Vec<u32> = (0..1024).map(|i| i * 7 % 8000).collect();
    let answer = inspect(json!({
        "tokens": ids, "stages": ["attention"],
        "attention": {"layers": [0], "heads": [0, 1, 2, 3], "form": "map"},
    }))
    .await;
    let heads = answer["attention"].as_array().expect("heads");
    assert_eq!(heads.len(), 4);
    assert_eq!(bytes(&heads[3]["f16"]).len(), 2 * 1024 * 1025 / 2);
}

#[tokio::test]
async fn what_is_not_shown_has_no_limit() {
    let body = json!({
        "text": PROMPT, "stages": ["residual"],
        "attention": {"form": "map"}, "mlp": {"layers": [0, 1, 2, 3, 4, 5], "top": 64},
    });
    assert!(inspect(body).await["attention"].is_null());
}

#[tokio::test]
async fn what_is_not_possible_is_refused_with_field_value_and_limit() {
    let long = SERVER.ids(&"the ".repeat(1100));
    let cases = [
        (
            json!({}),
            "exactly one of `text`, `tokens` and `session_id` must be given, got 0",
        ),
        (json!({"text": "a", "tokens": [1]}), "must be given, got 2"),
        (json!({"text": ""}), "`text` must not be empty"),
        (json!({"tokens": []}), "`tokens` must not be empty"),
        (json!({"tokens": [8192]}), "`tokens` has the token id 8192"),
        (
            json!({"tokens": long}),
            "tokens; the context is 1024 tokens",
        ),
        (
            json!({"text": PROMPT, "positions": {"to": 14}}),
            "`positions.to` must be an integer from 1 to 13, got 14",
        ),
        (
            json!({"text": PROMPT, "positions": {"from": 5, "to": 5}}),
            "`positions.from` must be an integer from 0 to 4, got 5",
        ),
        (
            json!({"tokens": long[..200], "positions": {"from": 0}}),
            "`positions` can be at most 64 in one answer, got 200",
        ),
        (json!({"text": PROMPT, "stages": ["soul"]}), "soul"),
        (
            json!({"text": PROMPT, "attention": {"layers": [6]}}),
            "`attention.layers` must be an integer from 0 to 5, got 6",
        ),
        (
            json!({"text": PROMPT, "attention": {"heads": []}}),
            "`attention.heads` must not be empty",
        ),
        (
            json!({"text": PROMPT, "attention": {"form": "map"}}),
            "at most 4 heads of all layers together, got 5",
        ),
        (
            json!({"tokens": long[..1024], "positions": {"from": 960}, "attention": {"layers": [0,1,2,3,4,5], "qkv": true}}),
            "numbers in one answer; at most 2099200 are possible",
        ),
        (
            json!({"text": PROMPT, "mlp": {"layers": [0,1,2,3,4,5], "top": 8}}),
            "`mlp` asks for 624 neurons in one answer; at most 512",
        ),
        (
            json!({"text": PROMPT, "lens": {"top": 21}}),
            "`lens.top` must be an integer from 1 to 20, got 21",
        ),
        (
            json!({"text": PROMPT, "sampling": {"n": 14}}),
            "`sampling.n` must be an integer from 0 to 13, got 14",
        ),
        (
            json!({"text": PROMPT, "sampling": {"top_p": 0}}),
            "`sampling.top_p` must be above 0 and at most 1, got 0",
        ),
        (
            json!({"text": PROMPT, "sampling": {"logit_bias": {"7": 101}}}),
            "`sampling.logit_bias.7` must be -100 to 100, got 101",
        ),
        (
            json!({"text": PROMPT, "sampling": {"logit_bias": {"8192": 1}}}),
            "`sampling.logit_bias` has the token id 8192",
        ),
        (json!({"text": PROMPT, "encoding": "xml"}), "xml"),
        (json!({"text": PROMPT, "positions": 3}), "positions"),
    ];
    for (body, expected) in cases {
        let (status, message) = refusal(body).await;
        assert_eq!(status, 400, "{message}");
        assert!(message.contains(expected), "{message} for {expected}");
    }
    let (status, _) = refusal(json!({"text": "a", "model": "another"})).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn pages_cover_a_long_text_and_agree() {
    let ids = SERVER.ids(&"Once upon a time there was a king. ".repeat(20));
    let mut to = ids.len();
    let mut shown = Vec::new();
    loop {
        let body = json!({
            "tokens": ids, "positions": {"from": to.saturating_sub(64), "to": to},
            "stages": ["tokens", "residual"],
        });
        let page = inspect(body).await;
        let norms = numbers(&page["residual"]["norms"][6]);
        shown.splice(0..0, norms);
        match page["next"]["to"].as_u64() {
            Some(before) => to = usize::try_from(before).expect("small"),
            None => break,
        }
    }
    assert_eq!(shown.len(), ids.len());
    let body = json!({"tokens": ids[..50], "positions": {"from": 0}, "stages": ["residual"]});
    let first = inspect(body).await;
    assert_eq!(shown[..50], numbers(&first["residual"]["norms"][6]));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_inspection() {
    let ids: Vec<u32> = (0..1000).map(|i| i * 7 % 8000).collect();
    let body = json!({"tokens": ids, "attention": {"layers": [1], "heads": [1], "form": "map"}});
    let request = client().post(SERVER.url(PATH)).json(&body).send();
    let left = tokio::time::timeout(std::time::Duration::from_millis(5), request).await;
    assert!(left.is_err());
    // Served after it, by the same worker.
    inspect(json!({"text": PROMPT})).await;
}
