//! Kills, outages, second servers and suspended ones: none of them may have a visible effect on sessions in
//! PostgreSQL.
//!
//! | module | purpose |
//! |---|---|
//! | [`kills`] | servers that are killed under load |
//! | [`outage`] | a database that crashes under load, is down, or hangs |
//! | [`shared`] | two servers on one session, and one that is suspended for longer than its lease |
//! | [`doubt`] | commits whose answers are lost |
//! | [`proxy`] | a network that can be cut |
//! | [`tls`] | certificates |
//! | [`start`] | schemas, passwords, URLs, two models on one database |
//!
//! The load is that of `tests/kill`. If PostgreSQL is not installed, these tests are skipped.

mod doubt;
mod kills;
mod outage;
mod proxy;
mod shared;
mod start;
mod tls;

use crate::support::Answer;
use serde_json::{Value, json};

/// Returns a greedy turn in the native dialect.
fn turn(session: &str, inputs: &str, max_new_tokens: usize) -> Value {
    json!({
        "inputs": inputs, "session_id": session,
        "parameters": {"max_new_tokens": max_new_tokens, "do_sample": false, "details": true},
    })
}

/// Asserts that a request was refused because the database is unavailable, with a retry hint.
#[track_caller]
fn is_away(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.body);
    let seconds: u64 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..60).contains(&seconds), "{seconds}");
    let message = answer.message();
    assert!(
        message.contains("session database is unavailable"),
        "{message}"
    );
}
