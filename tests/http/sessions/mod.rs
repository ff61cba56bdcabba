//! Sessions over a real socket: what every endpoint does and refuses, in both dialects, and over
//! every place where sessions can be.

#![allow(clippy::duplicate_mod, reason = "the same tests over every place")]

mod caches;
mod durable;
mod limits;
mod places;

/// The tests of one server, over one place.
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

            /// Puts a server's sessions there.
            fn there(setup: &mut Setup) {
                Place::$place.prepare(setup);
            }

            /// A server with its sessions there.
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

/// A prompt of `n` tokens that no other `salt` gives.
fn prompt(n: usize, salt: usize) -> Vec<usize> {
    (0..n).map(|i| (i * 37 + salt * 1009 + 11) % 4000).collect()
}

/// A greedy turn in OpenAI's dialect that tells of log-probabilities.
fn turn(session: &str, prompt: &[usize], max_tokens: usize) -> Value {
    let mut body = fresh(prompt, max_tokens);
    body["session_id"] = json!(session);
    body
}

/// The same without a session.
fn fresh(prompt: &[usize], max_tokens: usize) -> Value {
    json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 3,
        "ignore_eos": true,
    })
}

/// A greedy turn in the native dialect.
fn native(session: &str, inputs: &str, max_new_tokens: usize) -> Value {
    json!({
        "inputs": inputs, "session_id": session,
        "parameters": {"max_new_tokens": max_new_tokens, "details": true, "do_sample": false},
    })
}

/// A body with more fields.
fn with(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("fields are an object, not {more}");
    };
    body.as_object_mut().expect("a body").extend(more);
    body
}

/// All that a completion tells of its text, bit for bit: text, tokens, log-probabilities.
#[track_caller]
fn told(answer: Answer) -> Value {
    let mut choice = answer.ok()["choices"][0].clone();
    // Where in the text of all prompts: a session's own prompt is only the last.
    choice["logprobs"]["text_offset"] = Value::Null;
    // A random one where none was given.
    choice["seed"] = Value::Null;
    choice
}

/// Asserts status, and OpenAI's code or TGI's type.
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
