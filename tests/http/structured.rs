//! Texts that follow a schema, an expression or a grammar, in both dialects over a real socket.

use std::sync::LazyLock;

use crate::support::TestServer;
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/completions";

fn body(seed: u64, more: Value) -> Value {
    let mut body = json!({"prompt": "The king said:", "max_tokens": 200, "seed": seed});
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    body
}

/// Returns the text of the one choice and its finish reason.
async fn complete(body: Value) -> (String, String) {
    let answer = SERVER.post(PATH, body).await.ok();
    let choice = &answer["choices"][0];
    let string = |name: &str| choice[name].as_str().expect("a string").to_owned();
    (string("text"), string("finish_reason"))
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 10},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["king", "fox"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": false,
    })
}

#[track_caller]
fn assert_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let validator = jsonschema::validator_for(&person()).expect("a schema");
    assert!(validator.is_valid(&value), "{text}");
}

fn named(schema: Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": true}})
}

#[tokio::test]
async fn a_json_object_is_one_when_it_finishes() {
    let (mut finished, mut texts) = (0, Vec::new());
    // Without this bias the strings of this model don't end.
    let likely = |(text, bias): (&str, u8)| (SERVER.ids(text)[0].to_string(), json!(bias));
    let bias: serde_json::Map<String, Value> =
        [("\"", 4), ("}", 30)].map(likely).into_iter().collect();
    for seed in 0..8 {
        let format = json!({"response_format": {"type": "json_object"}, "temperature": 0.7, "logit_bias": bias});
        let (text, reason) = complete(body(seed, format)).await;
        assert!(text.starts_with('{'), "{text}");
        if reason == "stop" {
            finished += 1;
            let value: Value = serde_json::from_str(&text).expect("JSON");
            assert!(value.is_object());
        } else {
            assert_eq!(reason, "length");
        }
        texts.push(text);
    }
    assert!(finished > 4, "{texts:?}");
}

#[tokio::test]
async fn every_spelling_of_a_schema_is_followed() {
    let schema = person();
    let spellings = [
        json!({"response_format": named(schema.clone())}),
        json!({"guided_json": schema}),
        json!({"guided_json": schema.to_string()}),
        json!({"structured_outputs": {"json": schema}}),
    ];
    let mut texts = Vec::new();
    for spelling in spellings {
        for temperature in [0.0, 1.0, 2.0] {
            let mut body = body(5, spelling.clone());
            body["temperature"] = json!(temperature);
            let (text, reason) = complete(body).await;
            assert_eq!(reason, "stop", "{text}");
            assert_person(&text);
            texts.push(text);
        }
    }
    // Different spellings of one request give the same text.
    assert_eq!(texts[..3], texts[3..6]);
    assert_eq!(texts[..3], texts[6..9]);
    assert_eq!(texts[..3], texts[9..]);
}

#[tokio::test]
async fn a_regular_expression_is_matched_from_beginning_to_end() {
    for (n, regex) in ["[A-Z]{3}-[0-9]{2,4}", "^(yes|no), my (king|child)\\.$"]
        .iter()
        .enumerate()
    {
        let (text, reason) = complete(body(n as u64, json!({"guided_regex": regex}))).await;
        assert_eq!(reason, "stop");
        let pattern = json!({"type": "string", "pattern": format!("^({regex})$")});
        let validator = jsonschema::validator_for(&pattern).expect("a schema");
        assert!(validator.is_valid(&json!(text)), "{regex}: {text}");
    }
}

#[tokio::test]
async fn one_of_several_texts_is_chosen_by_the_model() {
    let choices = ["the wolf", "the wolves", "Ünïcödé 🐉", "no\none"];
    let mut seen = std::collections::HashSet::new();
    for seed in 0..24 {
        let fields = json!({"guided_choice": choices, "temperature": 2});
        let (text, reason) = complete(body(seed, fields)).await;
        assert!(choices.contains(&text.as_str()), "{text:?}");
        assert_eq!(reason, "stop");
        seen.insert(text);
    }
    assert!(seen.len() > 1, "{seen:?}");
}

#[tokio::test]
async fn a_context_free_grammar_is_followed() {
    let lark = "start: expr\nexpr: term | term \"+\" expr\nterm: /[0-9]{1,2}/ | \"(\" expr \")\"";
    let (text, _) = complete(body(3, json!({"guided_grammar": lark}))).await;
    assert!(text.chars().all(|c| "0123456789+()".contains(c)), "{text}");
    let list = json!({"structured_outputs": {"grammar": "start: \"a\" \"b\"? \"c\""}});
    let (text, reason) = complete(body(3, list)).await;
    assert!(["ac", "abc"].contains(&text.as_str()));
    assert_eq!(reason, "stop");
}

#[tokio::test]
async fn format_text_and_null_are_as_if_left_out() {
    let plain = complete(body(1, json!({"max_tokens": 12}))).await;
    let nulls = json!({
        "max_tokens": 12, "response_format": {"type": "text"}, "guided_json": null,
        "guided_regex": null, "guided_choice": null, "guided_grammar": null, "structured_outputs": null,
    });
    assert_eq!(complete(body(1, nulls)).await, plain);
    let null = json!({"max_tokens": 12, "response_format": null});
    assert_eq!(complete(body(1, null)).await, plain);
}

#[tokio::test]
async fn a_stream_is_the_same_text() {
    let fields = json!({"response_format": named(person()), "logprobs": 1});
    let whole = SERVER.post(PATH, body(11, fields.clone())).await.ok();
    let mut streamed = body(11, fields);
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = SERVER.stream(PATH, streamed).await;
    let text = events.text_of(0);
    assert_eq!(json!(text), whole["choices"][0]["text"]);
    assert_person(&text);
    assert_eq!(events.finish_reason(0), ["stop"]);
    assert!(events.done);
    let usage = &events.data.last().expect("an event")["usage"];
    assert_eq!(
        usage["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );
    // The last brace is part of the text, and reported.
    let tokens = whole["choices"][0]["logprobs"]["tokens"]
        .as_array()
        .expect("tokens");
    let joined: String = tokens.iter().filter_map(Value::as_str).collect();
    assert_eq!(joined, text);
}

#[tokio::test]
async fn choices_and_prompts_each_follow_the_grammar() {
    let fields = json!({
        "prompt": ["The king said:", "The fox said:"], "n": 3, "response_format": named(person()),
    });
    let answer = SERVER.post(PATH, body(2, fields)).await.ok();
    let choices = answer["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 6);
    for choice in choices {
        assert_person(choice["text"].as_str().expect("a text"));
    }
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    // A choice is the same as alone.
    let alone = complete(body(4, json!({"response_format": named(person())}))).await;
    assert_eq!(json!(alone.0), choices[2]["text"]);
}

#[tokio::test]
async fn the_native_dialect_follows_its_grammars() {
    let generate = async |grammar: Value| {
        let parameters = json!({
            "grammar": grammar, "max_new_tokens": 200, "details": true, "do_sample": true, "seed": 8,
        });
        let body = json!({"inputs": "The king said:", "parameters": parameters});
        let answer = SERVER.post("/generate", body).await.ok();
        assert_eq!(answer["details"]["finish_reason"], "eos_token", "{answer}");
        answer["generated_text"]
            .as_str()
            .expect("a text")
            .to_owned()
    };
    let text = generate(json!({"type": "json", "value": person()})).await;
    assert_person(&text);
    let named = json!({"name": "person", "schema": person()});
    assert_eq!(
        generate(json!({"type": "json_schema", "value": named})).await,
        text
    );
    assert_eq!(
        generate(json!({"type": "json", "value": person().to_string()})).await,
        text
    );
    let text = generate(json!({"type": "regex", "value": "[a-z]{2} [0-9]"})).await;
    assert_eq!(text.len(), 4);
    // Streamed: the last token is part of the text.
    let parameters = json!({
        "grammar": {"type": "json", "value": person()}, "max_new_tokens": 200, "details": true, "seed": 3, "do_sample": true,
    });
    let body = json!({"inputs": "The king said:", "parameters": parameters});
    let events = SERVER.stream("/generate_stream", body).await;
    let last = events.data.last().expect("an event");
    assert_person(last["generated_text"].as_str().expect("the whole text"));
    assert_eq!(json!(events.native_text()), last["generated_text"]);
    assert_eq!(last["details"]["finish_reason"], "eos_token");
}

#[tokio::test]
async fn stop_strings_cut_a_structured_text_as_any_other() {
    let fields = json!({"response_format": named(person()), "stop": ["\"age\""]});
    let (text, reason) = complete(body(1, fields)).await;
    assert!(
        text.starts_with("{\"name\":\"") && text.ends_with(','),
        "{text}"
    );
    assert_eq!(reason, "stop");
    let (text, reason) = complete(body(
        1,
        json!({"response_format": named(person()), "max_tokens": 3}),
    ))
    .await;
    assert!(text.starts_with("{\""), "{text}");
    assert_eq!(reason, "length");
}

#[tokio::test]
async fn requests_beside_it_get_the_same_tokens_as_alone() {
    let plain = |seed| {
        body(
            seed,
            json!({"max_tokens": 40, "logprobs": 2, "response_format": null}),
        )
    };
    let bent = |seed| body(seed, json!({"response_format": named(person())}));
    let mut alone = Vec::new();
    for seed in 20..24 {
        alone.push(SERVER.post(PATH, plain(seed)).await.ok()["choices"].clone());
    }
    let beside = (20..24).map(|seed| async move {
        let (plain, bent) = tokio::join!(SERVER.post(PATH, plain(seed)), complete(bent(seed)));
        assert_person(&bent.0);
        plain.ok()["choices"].clone()
    });
    let beside = futures_util::future::join_all(beside).await;
    assert_eq!(alone, beside);
}

#[tokio::test]
async fn what_can_not_be_followed_is_refused_with_field_and_reason() {
    let cases: [(Value, &str, &str); 17] = [
        (
            json!({"guided_regex": "a("}),
            "guided_regex",
            "unclosed group",
        ),
        (json!({"guided_regex": 3}), "guided_regex", "string"),
        (
            json!({"guided_json": {"type": "array", "uniqueItems": true}}),
            "guided_json",
            "uniqueItems",
        ),
        (json!({"guided_json": "{"}), "guided_json", "not JSON"),
        (json!({"guided_json": 3}), "guided_json", "got 3"),
        (
            json!({"guided_json": {"$ref": "http://127.0.0.1/x"}}),
            "guided_json",
            "127.0.0.1",
        ),
        (
            json!({"guided_choice": []}),
            "guided_choice",
            "list of choices is empty",
        ),
        (json!({"guided_choice": "a"}), "guided_choice", "list"),
        (
            json!({"guided_grammar": "start: nothing"}),
            "guided_grammar",
            "nothing",
        ),
        (
            json!({"response_format": "json"}),
            "response_format",
            "object",
        ),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
            "\"xml\"",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema.schema",
            "is required",
        ),
        (
            json!({"response_format": named(json!({"type": "string", "minLength": 3, "maxLength": 1}))}),
            "response_format.json_schema.schema",
            "minLength",
        ),
        (
            json!({"structured_outputs": {"regex": "["}}),
            "structured_outputs.regex",
            "can't be compiled",
        ),
        (
            json!({"guided_json": {}, "guided_regex": "a"}),
            "guided_regex",
            "`guided_json`",
        ),
        (
            json!({"guided_choice": ["a"], "response_format": {"type": "json_object"}}),
            "guided_choice",
            "`response_format`",
        ),
        (
            json!({"guided_regex": "a".repeat(200_000)}),
            "guided_regex",
            "131072",
        ),
    ];
    for (fields, param, part) in cases {
        let answer = SERVER.post(PATH, body(1, fields)).await;
        let message = answer.message();
        assert_eq!(answer.status, 400, "{param}: {message}");
        assert_eq!(answer.body["error"]["type"], "invalid_request_error");
        assert_eq!(answer.body["error"]["param"], param, "{message}");
        assert!(message.contains(&format!("`{param}`")), "{message}");
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[tokio::test]
async fn what_the_native_dialect_can_not_follow_is_refused_with_field_and_reason() {
    let cases: [(Value, &str, &str); 6] = [
        (
            json!({"type": "regex", "value": "a("}),
            "grammar.value",
            "unclosed group",
        ),
        (
            json!({"type": "regex", "value": ["a"]}),
            "grammar.value",
            "a string",
        ),
        (
            json!({"type": "json", "value": {"type": "array", "uniqueItems": true}}),
            "grammar.value",
            "uniqueItems",
        ),
        (
            json!({"type": "json_schema", "value": {"type": "null"}}),
            "grammar.value",
            "`schema`",
        ),
        (
            json!({"type": "lark", "value": "a"}),
            "grammar.type",
            "\"lark\"",
        ),
        (
            json!({"value": "a"}),
            "parameters.grammar",
            "missing field `type`",
        ),
    ];
    for (grammar, field, part) in cases {
        let body = json!({"inputs": "A", "parameters": {"grammar": grammar}});
        let answer = SERVER.post("/generate", body).await;
        let message = answer.message();
        assert_eq!(answer.status, 422, "{message}");
        assert_eq!(answer.body["error_type"], "validation");
        assert!(message.contains(&format!("`{field}`")), "{message}");
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[tokio::test]
async fn expressions_have_a_length_they_can_not_exceed() {
    let long = "a".repeat(9_000);
    let schema = json!({
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": long}},
        "patternProperties": {long.clone(): {"type": "null"}},
    });
    let cases = [
        (
            json!({"guided_regex": "a".repeat(16_385)}),
            "guided_regex",
            16_385,
        ),
        (
            json!({"guided_grammar": "#".repeat(16_385)}),
            "guided_grammar",
            16_385,
        ),
        (json!({"guided_json": schema}), "guided_json", 18_000),
    ];
    for (fields, field, bytes) in cases {
        let answer = SERVER.post(PATH, body(1, fields)).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(
            answer.message(),
            format!(
                "`{field}` can have at most 16384 bytes of regular expressions or rules, got {bytes}"
            )
        );
    }
}

#[tokio::test]
async fn info_tells_of_it() {
    let info = SERVER.get("/info").await.ok();
    assert_eq!(info["limits"]["max_grammar_bytes"], 131_072);
    let features = info["features"].as_array().expect("features");
    assert!(features.contains(&json!("structured-output")));
}
