//! The OpenAI dialect over a real socket, with the built-in model.

use std::collections::HashSet;
use std::sync::LazyLock;

use crate::support::TestServer;
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/completions";

fn greedy(prompt: &str, max_tokens: u32) -> Value {
    json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0})
}

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    body
}

async fn complete(body: Value) -> Value {
    SERVER.post(PATH, body).await.ok()
}

fn text(answer: &Value, choice: usize) -> &str {
    answer["choices"][choice]["text"].as_str().expect("a text")
}

#[tokio::test]
async fn a_completion_has_the_form_clients_expect() {
    let answer = complete(greedy("Once upon a time", 5)).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "fairy-tales");
    assert_eq!(answer["system_fingerprint"], crate::support::fingerprint());
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["logprobs"], Value::Null);
    assert!(choice["seed"].is_i64());
    let prompt = SERVER.ids("Once upon a time").len();
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], prompt);
    assert_eq!(usage["completion_tokens"], 5);
    assert_eq!(usage["total_tokens"], prompt + 5);
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
    assert_eq!(SERVER.ids(text(&answer, 0)).len(), 5);
}

#[tokio::test]
async fn nulls_and_unknown_fields_are_as_if_left_out() {
    let plain = complete(with(greedy("A king", 4), json!({}))).await;
    let full = complete(with(
        greedy("A king", 4),
        json!({
            "model": null, "top_p": null, "n": null, "best_of": null, "stream": null,
            "stream_options": null, "logprobs": null, "echo": null, "stop": null,
            "presence_penalty": null, "frequency_penalty": null, "logit_bias": null,
            "seed": null, "suffix": null, "user": null, "top_k": null, "min_p": null,
            "typical_p": null, "repetition_penalty": null, "min_tokens": null,
            "ignore_eos": null, "stop_token_ids": null, "session_id": null, "overflow": null,
            "response_format": null, "guided_json": null, "guided_regex": null,
            "guided_choice": null, "guided_grammar": null, "structured_outputs": null,
            "store": true,
        }),
    ))
    .await;
    assert_eq!(text(&plain, 0), text(&full, 0));
    // Null is the default for `prompt` and `max_tokens` too.
    let bare = complete(json!({"prompt": null, "max_tokens": null})).await;
    assert_eq!(bare["usage"]["prompt_tokens"], 1);
    assert!(bare["usage"]["completion_tokens"].as_u64().unwrap() <= 16);
}

#[tokio::test]
async fn a_stream_is_the_same_text_and_ends_with_done() {
    let body = greedy("The old woman", 12);
    let whole = complete(body.clone()).await;
    let events = SERVER
        .stream(PATH, with(body, json!({"stream": true})))
        .await;
    assert!(events.done);
    assert_eq!(events.text_of(0), text(&whole, 0));
    assert_eq!(events.finish_reason(0), ["length"]);
    let ids: HashSet<_> = events.data.iter().map(|event| &event["id"]).collect();
    assert_eq!(ids.len(), 1, "one id throughout");
    let last = events.choices(0).last().unwrap();
    assert_eq!(
        (&last["text"], &last["finish_reason"]),
        (&json!(""), &json!("length"))
    );
    assert!(last["seed"].is_i64());
    for event in &events.data {
        assert_eq!(event["object"], "text_completion");
        assert!(event.get("usage").is_none(), "usage was not asked for");
    }
}

#[tokio::test]
async fn all_forms_of_a_prompt_give_what_each_gives_alone() {
    let (a, b) = ("The wolf", "A golden apple");
    let alone_a = complete(greedy(a, 4)).await;
    let alone_b = complete(greedy(b, 4)).await;
    let (ids_a, ids_b) = (SERVER.ids(a), SERVER.ids(b));
    for prompt in [json!([a, b]), json!([ids_a, ids_b])] {
        let body = json!({"prompt": prompt, "max_tokens": 4, "temperature": 0});
        let both = complete(body).await;
        assert_eq!(text(&both, 0), text(&alone_a, 0));
        assert_eq!(text(&both, 1), text(&alone_b, 0));
        assert_eq!(both["choices"][1]["index"], 1);
        assert_eq!(
            both["usage"]["prompt_tokens"],
            ids_a.len() + ids_b.len(),
            "each prompt counts once"
        );
        assert_eq!(both["usage"]["completion_tokens"], 8);
    }
    let ids = complete(json!({"prompt": ids_a, "max_tokens": 4, "temperature": 0})).await;
    assert_eq!(text(&ids, 0), text(&alone_a, 0));
}

#[tokio::test]
async fn an_empty_prompt_is_the_end_of_text_token() {
    let empty = complete(greedy("", 4)).await;
    let explicit = complete(greedy("<|endoftext|>", 4)).await;
    let absent = complete(json!({"max_tokens": 4, "temperature": 0})).await;
    assert_eq!(empty["usage"]["prompt_tokens"], 1);
    assert_eq!(text(&empty, 0), text(&explicit, 0));
    assert_eq!(text(&empty, 0), text(&absent, 0));
}

#[tokio::test]
async fn several_prompts_with_several_choices_are_numbered_by_prompt() {
    let body = json!({"prompt": ["One", "Two"], "n": 2, "max_tokens": 3, "seed": 5});
    let whole = complete(body.clone()).await;
    let solo = json!({"prompt": "Two", "n": 2, "max_tokens": 3, "seed": 5});
    let solo = complete(solo).await;
    assert_eq!(whole["choices"].as_array().unwrap().len(), 4);
    assert_eq!(text(&whole, 2), text(&solo, 0));
    assert_eq!(text(&whole, 3), text(&solo, 1));
    let events = SERVER
        .stream(PATH, with(body, json!({"stream": true})))
        .await;
    for index in 0..4 {
        assert_eq!(events.text_of(index), text(&whole, index));
    }
}

#[tokio::test]
async fn a_drawn_seed_can_be_read_back_and_used_again() {
    let body = json!({"prompt": "The fox", "max_tokens": 8});
    let first = complete(body.clone()).await;
    let seed = first["choices"][0]["seed"].clone();
    let again = complete(with(body.clone(), json!({"seed": seed}))).await;
    assert_eq!(text(&first, 0), text(&again, 0));
    let other = complete(body).await;
    assert_ne!(other["choices"][0]["seed"], seed);
    // Negative seeds are valid.
    let negative = json!({"prompt": "The fox", "max_tokens": 2, "seed": -3});
    assert_eq!(complete(negative).await["choices"][0]["seed"], -3);
}

#[tokio::test]
async fn the_best_of_several_have_the_highest_mean_logprob() {
    let body = json!({"prompt": "In the forest", "max_tokens": 6, "seed": 9, "logprobs": 0});
    let all = complete(with(body.clone(), json!({"n": 4}))).await;
    let best = complete(with(body, json!({"n": 2, "best_of": 4}))).await;
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        let sum: f64 = logprobs.iter().map(|p| p.as_f64().unwrap()).sum();
        #[allow(clippy::cast_precision_loss)]
        let mean = sum / logprobs.len() as f64;
        mean
    };
    let mut ranked: Vec<&Value> = all["choices"].as_array().unwrap().iter().collect();
    ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    assert_eq!(best["choices"].as_array().unwrap().len(), 2);
    for (index, expected) in ranked.into_iter().take(2).enumerate() {
        assert_eq!(best["choices"][index]["index"], index);
        assert_eq!(best["choices"][index]["text"], expected["text"]);
        assert_eq!(best["choices"][index]["seed"], expected["seed"]);
    }
    assert_eq!(
        best["usage"]["completion_tokens"],
        all["usage"]["completion_tokens"]
    );
}

#[tokio::test]
async fn echo_and_logprobs_score_a_prompt() {
    let prompt = "Once upon a time there was";
    let ids = SERVER.ids(prompt);
    let body = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 2});
    let scored = complete(body.clone()).await;
    assert_eq!(text(&scored, 0), prompt);
    assert_eq!(scored["choices"][0]["finish_reason"], "length");
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    let logprobs = &scored["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap();
    assert_eq!(list("tokens").len(), ids.len());
    let joined: String = list("tokens").iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(joined, prompt);
    assert_eq!(list("token_logprobs")[0], Value::Null);
    assert_eq!(list("top_logprobs")[0], Value::Null);
    let mut offset = 0;
    for place in 0..ids.len() {
        assert_eq!(list("text_offset")[place], offset);
        offset += list("tokens")[place].as_str().unwrap().chars().count();
        if place > 0 {
            assert!(list("token_logprobs")[place].as_f64().unwrap() < 0.0);
            let top = list("top_logprobs")[place].as_object().unwrap();
            assert!((2..=3).contains(&top.len()));
            assert!(top.contains_key(list("tokens")[place].as_str().unwrap()));
        }
    }
    // The same request, streamed and with a prompt of ids.
    let body = with(body, json!({"prompt": ids, "stream": true}));
    let events = SERVER.stream(PATH, body).await;
    assert_eq!(events.text_of(0), prompt);
    let first = events.choices(0).next().unwrap();
    assert_eq!(&first["logprobs"], logprobs);
    assert_eq!(events.finish_reason(0), ["length"]);
    assert!(events.done);
}

#[tokio::test]
async fn logprobs_of_text_are_the_same_streamed_and_at_once() {
    let prompt = "The prince";
    let body = with(greedy(prompt, 6), json!({"logprobs": 3, "echo": true}));
    let whole = complete(body.clone()).await;
    let logprobs = &whole["choices"][0]["logprobs"];
    assert_eq!(
        logprobs["tokens"].as_array().unwrap().len(),
        SERVER.ids(prompt).len() + 6
    );
    let events = SERVER
        .stream(PATH, with(body, json!({"stream": true})))
        .await;
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let streamed: Vec<Value> = events
            .choices(0)
            .filter_map(|choice| choice["logprobs"][name].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(json!(streamed), logprobs[name], "{name}");
    }
    // Greedy: the token is the most likely one, and listed first.
    let generated = SERVER.ids(prompt).len();
    let top = logprobs["top_logprobs"][generated].as_object().unwrap();
    let best = top
        .iter()
        .max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap()));
    assert_eq!(*best.unwrap().0, logprobs["tokens"][generated]);
}

#[tokio::test]
async fn logprobs_0_is_not_logprobs_left_out() {
    let answer = complete(with(greedy("Gretel", 2), json!({"logprobs": 0}))).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 2);
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 1);
    // Offsets count from the start of the prompt, whether it is echoed or not.
    assert_eq!(logprobs["text_offset"][0], 6);
}

#[tokio::test]
async fn logit_bias_forces_and_forbids_tokens() {
    let id = SERVER.ids(" wolf")[0];
    let piece = String::from_utf8(SERVER.tokenizer().token_bytes(id).unwrap().to_vec()).unwrap();
    let forced = with(
        greedy("The", 3),
        json!({"logit_bias": {id.to_string(): 100}}),
    );
    assert_eq!(text(&complete(forced).await, 0), piece.repeat(3));
    let plain = complete(greedy("The", 1)).await;
    let first = SERVER.ids(text(&plain, 0))[0];
    let forbidden = with(
        greedy("The", 1),
        json!({"logit_bias": {first.to_string(): -100}}),
    );
    assert_ne!(text(&complete(forbidden).await, 0), text(&plain, 0));
}

#[tokio::test]
async fn stop_tokens_and_min_tokens_hold() {
    let first = complete(greedy("The queen", 8)).await;
    let ids = SERVER.ids(text(&first, 0));
    let stop = with(greedy("The queen", 8), json!({"stop_token_ids": [ids[2]]}));
    let stopped = complete(stop.clone()).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(stopped["usage"]["completion_tokens"].as_u64().unwrap() <= 3);
    assert!(text(&first, 0).starts_with(text(&stopped, 0)));
    let longer = complete(with(stop, json!({"min_tokens": 6}))).await;
    assert!(longer["usage"]["completion_tokens"].as_u64().unwrap() > 6);
    // End-of-text, unless it is ignored.
    let eos = SERVER.tokenizer().end_of_text().unwrap().to_string();
    let ends = with(greedy("The queen", 4), json!({"logit_bias": {eos: 100}}));
    let ended = complete(ends.clone()).await;
    assert_eq!(text(&ended, 0), "");
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    assert_eq!(ended["usage"]["completion_tokens"], 1);
    let on = complete(with(ends, json!({"ignore_eos": true}))).await;
    assert_eq!(on["usage"]["completion_tokens"], 4);
    assert_eq!(on["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused_unless_overflow_says_otherwise() {
    let prompt: Vec<u32> = std::iter::repeat_n(SERVER.ids(" a")[0], 1015).collect();
    let body = json!({"prompt": prompt, "max_tokens": 18, "temperature": 0});
    let refused = SERVER.post(PATH, body.clone()).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.body["error"]["code"], "context_length_exceeded");
    assert!(refused.message().contains("1024"), "{}", refused.message());
    let stop = complete(with(body.clone(), json!({"overflow": "stop"}))).await;
    assert_eq!(stop["usage"]["total_tokens"], 1024);
    let mut absent = body.clone();
    absent.as_object_mut().unwrap().remove("max_tokens");
    assert_eq!(complete(absent).await["usage"]["completion_tokens"], 9);
    let slide = complete(with(body, json!({"overflow": "slide", "ignore_eos": true}))).await;
    assert_eq!(slide["usage"]["completion_tokens"], 18);
}

#[tokio::test]
async fn thirty_two_streams_are_each_what_they_are_alone() {
    let body = |seed: usize| json!({"prompt": format!("Tale {seed}:"), "max_tokens": 16, "seed": seed, "temperature": 0.9});
    let streams =
        (0..32).map(|seed| SERVER.stream(PATH, with(body(seed), json!({"stream": true}))));
    let together = futures_util::future::join_all(streams).await;
    for (seed, events) in together.iter().enumerate() {
        let alone = complete(body(seed)).await;
        assert_eq!(events.text_of(0), text(&alone, 0), "seed {seed}");
        assert!(events.done);
    }
}

#[tokio::test]
async fn a_prompt_seen_before_comes_from_the_cache() {
    let prompt = "A tale that is long enough to fill a few blocks of the cache. ".repeat(4);
    let first = complete(greedy(&prompt, 4)).await;
    let again = complete(greedy(&prompt, 4)).await;
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(cached.unwrap() > 0);
    assert_eq!(text(&first, 0), text(&again, 0));
}

#[tokio::test]
async fn models_are_listed_and_described() {
    let list = SERVER.get("/v1/models").await.ok();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "fairy-tales");
    assert_eq!(list["data"][0]["object"], "model");
    assert_eq!(list["data"][0]["max_model_len"], 1024);
    let one = SERVER.get("/v1/models/fairy-tales").await.ok();
    assert_eq!(one, list["data"][0]);
    let other = SERVER.get("/v1/models/openai-community/gpt2").await;
    assert_eq!(other.status, 404);
    assert_eq!(other.body["error"]["code"], "model_not_found");
    let named = complete(with(greedy("Hi", 1), json!({"model": "fairy-tales"}))).await;
    assert_eq!(named["model"], "fairy-tales");
    let wrong = SERVER.post(PATH, json!({"model": "gpt-4"})).await;
    assert_eq!(wrong.status, 404);
    assert_eq!(wrong.body["error"]["code"], "model_not_found");
    assert_eq!(wrong.body["error"]["param"], "model");
}
