//! Options of completions that concern the prompt: truncation, and log-probabilities.

use std::sync::LazyLock;

use crate::support::TestServer;
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/completions";
const PROMPT: &str = "Once upon a time there was a king who had three daughters";

fn body(more: Value) -> Value {
    let mut body = json!({"prompt": PROMPT, "max_tokens": 4, "temperature": 0});
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    body
}

async fn complete(more: Value) -> Value {
    SERVER.post(PATH, body(more)).await.ok()
}

#[tokio::test]
async fn a_truncated_prompt_is_its_last_tokens() {
    let ids = SERVER.ids(PROMPT);
    let last = &ids[ids.len() - 5..];
    let cut = complete(json!({"truncate_prompt_tokens": 5, "echo": true})).await;
    let same = complete(json!({"prompt": last, "echo": true})).await;
    assert_eq!(cut["usage"]["prompt_tokens"], 5);
    assert_eq!(cut["choices"][0]["text"], same["choices"][0]["text"]);
    let text = cut["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(&SERVER.tokenizer().decode(last)));
    // More than the prompt's tokens has no effect, nor does null.
    for keep in [json!(5000), json!(null)] {
        let whole = complete(json!({"truncate_prompt_tokens": keep})).await;
        assert_eq!(whole["usage"]["prompt_tokens"], ids.len());
    }
}

#[tokio::test]
async fn a_prompt_truncated_to_fit_leaves_room_for_the_text() {
    let long = vec![SERVER.ids(" a")[0]; 3000];
    for (more, prompt, total) in [
        (json!({"max_tokens": 24}), 1000, 1024),
        (json!({"max_tokens": 24, "overflow": "stop"}), 1000, 1024),
        (json!({"max_tokens": null}), 1008, 1024),
        // A sliding context needs no space for the output.
        (json!({"max_tokens": 24, "overflow": "slide"}), 1024, 1048),
    ] {
        let mut fields = json!({"prompt": long, "truncate_prompt_tokens": -1, "ignore_eos": true});
        let more = more.as_object().unwrap().clone();
        fields.as_object_mut().unwrap().extend(more.clone());
        let usage = complete(fields).await["usage"].clone();
        assert_eq!(usage["prompt_tokens"], prompt, "{more:?}");
        assert_eq!(usage["total_tokens"], total, "{more:?}");
    }
    let short = complete(json!({"truncate_prompt_tokens": -1})).await;
    assert_eq!(short["usage"]["prompt_tokens"], SERVER.ids(PROMPT).len());
    let session = json!({"truncate_prompt_tokens": -1, "session_id": "cut"});
    let refused = SERVER.post(PATH, body(session)).await;
    assert_eq!(refused.body["error"]["param"], "truncate_prompt_tokens");
}

#[tokio::test]
async fn prompt_logprobs_tell_probability_and_rank_of_each_token() {
    let ids = SERVER.ids(PROMPT);
    let answer = complete(json!({"prompt_logprobs": 3})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["logprobs"], Value::Null);
    let places = choice["prompt_logprobs"].as_array().unwrap();
    assert_eq!(places.len(), ids.len());
    assert_eq!(places[0], Value::Null);
    // The same values as with `echo`.
    let echoed = complete(json!({"echo": true, "logprobs": 3, "max_tokens": 0})).await;
    let echoed = &echoed["choices"][0]["logprobs"];
    for (place, id) in ids.iter().enumerate().skip(1) {
        let told = places[place].as_object().unwrap();
        let own = &told[&id.to_string()];
        assert_eq!(own["logprob"], echoed["token_logprobs"][place]);
        assert_eq!(own["decoded_token"], echoed["tokens"][place]);
        let mut ranks: Vec<u64> = told.values().map(|t| t["rank"].as_u64().unwrap()).collect();
        ranks.sort_unstable();
        assert_eq!(ranks[..3], [1, 2, 3]);
        let own_rank = own["rank"].as_u64().unwrap();
        assert_eq!(told.len(), if own_rank > 3 { 4 } else { 3 });
        let likelier = told
            .values()
            .filter(|t| t["logprob"].as_f64() > own["logprob"].as_f64());
        assert_eq!(likelier.count() as u64, (own_rank - 1).min(3));
    }
    // The text is the same as without them.
    let plain = complete(json!({})).await;
    assert_eq!(choice["text"], plain["choices"][0]["text"]);
    assert!(plain["choices"][0].get("prompt_logprobs").is_none());
}

#[tokio::test]
async fn prompt_logprobs_of_0_tell_of_the_prompts_own_tokens_alone() {
    let answer = complete(json!({"prompt_logprobs": 0, "max_tokens": 0})).await;
    let places = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    for (place, id) in places.iter().zip(SERVER.ids(PROMPT)).skip(1) {
        let told: Vec<&String> = place.as_object().unwrap().keys().collect();
        assert_eq!(told, [&id.to_string()]);
    }
}

#[tokio::test]
async fn prompt_logprobs_come_with_the_first_event_of_a_stream_and_beside_other_counts() {
    let more = json!({"prompt_logprobs": 2, "echo": true, "logprobs": 1, "n": 2, "seed": 1});
    let whole = complete(more.clone()).await;
    let mut streaming = body(more);
    streaming["stream"] = json!(true);
    let events = SERVER.stream(PATH, streaming).await;
    for index in 0..2 {
        let expected = &whole["choices"][index];
        let first = events.choices(index).next().unwrap();
        assert_eq!(first["prompt_logprobs"], expected["prompt_logprobs"]);
        let later = events.choices(index).skip(1);
        assert!(
            later
                .into_iter()
                .all(|c| c.get("prompt_logprobs").is_none())
        );
        assert_eq!(events.text_of(index), expected["text"].as_str().unwrap());
        // One top token was requested, in addition to the token itself.
        for top in expected["logprobs"]["top_logprobs"].as_array().unwrap() {
            assert!(top.as_object().is_none_or(|top| top.len() <= 2));
        }
        for place in expected["prompt_logprobs"].as_array().unwrap() {
            assert!(place.as_object().is_none_or(|told| told.len() >= 2));
        }
    }
}

#[tokio::test]
async fn without_echo_a_stream_has_the_prompts_logprobs_and_no_others_first() {
    let mut asked = body(json!({"prompt_logprobs": 1, "logprobs": 1}));
    asked["stream"] = json!(true);
    let events = SERVER.stream(PATH, asked).await;
    let first = events.choices(0).next().unwrap();
    assert_eq!(
        (&first["text"], &first["logprobs"]),
        (&json!(""), &Value::Null)
    );
    assert!(first["prompt_logprobs"].is_array());
}
