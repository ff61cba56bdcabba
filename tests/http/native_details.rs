//! The native (TGI) dialect in detail: the effect of each parameter, alone and combined, at all three
//! endpoints. `native.rs` tests the dialect as a whole.

use std::sync::LazyLock;

use crate::support::TestServer;
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const REFERENCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/fairy-tales/reference.json"
);

fn body(inputs: &str, parameters: Value) -> Value {
    json!({"inputs": inputs, "parameters": parameters})
}

async fn generate(inputs: &str, parameters: Value) -> Value {
    SERVER
        .post("/generate", body(inputs, parameters))
        .await
        .ok()
}

fn text(answer: &Value) -> &str {
    answer["generated_text"].as_str().expect("a text")
}

/// Returns the concatenated texts of tokens that are not special.
fn joined(tokens: &Value) -> String {
    let tokens = tokens.as_array().expect("tokens").iter();
    let shown = tokens.filter(|token| token["special"] != true);
    shown.map(|token| token["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_prefill_is_the_prompt_with_the_references_logprobs() {
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(REFERENCE).expect("references")).unwrap();
    for case in cases {
        let prompt = case["prompt"].as_str().unwrap();
        let parameters = json!({"max_new_tokens": 1, "decoder_input_details": true});
        let answer = generate(prompt, parameters).await;
        let prefill = answer["details"]["prefill"].as_array().unwrap();
        let ids: Vec<&Value> = prefill.iter().map(|token| &token["id"]).collect();
        assert_eq!(json!(ids), case["ids"]);
        assert_eq!(joined(&answer["details"]["prefill"]), prompt);
        let expected = case["prompt_logprobs"].as_array().unwrap();
        assert_eq!(prefill.len(), expected.len());
        for (token, expected) in prefill.iter().zip(expected) {
            match expected.as_f64() {
                None => assert_eq!(token["logprob"], Value::Null),
                Some(expected) => {
                    // The logits of two f32 implementations are within 2e-4.
                    assert!((token["logprob"].as_f64().unwrap() - expected).abs() < 4e-4);
                }
            }
        }
        assert_eq!(answer["details"]["tokens"][0]["id"], case["greedy_ids"][0]);
    }
}

#[tokio::test]
async fn details_are_there_only_if_asked_for_and_have_all_their_fields() {
    let bare = generate("The hen", json!({"max_new_tokens": 3})).await;
    assert_eq!(bare.as_object().unwrap().len(), 1, "{bare}");
    // `top_n_tokens` alone does not return details.
    let tops = generate("The hen", json!({"max_new_tokens": 3, "top_n_tokens": 2})).await;
    assert_eq!(tops, bare);
    let details = generate("The hen", json!({"max_new_tokens": 3, "details": true})).await;
    assert_eq!(text(&details), text(&bare));
    let details = details["details"].as_object().unwrap();
    let names: Vec<&String> = details.keys().collect();
    for name in [
        "finish_reason",
        "generated_tokens",
        "seed",
        "prefill",
        "tokens",
    ] {
        assert!(details.contains_key(name), "{name} is missing: {names:?}");
    }
    assert_eq!(details["prefill"], json!([]), "it was not asked for");
    assert!(!details.contains_key("top_tokens"));
    assert!(!details.contains_key("best_of_sequences"));
    let token = details["tokens"][0].as_object().unwrap();
    let mut names: Vec<&String> = token.keys().collect();
    names.sort();
    assert_eq!(names, ["id", "logprob", "special", "text"]);
    // The prompt's tokens imply details.
    let parameters = json!({"max_new_tokens": 3, "decoder_input_details": true});
    let prefill = generate("The hen", parameters).await;
    assert_eq!(prefill["details"]["tokens"], details["tokens"]);
}

#[tokio::test]
async fn top_tokens_are_the_likeliest_in_order_in_answers_and_events() {
    let parameters = json!({"max_new_tokens": 4, "top_n_tokens": 5, "details": true, "seed": 4, "do_sample": true});
    let answer = generate("A shoemaker", parameters.clone()).await;
    let tops = answer["details"]["top_tokens"].as_array().unwrap();
    assert_eq!(tops.len(), 4);
    for top in tops {
        let logprobs: Vec<f64> = top
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token["logprob"].as_f64().unwrap())
            .collect();
        assert_eq!(logprobs.len(), 5);
        assert!(logprobs.is_sorted_by(|a, b| a >= b), "{logprobs:?}");
    }
    let events = SERVER
        .stream("/generate_stream", body("A shoemaker", parameters))
        .await;
    let streamed: Vec<&Value> = events
        .data
        .iter()
        .map(|event| &event["top_tokens"])
        .collect();
    assert_eq!(json!(streamed), json!(tops));
    let events = SERVER
        .stream(
            "/generate_stream",
            body("A shoemaker", json!({"max_new_tokens": 2})),
        )
        .await;
    assert!(
        events
            .data
            .iter()
            .all(|event| event.get("top_tokens").is_none())
    );
}

#[tokio::test]
async fn the_sequences_of_best_of_are_whole_answers_of_their_own() {
    let parameters = json!({
        "max_new_tokens": 5, "temperature": 1.0, "seed": 31, "best_of": 3, "details": true,
        "decoder_input_details": true, "top_n_tokens": 2, "return_full_text": true,
    });
    let best = generate("The wolf", parameters.clone()).await;
    let mut all = vec![(best["generated_text"].clone(), best["details"].clone())];
    for other in best["details"]["best_of_sequences"].as_array().unwrap() {
        assert!(other.get("best_of_sequences").is_none());
        all.push((other["generated_text"].clone(), other.clone()));
    }
    assert_eq!(all.len(), 3);
    for (generated, details) in &all {
        let generated = generated.as_str().unwrap();
        assert_eq!(
            generated.strip_prefix("The wolf"),
            Some(&*joined(&details["tokens"]))
        );
        assert_eq!(joined(&details["prefill"]), "The wolf");
        let tokens = details["tokens"].as_array().unwrap().len();
        assert_eq!(details["generated_tokens"], tokens);
        assert_eq!(details["top_tokens"].as_array().unwrap().len(), tokens);
        // Each candidate is the text of its seed alone.
        let mut alone = parameters.clone();
        alone["best_of"] = json!(1);
        alone["seed"] = details["seed"].clone();
        let alone = generate("The wolf", alone).await;
        assert_eq!(text(&alone), generated);
        assert_eq!(alone["details"]["tokens"], details["tokens"]);
    }
    // Without details only the best text is returned.
    let mut bare = parameters;
    bare["details"] = json!(false);
    bare["decoder_input_details"] = json!(false);
    let bare = generate("The wolf", bare).await;
    assert_eq!(bare, json!({"generated_text": all[0].0}));
}

#[tokio::test]
async fn best_of_does_not_go_with_streams_except_for_one() {
    let several = body(
        "A",
        json!({"best_of": 2, "do_sample": true, "max_new_tokens": 2}),
    );
    let mut streaming = several.clone();
    streaming["stream"] = json!(true);
    for (path, request) in [
        ("/generate_stream", &several),
        ("/generate", &streaming),
        ("/", &streaming),
    ] {
        let refused = SERVER.post(path, request.clone()).await;
        assert_eq!(refused.status, 422, "{path}");
        assert_eq!(refused.body["error_type"], "validation");
        assert!(
            refused.message().contains("`best_of`"),
            "{}",
            refused.message()
        );
        let mut details = request.clone();
        details["parameters"] = json!({"decoder_input_details": true});
        let refused = SERVER.post(path, details).await;
        assert_eq!(refused.status, 422, "{path}");
        assert!(
            refused.message().contains("`decoder_input_details"),
            "{path}"
        );
    }
    let one = body("A", json!({"best_of": 1, "max_new_tokens": 2}));
    let events = SERVER.stream("/generate_stream", one).await;
    assert_eq!(events.data.len(), 2);
}

#[tokio::test]
async fn generate_stream_streams_whatever_the_body_says_of_it() {
    let mut request = body("A tailor", json!({"max_new_tokens": 3}));
    request["stream"] = json!(false);
    let events = SERVER.stream("/generate_stream", request.clone()).await;
    assert_eq!(events.data.len(), 3);
    // At the other endpoints `stream` decides.
    let object = SERVER.post("/generate", request.clone()).await.ok();
    assert_eq!(events.native_text(), text(&object));
    let in_list = SERVER.post("/", request).await.ok();
    assert_eq!(in_list, json!([object]));
}

#[tokio::test]
async fn empty_inputs_are_refused_everywhere_unless_a_session_goes_on() {
    for path in ["/generate", "/generate_stream", "/"] {
        for stream in [false, true] {
            let request = json!({"inputs": "", "stream": stream});
            let refused = SERVER.post(path, request).await;
            assert_eq!(refused.status, 422, "{path}");
            assert_eq!(refused.body["error_type"], "validation");
            assert!(
                refused.message().contains("`inputs`"),
                "{}",
                refused.message()
            );
        }
    }
    let turn = |inputs: &str| json!({"inputs": inputs, "session_id": "empty", "parameters": {"max_new_tokens": 4}});
    let nothing = SERVER.post("/generate", turn("")).await;
    assert_eq!(nothing.status, 422, "there is nothing to go on from");
    let first = SERVER.post("/generate", turn("The stork")).await.ok();
    let more = SERVER.post("/generate", turn("")).await.ok();
    let whole = generate("The stork", json!({"max_new_tokens": 8})).await;
    assert_eq!(format!("{}{}", text(&first), text(&more)), text(&whole));
}

#[tokio::test]
async fn truncation_keeps_the_end_of_the_prompt_and_the_full_text_its_whole() {
    let long = "So it was told. The cat and the mouse";
    let ids = SERVER.ids(long);
    let kept = SERVER.tokenizer().decode(&ids[ids.len() - 3..]);
    let cut = generate(long, json!({"max_new_tokens": 5, "truncate": 3})).await;
    let alone = generate(&kept, json!({"max_new_tokens": 5})).await;
    assert_eq!(text(&cut), text(&alone));
    let parameters = json!({"max_new_tokens": 5, "truncate": 3, "return_full_text": true});
    let full = generate(long, parameters.clone()).await;
    assert_eq!(text(&full), format!("{long}{}", text(&alone)));
    let mut counted = parameters;
    counted["details"] = json!(true);
    let events = SERVER.stream("/generate_stream", body(long, counted)).await;
    assert_eq!(events.data.last().unwrap()["details"]["input_length"], 3);
    // A number above the prompt's length keeps all of it; a prompt longer than the window can be truncated to
    // fit.
    let all = generate(long, json!({"max_new_tokens": 5, "truncate": 1000})).await;
    let plain = generate(long, json!({"max_new_tokens": 5})).await;
    assert_eq!(text(&all), text(&plain));
    let endless = " a".repeat(1100);
    let fits = generate(&endless, json!({"max_new_tokens": 2, "truncate": 1000})).await;
    assert!(!text(&fits).is_empty());
}

#[tokio::test]
async fn values_that_switch_a_parameter_off_change_nothing() {
    let drawn = |more: Value| async move {
        let mut parameters = json!({"max_new_tokens": 12, "do_sample": true, "seed": 8});
        let more = more.as_object().unwrap().clone();
        parameters.as_object_mut().unwrap().extend(more);
        let answer = generate("The smith", parameters).await;
        text(&answer).to_owned()
    };
    let plain = drawn(json!({})).await;
    for off in [
        json!({"temperature": 1.0}),
        json!({"top_p": 1.0}),
        json!({"typical_p": 1.0}),
        json!({"repetition_penalty": 1.0}),
        json!({"frequency_penalty": 0.0}),
        json!({"top_k": 8192}),
        json!({"watermark": false, "best_of": 1, "stop": [], "return_full_text": false}),
    ] {
        assert_eq!(drawn(off.clone()).await, plain, "{off}");
    }
    for on in [
        json!({"temperature": 0.2}),
        json!({"top_p": 0.01}),
        json!({"top_k": 1}),
        json!({"typical_p": 0.01}),
        json!({"repetition_penalty": 50.0}),
        json!({"frequency_penalty": 2.0, "repetition_penalty": 2.0}),
    ] {
        assert_ne!(drawn(on.clone()).await, plain, "{on}");
    }
}

#[tokio::test]
async fn left_out_it_generates_100_tokens_and_takes_any_64_bit_seed() {
    let answer = generate("Long ago", json!({"details": true})).await;
    let details = &answer["details"];
    let generated = details["generated_tokens"].as_u64().unwrap();
    assert!(
        generated == 100 || details["finish_reason"] == "eos_token",
        "{generated}"
    );
    assert_eq!(details["seed"], Value::Null);
    for seed in [1, 1 << 40, u64::MAX] {
        let parameters =
            json!({"max_new_tokens": 2, "do_sample": true, "seed": seed, "details": true});
        let answer = generate("Long ago", parameters).await;
        assert_eq!(answer["details"]["seed"], seed);
    }
    // A random seed is returned, and gives the same text again.
    let parameters = json!({"max_new_tokens": 8, "do_sample": true, "details": true});
    let first = generate("Long ago", parameters.clone()).await;
    let mut again = parameters;
    again["seed"] = first["details"]["seed"].clone();
    assert_eq!(text(&generate("Long ago", again).await), text(&first));
}

#[tokio::test]
async fn what_no_server_of_this_kind_has_is_a_clear_error() {
    for (parameters, status, parts) in [
        (
            json!({"watermark": true}),
            422,
            ["`watermark`", "not supported"],
        ),
        (
            json!({"adapter_id": "my/lora"}),
            404,
            ["my/lora", "fairy-tales"],
        ),
    ] {
        for path in ["/generate", "/generate_stream", "/"] {
            let refused = SERVER.post(path, body("A", parameters.clone())).await;
            assert_eq!(refused.status, status, "{path}");
            for part in parts {
                assert!(refused.message().contains(part), "{}", refused.message());
            }
        }
    }
}
