//! Sessions over a real socket: every endpoint and its errors, in both dialects, and with every session
//! store.

#![allow(clippy::duplicate_mod, reason = "the same tests over every place")]

mod caches;
mod durable;
mod limits;
mod places;

/// Defines the tests of one server for each store.
macro_rules! over {
    ($($name:ident: $place:ident,)*) => {$(
        #[path = "."]
        mod $name {
            mod busy;
            mod fork;
            mod tenants;
            mod turns;

            use crate::sessions::places::Place;
            use crate::support::{Setup, TestServer};

            /// Configures the store of a server.
            fn there(setup: &mut Setup) {
                Place::$place.prepare(setup);
            }

            /// Starts a server with this store.
            fn start() -> TestServer {
                let mut setup = Setup::default();
                there(&mut setup);
                TestServer::with(setup)
            }
        }
    )*};
}

over! {
    memory: Memory,
    directory: Directory,
    database: Database,
}

use crate::support::Answer;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const GENERATE: &str = "/generate";

/// Returns a prompt of `n` tokens that differs for every `salt`.
fn prompt(n: usize, salt: usize) -> Vec<usize> {
    (0..n).map(|i| (i * 37 + salt * 1009 + 11) % 4000).collect()
}

/// Returns a greedy turn in OpenAI's dialect with log-probabilities.
fn turn(session: &str, prompt: &[usize], max_tokens: usize) -> Value {
    let mut body = fresh(prompt, max_tokens);
    body["session_id"] = json!(session);
    body
}

/// Returns the same request without a session.
fn fresh(prompt: &[usize], max_tokens: usize) -> Value {
    json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 3,
        "ignore_eos": true,
    })
}

/// Returns a greedy turn in the native dialect.
fn native(session: &str, inputs: &str, max_new_tokens: usize) -> Value {
    json!({
        "inputs": inputs, "session_id": session,
        "parameters": {"max_new_tokens": max_new_tokens, "details": true, "do_sample": false},
    })
}

/// Returns a body with more fields.
fn with(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("fields are an object, not {more}");
    };
    body.as_object_mut().expect("a body").extend(more);
    body
}

/// Returns all that a completion reports about its text, bit for bit: text, tokens, log-probabilities.
#[track_caller]
fn told(answer: Answer) -> Value {
    let mut choice = answer.ok()["choices"][0].clone();
    // Offsets differ: on a session, the prompt is only the last part of the text.
    choice["logprobs"]["text_offset"] = Value::Null;
    // A random seed if none was given.
    choice["seed"] = Value::Null;
    choice
}

/// Asserts the status, and OpenAI's code or TGI's type.
#[track_caller]
fn is_refused(answer: &Answer, status: u16, name: &str, words: &[&str]) {
    assert_eq!(answer.status, status, "{}", answer.body);
    let told = answer.body["error_type"]
        .as_str()
        .or(answer.body["error"]["code"].as_str());
    assert_eq!(told.unwrap_or_default(), name, "{}", answer.body);
    for word in words {
        let message = answer.message();
        assert!(message.contains(word), "{word:?} in {message:?}");
    }
}
