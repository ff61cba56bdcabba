//! Every field with a wrong value, in both dialects: refused with a message that names the field, the value
//! and the limit.

use std::sync::LazyLock;

use crate::support::TestServer;
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

/// Wrong fields of completions and chat completions: the fields, the error's `param`, and parts of its
/// message.
const COMPLETIONS_AND_CHAT: &str = r#"
{"model": 3}                                             | model                    | `model` | 3 | string
{"max_tokens": -1}                                       | max_tokens               | `max_tokens` | -1 | 0
{"max_tokens": 1.5}                                      | max_tokens               | `max_tokens` | 1.5 | integer
{"max_tokens": "9"}                                      | max_tokens               | `max_tokens` | "9" | integer
{"max_tokens": 1e30}                                     | max_tokens               | `max_tokens` | integer
{"max_tokens": 99999999}                                 | max_tokens               | `max_tokens` | 99999999 | 1048576
{"temperature": 2.1}                                     | temperature              | `temperature` | 2.1 | 0 to 2
{"temperature": -0.1}                                    | temperature              | `temperature` | -0.1 | 0 to 2
{"temperature": "hot"}                                   | temperature              | `temperature` | "hot" | a number
{"top_p": 0}                                             | top_p                    | `top_p` | above 0 | got 0
{"top_p": 1.01}                                          | top_p                    | `top_p` | 1.01 | at most 1
{"n": 0}                                                 | n                        | `n` | got 0 | 1 to 128
{"n": 129}                                               | n                        | `n` | 129 | 1 to 128
{"stream": "yes"}                                        | stream                   | `stream` | "yes" | boolean
{"stream_options": {"include_usage": true}}              | stream_options           | `stream_options` | stream
{"stream": true, "stream_options": [true]}               | stream_options           | `stream_options` | object
{"stream": true, "stream_options": {"include_usage": 1}} | stream_options.include_usage | 1 | boolean
{"truncate_prompt_tokens": 0}                            | truncate_prompt_tokens   | `truncate_prompt_tokens` | got 0 | 1
{"truncate_prompt_tokens": -2}                           | truncate_prompt_tokens   | `truncate_prompt_tokens` | -2 | 1
{"truncate_prompt_tokens": "all"}                        | truncate_prompt_tokens   | `truncate_prompt_tokens` | "all" | integer
{"stop": 3}                                              | stop                     | `stop` | 3 | string
{"stop": ""}                                             | stop                     | `stop` | empty
{"stop": ["a", 3]}                                       | stop[1]                  | `stop[1]` | 3 | string
{"presence_penalty": 2.5}                                | presence_penalty         | `presence_penalty` | 2.5 | -2 to 2
{"frequency_penalty": -3}                                | frequency_penalty        | `frequency_penalty` | -3 | -2 to 2
{"logit_bias": {"5": 101}}                               | logit_bias.5             | `logit_bias.5` | 101 | -100 to 100
{"logit_bias": {"5": "x"}}                               | logit_bias.5             | `logit_bias.5` | "x" | a number
{"logit_bias": {"five": 1}}                              | logit_bias               | `logit_bias` | "five" | token id
{"logit_bias": {"8192": 1}}                              | logit_bias               | `logit_bias` | 8192 | 8191
{"logit_bias": 3}                                        | logit_bias               | `logit_bias` | 3 | map
{"seed": 9223372036854775808}                            | seed                     | `seed` | 9223372036854775808 | integer
{"seed": 1.5}                                            | seed                     | `seed` | 1.5 | integer
{"user": 7}                                              | user                     | `user` | 7 | string
{"top_k": -2}                                            | top_k                    | `top_k` | -2
{"min_p": 1.5}                                           | min_p                    | `min_p` | 1.5 | 0 to 1
{"typical_p": 0}                                         | typical_p                | `typical_p` | above 0
{"repetition_penalty": 0}                                | repetition_penalty       | `repetition_penalty` | above 0
{"repetition_penalty": 101}                              | repetition_penalty       | `repetition_penalty` | 101 | 100
{"max_tokens": 3, "min_tokens": 4}                       | min_tokens               | `min_tokens` | got 4 | `max_tokens` (3)
{"min_tokens": -1}                                       | min_tokens               | `min_tokens` | -1
{"ignore_eos": "no"}                                     | ignore_eos               | `ignore_eos` | "no" | boolean
{"stop_token_ids": [8192]}                               | stop_token_ids           | `stop_token_ids` | 8192 | 8191
{"stop_token_ids": [-1]}                                 | stop_token_ids[0]        | `stop_token_ids[0]` | -1 | integer
{"response_format": {"type": "json"}}                    | response_format.type     | `response_format.type` | "json" | "json_object"
{"response_format": {}}                                  | response_format          | missing field `type`
{"guided_regex": ["a"]}                                  | guided_regex             | `guided_regex` | string
{"guided_choice": [1]}                                   | guided_choice[0]         | `guided_choice[0]` | 1 | string
{"structured_outputs": {"json": {}, "regex": "a"}}       | structured_outputs.regex | `structured_outputs.json`
{"overflow": "wrap"}                                     | overflow                 | `overflow` | `wrap` | `slide`
{"overflow": 1}                                          | overflow                 | `overflow` | 1 | string
{"stream": 1}                                            | stream                   | `stream` | 1 | boolean
{"response_format": {"type": "xml"}}                     | response_format.type     | xml | json_schema
{"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}} | response_format.json_schema.schema | strin
{"guided_regex": "("}                                    | guided_regex             | `guided_regex`
{"guided_regex": "a", "guided_choice": ["b"]}            | guided_choice            | `guided_regex`
{"response_format": "json"}                              | response_format          | `response_format` | object
"#;

/// Wrong fields of completions alone, in the same columns.
const COMPLETIONS: &str = r#"
{"prompt": 3}                             | prompt          | `prompt` | 3 | string
{"prompt": []}                            | prompt          | `prompt` | at least one
{"prompt": [[]]}                          | prompt          | `prompt` | empty
{"prompt": ["a", 1]}                      | prompt          | `prompt | mixes
{"prompt": [8192]}                        | prompt          | `prompt` | 8192 | 8191
{"prompt": [-1]}                          | prompt[0]       | `prompt[0]` | -1 | token id
{"best_of": 21}                           | best_of         | `best_of` | 21 | 20
{"n": 3, "best_of": 2}                    | best_of         | `best_of` | got 2 | `n` (3)
{"best_of": 2, "stream": true}            | best_of         | `best_of` | stream
{"prompt": ["a", "b"], "n": 65}           | n               | 130 | 128
{"logprobs": 21}                          | logprobs        | `logprobs` | 21 | 0 to 20
{"logprobs": -1}                          | logprobs        | `logprobs` | -1 | 0 to 20
{"logprobs": true}                        | logprobs        | `logprobs` | true | integer
{"prompt_logprobs": 21}                   | prompt_logprobs | `prompt_logprobs` | 21 | 0 to 20
{"prompt_logprobs": -1}                   | prompt_logprobs | `prompt_logprobs` | -1 | 0 to 20
{"prompt_logprobs": true}                 | prompt_logprobs | `prompt_logprobs` | true | integer
{"echo": 1}                               | echo            | `echo` | 1 | boolean
{"suffix": "end"}                         | suffix          | `suffix` | "end" | not supported
{"session_id": "a b"}                     | session_id      | `session_id` | a b | A-Z
{"session_id": "s", "n": 2}               | n               | session | 2
{"session_id": "s", "prompt": ["a", "b"]} | prompt          | session | 2
"#;

/// Wrong fields of chat completions alone, in the same columns.
const CHAT: &str = r#"
{"messages": null}                                      | messages                 | `messages` | at least one
{"messages": []}                                        | messages                 | `messages` | at least one
{"messages": "Hi"}                                      | messages                 | `messages` | "Hi" | list
{"messages": ["Hi"]}                                    | messages[0]              | `messages[0]` | "Hi" | object
{"messages": [["user", "Hi"]]}                          | messages[0]              | `messages[0]` | object
{"messages": [{"content": "Hi"}]}                       | messages[0]              | role
{"messages": [{"role": "wizard", "content": "Hi"}]}     | messages[0].role         | `messages[0].role` | wizard | assistant
{"messages": [{"role": 1, "content": "Hi"}]}            | messages[0].role         | `messages[0].role` | 1 | string
{"messages": [{"role": "user"}]}                        | messages[0].content      | `messages[0].content` | missing
{"messages": [{"role": "assistant", "content": null}]}  | messages[0].content      | `messages[0].content` | missing
{"messages": [{"role": "user", "content": 3}]}          | messages[0].content      | `messages[0].content` | 3 | a string or a list of parts
{"messages": [{"role": "user", "content": []}]}         | messages[0].content      | `messages[0].content` | at least one
{"messages": [{"role": "user", "content": ["Hi"]}]}     | messages[0].content[0]   | `messages[0].content[0]` | "Hi" | object
{"messages": [{"role": "user", "content": [{"text": "Hi"}]}]} | messages[0].content[0]   | type
{"messages": [{"role": "user", "content": [{"type": "text"}]}]} | messages[0].content[0].text | missing
{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}]}]} | messages[1].content[1].type | "image_url" | "text"
{"messages": [{"role": "user", "content": "Hi", "name": 3}]} | messages[0].name         | `messages[0].name` | 3 | string
{"messages": [{"role": "tool", "content": "42", "tool_call_id": "a"}]} | messages                 | tools
{"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]} | messages                 | tools
{"max_completion_tokens": -1}                           | max_completion_tokens    | `max_completion_tokens` | -1 | 0
{"max_completion_tokens": 99999999}                     | max_completion_tokens    | `max_completion_tokens` | 99999999 | 1048576
{"max_completion_tokens": null, "max_tokens": 99999999} | max_tokens               | `max_tokens` | 99999999 | 1048576
{"max_completion_tokens": 5, "max_tokens": 6}           | max_tokens               | `max_tokens` | 5 | 6
{"logprobs": 1}                                         | logprobs                 | `logprobs` | 1 | boolean
{"top_logprobs": 2}                                     | top_logprobs             | `top_logprobs` | `logprobs: true`
{"logprobs": true, "top_logprobs": 21}                  | top_logprobs             | `top_logprobs` | 21 | 0 to 20
{"tools": [{"type": "function"}]}                       | tools                    | `tools` | not supported
{"tools": 3}                                            | tools                    | `tools` | 3
{"functions": [{"name": "f"}]}                          | functions                | `functions` | not supported
{"tool_choice": "required"}                             | tool_choice              | `tool_choice` | required | not supported
{"tool_choice": {"type": "function"}}                   | tool_choice              | `tool_choice` | not supported
{"add_generation_prompt": "no"}                         | add_generation_prompt    | `add_generation_prompt` | "no" | boolean
{"add_generation_prompt": true, "continue_final_message": true} | continue_final_message   | `continue_final_message | `add_generation_prompt
{"session_id": "s"}                                     | session_id               | `session_id` | "s" | not supported
{"max_completion_tokens": 12, "min_tokens": 13}         | min_tokens               | `min_tokens` | got 13 | `max_completion_tokens` (12)
"#;

/// Wrong fields of requests for embeddings, in the same columns.
const EMBEDDINGS: &str = r#"
{"model": 3}                                   | model               | `model` | 3 | string
{"input": null}                                | input               | `input` | null | string
{"input": ""}                                  | input               | `input` | empty
{"input": ["a", ""]}                           | input[1]            | `input[1]` | empty
{"input": []}                                  | input               | `input` | at least one
{"input": [[]]}                                | input[0]            | `input[0]` | empty
{"input": [[1], []]}                           | input[1]            | `input[1]` | empty
{"input": ["a", 1]}                            | input               | `input | mixes
{"input": [8192]}                              | input               | `input` | 8192 | 8191
{"input": [[1], [2, 8192]]}                    | input[1]            | `input[1]` | 8192 | 8191
{"input": [-1]}                                | input[0]            | `input[0]` | -1 | token id
{"input": [[1, "a"]]}                          | input[0][1]         | `input[0][1]` | "a" | integer
{"encoding_format": "hex"}                     | encoding_format     | `encoding_format` | `hex` | `float` | `base64`
{"encoding_format": 3}                         | encoding_format     | `encoding_format` | 3 | string
{"dimensions": 0}                              | dimensions          | `dimensions` | got 0 | 320
{"dimensions": 128}                            | dimensions          | `dimensions` | 128 | 320
{"dimensions": -320}                           | dimensions          | `dimensions` | -320 | 320
{"dimensions": 1.5}                            | dimensions          | `dimensions` | 1.5 | integer
{"user": 7}                                    | user                | `user` | 7 | string
"#;

/// Wrong parameters of native requests: the parameters, and parts of the error.
const NATIVE: &str = r#"
{"max_new_tokens": 0}           | `max_new_tokens` | got 0 | 1
{"max_new_tokens": "9"}         | `parameters.max_new_tokens` | "9" | integer
{"do_sample": 1}                | `parameters.do_sample` | 1 | boolean
{"temperature": 0}              | `temperature` | above 0
{"temperature": 101}            | `temperature` | 101 | 100
{"top_k": 0}                    | `top_k` | got 0 | 1
{"top_p": 0}                    | `top_p` | above 0
{"top_p": 1.5}                  | `top_p` | 1.5
{"typical_p": -1}               | `typical_p` | -1
{"repetition_penalty": 0}       | `repetition_penalty` | above 0
{"frequency_penalty": 3}        | `frequency_penalty` | 3 | -2 to 2
{"seed": 0}                     | `seed` | got 0 | from 1
{"seed": -1}                    | `parameters.seed` | -1 | integer
{"seed": 1.5}                   | `parameters.seed` | 1.5 | integer
{"seed": 18446744073709551616}  | `parameters.seed` | integer
{"stop": [""]}                  | `stop` | empty
{"stop": 5}                     | `parameters.stop` | 5 | string
{"best_of": 0}                  | `best_of` | got 0 | 1 to 20
{"best_of": 2}                  | `best_of` | 2 | sampling
{"details": "all"}              | `parameters.details` | "all" | boolean
{"decoder_input_details": 1}    | `parameters.decoder_input_details` | 1 | boolean
{"return_full_text": 1}         | `parameters.return_full_text` | 1 | boolean
{"truncate": 0}                 | `truncate` | got 0 | 1
{"top_n_tokens": 0}             | `top_n_tokens` | got 0 | 1 to 20
{"top_n_tokens": 21}            | `top_n_tokens` | 21 | 1 to 20
{"watermark": true}             | `watermark` | not supported
{"grammar": {"type": "json"}}   | `grammar.value` | a JSON schema
{"grammar": "a"}                | `parameters.grammar` | object
{"grammar": {"type": 3}}        | `parameters.grammar.type` | 3 | string
"#;

/// Returns the lines of a table: JSON, then columns.
fn rows(table: &str) -> impl Iterator<Item = (Value, Vec<&str>)> {
    table.trim().lines().map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let fields = columns.next().expect("fields");
        let fields = serde_json::from_str(fields).expect("fields are JSON");
        (fields, columns.collect())
    })
}

#[tokio::test]
async fn every_wrong_field_of_completions_and_chat_completions_is_refused() {
    let long = json!({"stop": ["x".repeat(1025)]});
    let many = json!({"stop": vec!["a"; 17]});
    let computed = [
        (long, vec!["stop", "`stop`", "1025", "1024"]),
        (many, vec!["stop", "`stop`", "17", "16"]),
    ];
    let shared: Vec<_> = rows(COMPLETIONS_AND_CHAT).chain(computed).collect();
    let messages = json!([{"role": "user", "content": "A"}]);
    for (path, right, own) in [
        ("/v1/completions", json!({"prompt": "A"}), COMPLETIONS),
        ("/v1/chat/completions", json!({"messages": messages}), CHAT),
    ] {
        for (fields, columns) in shared.iter().cloned().chain(rows(own)) {
            refused_under_v1(path, right.clone(), &fields, &columns).await;
        }
        let mut other = right;
        other["model"] = json!("gpt-4");
        let unknown = SERVER.post(path, other).await;
        assert_eq!(unknown.status, 404);
        assert_eq!(unknown.body["error"]["code"], "model_not_found");
    }
}

#[tokio::test]
async fn every_wrong_field_of_a_request_for_embeddings_is_refused() {
    for (fields, columns) in rows(EMBEDDINGS) {
        refused_under_v1("/v1/embeddings", json!({"input": "A"}), &fields, &columns).await;
    }
    let missing = SERVER.post("/v1/embeddings", json!({})).await;
    assert_eq!(missing.status, 400);
    assert_eq!(missing.body["error"]["param"], "input");
    let other = json!({"input": "A", "model": "gpt-4"});
    let other = SERVER.post("/v1/embeddings", other).await;
    assert_eq!(other.status, 404);
    assert_eq!(other.body["error"]["code"], "model_not_found");
}

/// Asserts that `fields` make a valid request invalid; the first column is the error's `param`, the others
/// are parts of its message.
async fn refused_under_v1(path: &str, mut body: Value, fields: &Value, columns: &[&str]) {
    let (param, parts) = columns.split_first().unwrap();
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    let answer = SERVER.post(path, body).await;
    assert_eq!(answer.status, 400, "{fields}: {}", answer.body);
    let error = &answer.body["error"];
    assert_eq!(error["type"], "invalid_request_error", "{fields}");
    assert_eq!(error["param"], *param, "{fields}: {}", answer.message());
    assert!(error.get("code").is_some(), "{fields}");
    for part in parts {
        let message = answer.message();
        assert!(
            message.contains(part),
            "{fields}: {message:?} lacks {part:?}"
        );
    }
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
    for (parameters, parts) in rows(NATIVE) {
        let body = json!({"inputs": "A", "parameters": parameters});
        refused("/generate", body, &parts).await;
    }
}

#[tokio::test]
async fn every_wrong_field_around_the_parameters_is_refused() {
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
            &["`decoder_input_details", "stream"],
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
            json!({"tokens": [1, 8192]}),
            &["`tokens[1]`", "8192", "8191"],
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
    // Not an object: a wrong type, not broken JSON.
    let answer = SERVER.post_text("/generate", "[1]".to_owned()).await;
    assert_eq!(answer.status, 422);
}
