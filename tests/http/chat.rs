//! Chat completions over a real socket, with the built-in model: in the plain form, and with chat templates
//! of other models.

use std::path::Path;
use std::sync::LazyLock;

use crate::support::{Setup, TestServer};
use serde_json::{Value, json};
use skald::checkpoint::ModelSource;
use tempfile::TempDir;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/chat/completions";

/// Returns a request with one question, greedy and with 12 tokens unless `more` overrides that.
fn ask(question: &str, more: Value) -> Value {
    let messages = json!([{"role": "user", "content": question}]);
    let body = json!({"messages": messages, "max_completion_tokens": 12, "temperature": 0});
    with(body, more)
}

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    body
}

async fn chat(body: Value) -> Value {
    SERVER.post(PATH, body).await.ok()
}

fn content(answer: &Value, choice: usize) -> &str {
    let content = answer["choices"][choice]["message"]["content"].as_str();
    content.expect("a content")
}

/// Returns the text of a completion, for comparison.
async fn complete(body: Value) -> String {
    let answer = SERVER.post("/v1/completions", body).await.ok();
    answer["choices"][0]["text"].as_str().expect("text").into()
}

/// Returns the concatenated deltas of one choice.
fn streamed(events: &crate::support::sse::Events, index: usize) -> String {
    let deltas = events.choices(index);
    deltas
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect()
}

#[tokio::test]
async fn an_answer_has_the_form_clients_expect() {
    let answer = chat(ask("Who was the king?", json!({}))).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "fairy-tales");
    assert_eq!(answer["system_fingerprint"], crate::support::fingerprint());
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["refusal"], Value::Null);
    assert_eq!(choice["logprobs"], Value::Null);
    assert!(choice["seed"].is_i64());
    let usage = &answer["usage"];
    let prompt = SERVER.ids("User: Who was the king?\n\nAssistant:").len();
    assert_eq!(usage["prompt_tokens"], prompt);
    let generated = usage["completion_tokens"].as_u64().unwrap();
    assert!((1..=12).contains(&generated));
    assert_eq!(usage["total_tokens"], prompt as u64 + generated);
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
}

#[tokio::test]
async fn a_conversation_in_the_plain_form_is_a_dialogue_to_go_on_with() {
    let messages = json!([
        {"role": "system", "content": "A tale told by the fire.\n"},
        {"role": "user", "content": " Who was the king?", "name": "Gretel"},
        {"role": "assistant", "content": " An old man."},
        {"role": "developer", "content": "The fire burns low."},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "then?"}]},
    ]);
    let prompt = "A tale told by the fire.\n\nGretel: Who was the king?\n\nAssistant: An old man.\n\n\
                  The fire burns low.\n\nUser: And\nthen?\n\nAssistant:";
    let stop = ["\n\nUser:", "\nUser:", "\n\nGretel:", "\nGretel:"];
    let text =
        complete(json!({"prompt": prompt, "max_tokens": 12, "temperature": 0, "stop": stop}));
    let answer = chat(ask("", json!({"messages": messages}))).await;
    assert_eq!(answer["usage"]["prompt_tokens"], SERVER.ids(prompt).len());
    assert_eq!(content(&answer, 0), text.await);
}

#[tokio::test]
async fn in_the_plain_form_an_answer_ends_where_another_speaker_begins() {
    // Only three tokens can be sampled, and each occurrence makes a token less likely.
    let token = |text: &str| {
        let ids = SERVER.ids(text);
        assert_eq!(ids.len(), 1, "{text:?}");
        (ids[0].to_string(), json!(100))
    };
    let bias: serde_json::Map<String, Value> = ["\n", "x", ":"].map(token).into_iter().collect();
    // The first seed with which the user speaks again.
    let mut seed = 0;
    let (drawn, text, next) = loop {
        let drawn = json!({
            "seed": seed, "temperature": 2, "frequency_penalty": 2, "ignore_eos": true, "logit_bias": bias,
        });
        let prompt = json!({"prompt": "x: Speak.\n\nAssistant:", "max_tokens": 100});
        let text = complete(with(prompt, drawn.clone())).await;
        if let Some(next) = text.find("\nx:") {
            break (drawn, text, next);
        }
        assert!(seed < 50, "{text:?}");
        seed += 1;
    };
    let end = text[..next].strip_suffix('\n').map_or(next, str::len);

    let messages = json!([{"role": "user", "name": "x", "content": "Speak."}]);
    let body = json!({"messages": messages, "max_completion_tokens": 100});
    let answer = chat(with(body, drawn)).await;
    assert_eq!(content(&answer, 0), &text[..end]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_adds_up_to_the_answer() {
    let body = ask(
        "Who was the king?",
        json!({"n": 2, "seed": 4, "temperature": 1}),
    );
    let whole = chat(body.clone()).await;
    let events = SERVER
        .stream(PATH, with(body, json!({"stream": true})))
        .await;
    assert!(events.done);
    for index in 0..2 {
        let first = events.choices(index).next().unwrap();
        assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
        let roles = events
            .choices(index)
            .filter(|c| !c["delta"]["role"].is_null());
        assert_eq!(roles.count(), 1);
        assert_eq!(streamed(&events, index), content(&whole, index));
        let last = events.choices(index).last().unwrap();
        assert_eq!(last["delta"], json!({}));
        assert_eq!(
            last["finish_reason"],
            whole["choices"][index]["finish_reason"]
        );
        assert_eq!(last["seed"], 4 + index);
        assert_eq!(events.finish_reason(index).len(), 1);
    }
    for event in &events.data {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["id"], events.data[0]["id"]);
        assert!(event["id"].as_str().unwrap().starts_with("chatcmpl-"));
        assert!(event.get("usage").is_none(), "usage was not asked for");
    }
}

#[tokio::test]
async fn logprobs_tell_of_each_token_streamed_and_at_once() {
    let body = ask("Who?", json!({"logprobs": true, "top_logprobs": 3}));
    let whole = chat(body.clone()).await;
    let logprobs = &whole["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let tokens = logprobs["content"].as_array().unwrap();
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), content(&whole, 0));
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token is the most likely one.
        for field in ["token", "logprob", "bytes"] {
            assert_eq!(top[0][field], token[field]);
        }
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
    }
    let events = SERVER
        .stream(PATH, with(body, json!({"stream": true})))
        .await;
    let streamed: Vec<&Value> = events
        .choices(0)
        .filter_map(|choice| choice["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(streamed, tokens.iter().collect::<Vec<_>>());
    // Without `top_logprobs` the list is empty.
    let plain = chat(ask("Who?", json!({"logprobs": true}))).await;
    let first = &plain["choices"][0]["logprobs"]["content"][0];
    assert_eq!(first["top_logprobs"], json!([]));
}

#[tokio::test]
async fn the_token_that_ends_an_answer_is_not_part_of_it() {
    let end = SERVER.tokenizer().end_of_text().unwrap().to_string();
    let body = json!({"logit_bias": {end: 100}, "logprobs": true});
    let answer = chat(ask("Who?", body)).await;
    assert_eq!(content(&answer, 0), "");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["logprobs"]["content"], json!([]));
    assert_eq!(answer["usage"]["completion_tokens"], 1);
}

#[tokio::test]
async fn both_names_of_the_length_mean_the_same_and_its_default_is_what_fits() {
    let body = |more: Value| {
        let messages = json!([{"role": "user", "content": "Who?"}]);
        let body = json!({"messages": messages, "temperature": 0, "ignore_eos": true});
        with(body, more)
    };
    let newer = chat(body(json!({"max_completion_tokens": 5}))).await;
    assert_eq!(newer["usage"]["completion_tokens"], 5);
    assert_eq!(newer["choices"][0]["finish_reason"], "length");
    for more in [
        json!({"max_tokens": 5}),
        json!({"max_tokens": 5, "max_completion_tokens": 5}),
    ] {
        assert_eq!(content(&chat(body(more)).await, 0), content(&newer, 0));
    }
    let nothing = chat(body(json!({"max_tokens": 0}))).await;
    assert_eq!(content(&nothing, 0), "");
    assert_eq!(nothing["usage"]["completion_tokens"], 0);
    let long = json!([{"role": "user", "content": " a".repeat(1005)}]);
    let filled = chat(body(json!({"messages": long}))).await;
    assert_eq!(filled["usage"]["total_tokens"], 1024);
    // A sliding conversation ends too.
    let sliding = json!({"messages": long, "overflow": "slide", "stop": ["\u{1}"]});
    let slid = chat(body(sliding)).await;
    assert_eq!(slid["usage"]["completion_tokens"], 1024);
}

#[tokio::test]
async fn a_conversation_that_does_not_fit_is_refused_unless_it_is_truncated() {
    let long = json!([{"role": "user", "content": " a".repeat(1100)}]);
    let refused = SERVER.post(PATH, ask("", json!({"messages": long}))).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.body["error"]["code"], "context_length_exceeded");
    assert_eq!(refused.body["error"]["param"], "messages");
    for (keep, prompt) in [(64, 64), (-1, 1012)] {
        let body = json!({"messages": long, "truncate_prompt_tokens": keep});
        let kept = chat(ask("", body)).await;
        assert_eq!(kept["usage"]["prompt_tokens"], prompt);
    }
    let fits = json!([{"role": "user", "content": " a".repeat(1000)}]);
    let body = json!({"messages": fits, "max_completion_tokens": 200});
    let refused = SERVER.post(PATH, ask("", body)).await;
    assert_eq!(refused.body["error"]["param"], "max_completion_tokens");
    assert_eq!(refused.body["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn what_was_said_before_comes_from_the_cache() {
    let mut messages = vec![json!({
        "role": "user",
        "content": "Tell me of a king who could not sleep, and of what he did about it at night.",
    })];
    let mut cached = Vec::new();
    for question in ["And then?", "Who told him so?", "What did the queen say?"] {
        let body = json!({"messages": messages, "max_completion_tokens": 32, "ignore_eos": true});
        let answer = chat(ask("", body)).await;
        let tokens = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
        cached.push(tokens.as_u64().unwrap());
        messages.push(json!({"role": "assistant", "content": content(&answer, 0)}));
        messages.push(json!({"role": "user", "content": question}));
    }
    assert!(cached[1] > 0, "{cached:?}");
    assert!(cached[2] > cached[1], "{cached:?}");
    // The text generated in the last turn was cached too, not only the messages before it.
    let before = SERVER.ids(messages[0]["content"].as_str().unwrap()).len() as u64;
    assert!(cached[1] > before, "{cached:?} of {before}");
}

#[tokio::test]
async fn a_special_token_in_a_message_is_plain_text() {
    let answer = chat(ask("x<|endoftext|>y", json!({}))).await;
    let text = "User: x<|endoftext|>y\n\nAssistant:";
    let plain = SERVER.tokenizer().encode(text, false).unwrap();
    assert_ne!(plain.len(), SERVER.ids(text).len());
    assert_eq!(answer["usage"]["prompt_tokens"], plain.len());
}

#[tokio::test]
async fn a_final_message_can_be_continued_or_closed() {
    let messages = json!([
        {"role": "user", "content": "Begin."},
        {"role": "assistant", "content": "Once upon a time"},
    ]);
    let text = |prompt: &str| {
        let stop = ["\n\nUser:", "\nUser:"];
        complete(json!({"prompt": prompt, "max_tokens": 12, "temperature": 0, "stop": stop}))
    };
    for (ending, prompt) in [
        (
            json!({"continue_final_message": true, "add_generation_prompt": false}),
            "User: Begin.\n\nAssistant: Once upon a time",
        ),
        (
            json!({"add_generation_prompt": false}),
            "User: Begin.\n\nAssistant: Once upon a time\n\n",
        ),
        (
            json!({}),
            "User: Begin.\n\nAssistant: Once upon a time\n\nAssistant:",
        ),
    ] {
        let answer = chat(ask("", with(ending, json!({"messages": messages})))).await;
        assert_eq!(content(&answer, 0), text(prompt).await, "{prompt:?}");
    }
}

#[tokio::test]
async fn fields_that_change_nothing_are_accepted() {
    let plain = chat(ask("Who?", json!({}))).await;
    let full = json!({
        "model": "fairy-tales", "n": 1, "stop": null, "stream": false, "stream_options": null,
        "top_p": 1, "logprobs": false, "top_logprobs": 0, "seed": null, "logit_bias": null,
        "presence_penalty": 0, "frequency_penalty": null, "user": "someone", "tools": [],
        "tool_choice": "auto", "functions": null, "response_format": {"type": "text"}, "top_k": -1,
        "min_p": 0, "typical_p": 1, "repetition_penalty": 1, "min_tokens": 0, "ignore_eos": false,
        "stop_token_ids": [], "session_id": null, "overflow": "error", "max_tokens": null,
        "add_generation_prompt": true, "continue_final_message": false, "store": true,
        "metadata": {"a": "b"}, "parallel_tool_calls": true,
    });
    let full = chat(ask("Who?", full)).await;
    assert_eq!(content(&full, 0), content(&plain, 0));
}

/// Starts a server on a directory of the built-in model with additional files.
fn model_with(files: &[(&str, String)]) -> (TempDir, TestServer) {
    let directory = tempfile::tempdir().unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fairy-tales");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(assets.join(file), directory.path().join(file)).unwrap();
    }
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let server = TestServer::with(Setup {
        source: ModelSource::Directory(directory.path().to_owned()),
        ..Setup::default()
    });
    (directory, server)
}

const TURNS: &str = "{% for message in messages %}
    {% if message.role == 'system' and not loop.first %}
        {{ raise_exception('The system speaks first, not after ' ~ messages[loop.index0 - 1].role) }}
    {% endif %}
{{ message.role ~ '>' ~ message.content ~ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
{{- 'assistant>' -}}
{% endif %}";

#[tokio::test]
async fn a_models_own_template_makes_its_prompts() {
    let config = json!({"chat_template": TURNS, "eos_token": {"content": "<|endoftext|>"}});
    let files = [("tokenizer_config.json", config.to_string())];
    let (directory, server) = model_with(&files);
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
    ]);
    let prompt = "system>Be brief.<|endoftext|>\nuser>Who?<|endoftext|>\nassistant>";
    let body = json!({"messages": messages, "max_completion_tokens": 12, "temperature": 0});
    let answer = server.post(PATH, body).await.ok();
    // Special tokens of the template are special.
    assert_eq!(answer["usage"]["prompt_tokens"], server.ids(prompt).len());
    let body = json!({"prompt": prompt, "max_tokens": 12, "temperature": 0});
    let text = server.post("/v1/completions", body).await.ok();
    assert_eq!(content(&answer, 0), text["choices"][0]["text"]);

    // Special tokens in a message are not.
    let question = json!([{"role": "user", "content": "<|endoftext|>"}]);
    let body = json!({"messages": question, "max_completion_tokens": 0});
    let answer = server.post(PATH, body).await.ok();
    let tokenizer = server.tokenizer();
    let count = |text: &str, special| tokenizer.encode(text, special).unwrap().len();
    let expected = count("user><|endoftext|>", false) + count("<|endoftext|>\nassistant>", true);
    assert_eq!(answer["usage"]["prompt_tokens"], expected);

    let late = json!([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]);
    let refused = server.post(PATH, json!({"messages": late})).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.body["error"]["param"], "messages");
    let said = "The system speaks first, not after user";
    assert!(refused.message().contains(said), "{}", refused.message());

    let info = server.get("/info").await.ok();
    let origin = info["model"]["chat_template"].as_str().unwrap();
    assert!(origin.ends_with("tokenizer_config.json"), "{origin}");
    drop(directory);
}

#[tokio::test]
async fn a_template_in_a_file_of_its_own_wins_and_may_take_messages_of_tools() {
    let config = json!({"chat_template": [{"name": "default", "template": TURNS}]});
    let own = "{% for m in messages %}[{{ m.role }}{{ m.tool_call_id }}:{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}]{% endfor %}";
    let (_directory, server) = model_with(&[
        ("tokenizer_config.json", config.to_string()),
        ("chat_template.jinja", own.to_owned()),
    ]);
    let messages = json!([
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "mul"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "42"},
    ]);
    let prompt = r#"[user:6 * 7?][assistant:[{"function": {"name": "mul"}, "id": "a"}]][toola:42]"#;
    let body = json!({"messages": messages, "max_completion_tokens": 0});
    let answer = server.post(PATH, body).await.ok();
    assert_eq!(answer["usage"]["prompt_tokens"], server.ids(prompt).len());
}

#[tokio::test]
async fn a_given_template_wins_over_the_models() {
    let server = TestServer::with(Setup {
        chat_template: Some("{{ messages[-1].content }}{{ undefined.field }}"),
        ..Setup::default()
    });
    let failed = server.post(PATH, ask("a", json!({}))).await;
    assert_eq!(failed.status, 400);
    assert_eq!(failed.body["error"]["param"], "messages");
    assert!(
        failed.message().contains("undefined"),
        "{}",
        failed.message()
    );
    let info = server.get("/info").await.ok();
    assert_eq!(info["model"]["chat_template"], "`chat-template`");
    let plain = SERVER.get("/info").await.ok();
    assert_eq!(plain["model"]["chat_template"], "plain");
}
