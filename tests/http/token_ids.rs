//! Token ids in log-probabilities: `token_ids` and `top_token_ids` of completions, and vLLM's
//! `return_tokens_as_token_ids` for both endpoints.

use std::sync::LazyLock;

use crate::support::TestServer;
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
/// Every list of `logprobs`.
const LISTS: [&str; 6] = [
    "tokens",
    "token_ids",
    "token_logprobs",
    "top_logprobs",
    "top_token_ids",
    "text_offset",
];

fn body(more: Value) -> Value {
    let mut body = json!({
        "prompt": "The prince – a", "max_tokens": 6, "temperature": 1.2, "seed": 11, "logprobs": 4,
    });
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    body
}

async fn logprobs(body: Value) -> Value {
    SERVER.post(COMPLETIONS, body).await.ok()["choices"][0]["logprobs"].take()
}

fn list<'a>(logprobs: &'a Value, name: &str) -> &'a [Value] {
    logprobs[name].as_array().expect("a list")
}

fn id(value: &Value) -> u32 {
    u32::try_from(value.as_u64().expect("an id")).expect("32 bits")
}

/// Asserts that all lists of `logprobs` are parallel, and their ids those of their texts.
fn check(logprobs: &Value) {
    let ids = list(logprobs, "token_ids");
    for name in LISTS {
        assert_eq!(list(logprobs, name).len(), ids.len(), "{name}");
    }
    let tokenizer = SERVER.tokenizer();
    let is_named = |id: u32, text: &str| {
        let bytes = tokenizer.token_bytes(id).expect("a token");
        std::str::from_utf8(bytes).map_or_else(|_| text.starts_with("bytes:"), |own| own == text)
    };
    for place in 0..ids.len() {
        let text = logprobs["tokens"][place].as_str().expect("a text");
        assert!(is_named(id(&ids[place]), text), "{text:?}");
        let Some(top) = logprobs["top_logprobs"][place].as_object() else {
            assert_eq!(logprobs["top_token_ids"][place], Value::Null);
            continue;
        };
        let top_ids = logprobs["top_token_ids"][place].as_array().expect("ids");
        assert_eq!(top.len(), top_ids.len());
        for ((text, _), top_id) in top.iter().zip(top_ids) {
            assert!(is_named(id(top_id), text), "{text:?}");
        }
        assert!(top_ids.contains(&ids[place]));
        let likely: Vec<f64> = top.values().filter_map(Value::as_f64).collect();
        assert!(likely.is_sorted_by(|a, b| a >= b), "{likely:?}");
    }
}

#[tokio::test]
async fn completions_have_the_ids_of_their_tokens_and_of_the_most_likely_ones() {
    for more in [json!({}), json!({"echo": true}), json!({"logprobs": 0})] {
        let body = body(more);
        let whole = logprobs(body.clone()).await;
        check(&whole);
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        let events = SERVER.stream(COMPLETIONS, streamed).await;
        for name in LISTS {
            let pieces = events
                .choices(0)
                .filter_map(|choice| choice["logprobs"][name].as_array());
            let pieces: Vec<Value> = pieces.flatten().cloned().collect();
            assert_eq!(json!(pieces), whole[name], "{name} of {body}");
        }
    }
}

#[tokio::test]
async fn an_echoed_prompt_has_the_ids_it_was_given_as() {
    let ids = SERVER.ids("The prince – a");
    let echoed = body(json!({"prompt": ids, "echo": true, "max_tokens": 0}));
    let echoed = logprobs(echoed).await;
    assert_eq!(echoed["token_ids"], json!(ids));
    assert_eq!(echoed["top_token_ids"][0], Value::Null);
    // What was sampled continues the session's prompt as ids.
    let sampled = logprobs(body(json!({}))).await;
    let all = logprobs(body(json!({"echo": true}))).await;
    let generated = list(&all, "token_ids").get(ids.len()..);
    assert_eq!(generated, Some(list(&sampled, "token_ids")));
}

/// As vLLM does: `token_id:123` wherever a token's text would be, and offsets of the text.
#[tokio::test]
async fn completions_write_tokens_as_ids() {
    for echo in [false, true] {
        let texts = logprobs(body(json!({"echo": echo}))).await;
        let asked = body(json!({"echo": echo, "return_tokens_as_token_ids": true}));
        let ids = logprobs(asked.clone()).await;
        for name in [
            "token_ids",
            "token_logprobs",
            "top_token_ids",
            "text_offset",
        ] {
            assert_eq!(ids[name], texts[name], "{name}");
        }
        let as_id = |id: &Value| format!("token_id:{id}");
        for (place, id) in list(&ids, "token_ids").iter().enumerate() {
            assert_eq!(ids["tokens"][place], as_id(id));
            let Some(top) = ids["top_logprobs"][place].as_object() else {
                continue;
            };
            let top_ids = ids["top_token_ids"][place].as_array().expect("ids");
            let names: Vec<String> = top_ids.iter().map(as_id).collect();
            assert_eq!(top.keys().cloned().collect::<Vec<_>>(), names);
            let likely: Vec<&Value> = top.values().collect();
            let same = texts["top_logprobs"][place].as_object().expect("a map");
            assert_eq!(likely, same.values().collect::<Vec<_>>());
        }
        let mut streamed = asked;
        streamed["stream"] = json!(true);
        let events = SERVER.stream(COMPLETIONS, streamed).await;
        let tokens = events
            .choices(0)
            .filter_map(|choice| choice["logprobs"]["tokens"].as_array());
        let tokens: Vec<Value> = tokens.flatten().cloned().collect();
        assert_eq!(json!(tokens), ids["tokens"]);
    }
}

#[tokio::test]
async fn chat_completions_write_tokens_as_ids_and_keep_their_bytes() {
    let asked = |as_ids: Value| {
        json!({
            "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 8, "temperature": 0,
            "logprobs": true, "top_logprobs": 3, "return_tokens_as_token_ids": as_ids,
        })
    };
    let content = async |body: Value| {
        let mut answer = SERVER.post(CHAT, body).await.ok();
        answer["choices"][0]["logprobs"]["content"].take()
    };
    let texts = content(asked(Value::Null)).await;
    assert_eq!(content(asked(json!(false))).await, texts);
    let ids = content(asked(json!(true))).await;
    let (texts, ids) = (
        texts.as_array().expect("tokens"),
        ids.as_array().expect("tokens"),
    );
    assert_eq!(texts.len(), ids.len());
    let check = |text: &Value, id: &Value| {
        for name in ["logprob", "bytes"] {
            assert_eq!(text[name], id[name]);
        }
        let number = id["token"]
            .as_str()
            .expect("a name")
            .strip_prefix("token_id:");
        let number: u32 = number.expect("the form").parse().expect("an id");
        let bytes = SERVER.tokenizer().token_bytes(number).expect("a token");
        assert_eq!(json!(bytes), text["bytes"]);
    };
    for (text, id) in texts.iter().zip(ids) {
        check(text, id);
        let tops = text["top_logprobs"].as_array().expect("tokens").iter();
        for (text, id) in tops.zip(id["top_logprobs"].as_array().expect("tokens")) {
            check(text, id);
        }
    }
    let mut streamed = asked(json!(true));
    streamed["stream"] = json!(true);
    let events = SERVER.stream(CHAT, streamed).await;
    let streamed: Vec<&Value> = events
        .choices(0)
        .filter_map(|choice| choice["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(streamed, ids.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_form_that_is_not_a_boolean_is_refused() {
    for (path, mut body) in [
        (COMPLETIONS, json!({"prompt": "a"})),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": "a"}]}),
        ),
    ] {
        body["return_tokens_as_token_ids"] = json!("yes");
        let refused = SERVER.post(path, body).await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert_eq!(refused.body["error"]["param"], "return_tokens_as_token_ids");
    }
}
