//! Forks and rewinds: two ways to continue from an earlier point.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::TestServer;
use crate::support::caller::Caller;
use crate::sessions::{COMPLETIONS, fresh, is_refused, prompt, told, turn, with};

static SERVER: LazyLock<TestServer> = LazyLock::new(super::start);

/// Creates a session of 50 prompt tokens and 23 generated ones. Returns its history.
async fn told_so_far(caller: &Caller, id: &str) -> Vec<usize> {
    caller
        .post(COMPLETIONS, turn(id, &prompt(50, 9), 23))
        .await
        .ok();
    history(caller, id).await
}

async fn history(caller: &Caller, id: &str) -> Vec<usize> {
    let ids = caller.history(id).await.expect("a session");
    ids.into_iter().map(|id| id as usize).collect()
}

/// Asserts that turns on this session equal a prompt of `history`, bit for bit: greedy and sampled, with and
/// without a prompt of their own.
async fn goes_on_as(caller: &Caller, id: &str, history: &[usize], stranger: &'static str) {
    let mut history = history.to_vec();
    for (n, own) in [vec![], prompt(5, 3), prompt(30, 4)]
        .into_iter()
        .enumerate()
    {
        let more = if n == 1 {
            json!({"temperature": 1.1, "seed": 3})
        } else {
            json!({})
        };
        let mut body = with(turn(id, &own, 20), more.clone());
        if own.is_empty() {
            body["prompt"] = Value::Null;
        }
        let continued = told(caller.post(COMPLETIONS, body).await);
        history.extend(own);
        let whole = with(fresh(&history, 20), more);
        // The key is used only here, so only the previous turn is cached.
        let cold = caller.with_key(stranger).post(COMPLETIONS, whole).await;
        assert_eq!(continued, told(cold), "turn {n} on {id}");
        history = self::history(caller, id).await;
    }
}

#[tokio::test]
async fn a_fork_goes_on_from_anywhere_as_a_prompt_of_the_same_tokens() {
    let caller = SERVER.caller();
    let tokens = told_so_far(&caller, "source").await;
    for (at, name, stranger) in [
        (1, "at-1", "f1"),
        (16, "at-16", "f16"),
        (21, "at-21", "f21"),
        (47, "at-47", "f47"),
        (60, "at-60", "f60"),
        (73, "at-73", "f73"),
    ] {
        let made = caller
            .fork("source", json!({"id": name, "at": at}))
            .await
            .created();
        assert_eq!(
            (
                &made["id"],
                &made["object"],
                &made["token_count"],
                &made["busy"]
            ),
            (&json!(name), &json!("session"), &json!(at), &json!(false))
        );
        assert_eq!(history(&caller, name).await, tokens[..at]);
        goes_on_as(&caller, name, &tokens[..at], stranger).await;
    }
    assert_eq!(
        history(&caller, "source").await,
        tokens,
        "the source is as it was"
    );
    goes_on_as(&caller, "source", &tokens, "of source").await;
}

#[tokio::test]
async fn a_fork_is_of_the_whole_history_unless_it_says_where() {
    let caller = SERVER.caller();
    let tokens = told_so_far(&caller, "whole").await;
    let made = caller.fork("whole", json!({"id": "copy"})).await.created();
    assert_eq!(made["token_count"], 73);
    let made = caller
        .fork("copy", json!({"id": "copy-2", "at": null}))
        .await
        .created();
    assert_eq!(made["token_count"], 73);
    // The copy uses the cached blocks of the original: whole blocks of the 72 computed tokens.
    assert_eq!(made["cached_tokens"], 64);
    assert_eq!(made["kv_resident"], true);
    caller.delete("/v1/sessions/whole").await.ok();
    caller.delete("/v1/sessions/copy").await.ok();
    assert_eq!(history(&caller, "copy-2").await, tokens);
    goes_on_as(&caller, "copy-2", &tokens, "of copy-2").await;
}

#[tokio::test]
async fn a_fork_tells_where_it_was_forked_whatever_follows() {
    let caller = SERVER.caller();
    told_so_far(&caller, "root").await;
    assert_eq!(caller.session("root").await.ok()["forked_from"], Value::Null);
    let first = caller.fork("root", json!({"id": "branch", "at": 21})).await;
    let expected = json!({"id": "root", "at": 21});
    assert_eq!(first.created()["forked_from"], expected);
    let whole = caller.fork("branch", json!({"id": "twig"})).await.created();
    assert_eq!(whole["forked_from"], json!({"id": "branch", "at": 21}));
    // Turns, rewinds and the end of the other session change nothing.
    let answer = caller.post(COMPLETIONS, turn("branch", &prompt(5, 3), 4)).await;
    answer.ok();
    let rewound = caller.rewind("branch", json!({"tokens": 20})).await.ok();
    assert_eq!(rewound["forked_from"], expected);
    caller.delete("/v1/sessions/root").await.ok();
    assert_eq!(caller.session("branch").await.ok()["forked_from"], expected);
    let list = caller.get("/v1/sessions").await.ok();
    let listed = list["data"].as_array().expect("sessions").iter();
    let of = |name: &str| {
        let mut found = listed.clone().filter(|session| session["id"] == name);
        found.next().expect("it is listed")["forked_from"].clone()
    };
    assert_eq!(of("branch"), expected);
    assert_eq!(of("twig"), json!({"id": "branch", "at": 21}));
    // Another session of the same name has no origin, or its own.
    caller.delete("/v1/sessions/branch").await.ok();
    told_so_far(&caller, "branch").await;
    assert_eq!(caller.session("branch").await.ok()["forked_from"], Value::Null);
    caller.delete("/v1/sessions/branch").await.ok();
    let again = caller.fork("twig", json!({"id": "branch", "at": 3})).await;
    assert_eq!(again.created()["forked_from"], json!({"id": "twig", "at": 3}));
}

#[tokio::test]
async fn forks_compute_nothing_twice() {
    let caller = SERVER.caller();
    told_so_far(&caller, "shared").await;
    for (n, (name, at)) in [("one", 72), ("two", 72), ("three", 37)]
        .into_iter()
        .enumerate()
    {
        caller
            .fork("shared", json!({"id": name, "at": at}))
            .await
            .created();
        let answer = caller
            .post(COMPLETIONS, turn(name, &prompt(4, 20 + n), 1))
            .await
            .ok();
        let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
        assert_eq!(*cached, at, "{name}");
    }
}

#[tokio::test]
async fn a_rewound_session_goes_on_as_a_prompt_of_what_is_left() {
    let caller = SERVER.caller();
    let tokens = told_so_far(&caller, "back").await;
    let mut left = tokens.len();
    for (n, stranger) in [(0, "r0"), (1, "r1"), (25, "r25"), (15, "r15")] {
        left -= n;
        let after = caller.rewind("back", json!({"tokens": n})).await.ok();
        assert_eq!(
            (&after["id"], &after["object"], &after["token_count"]),
            (&json!("back"), &json!("session"), &json!(left))
        );
        assert_eq!(history(&caller, "back").await, tokens[..left]);
        let copy = format!("back-{n}");
        caller.fork("back", json!({"id": copy})).await.created();
        goes_on_as(&caller, &copy, &tokens[..left], stranger).await;
    }
    goes_on_as(&caller, "back", &tokens[..left], "of back").await;
}

#[tokio::test]
async fn a_rewound_turn_can_be_tried_again_with_another_seed() {
    let caller = SERVER.caller();
    let tokens = told_so_far(&caller, "again").await;
    let drawn = |seed: u64| {
        with(
            turn("again", &[5, 6], 12),
            json!({"temperature": 1, "seed": seed}),
        )
    };
    let mut told_of = Vec::new();
    for seed in [1, 2, 1] {
        told_of.push(told(caller.post(COMPLETIONS, drawn(seed)).await));
        let after = caller.rewind("again", json!({"tokens": 14})).await.ok();
        assert_eq!(after["token_count"], tokens.len());
    }
    assert_eq!(told_of[0], told_of[2]);
    assert_ne!(told_of[0], told_of[1]);
}

#[tokio::test]
async fn what_can_not_be_forked_is_refused() {
    let caller = SERVER.caller();
    told_so_far(&caller, "there").await;
    caller.fork("there", json!({"id": "taken"})).await.created();
    let is_invalid = |body: Value, words: &'static [&'static str]| {
        let caller = caller.clone();
        async move {
            let answer = caller.fork("there", body).await;
            assert_eq!(answer.status, 400, "{}", answer.body);
            assert_eq!(answer.body["error"]["type"], "invalid_request_error");
            for word in words {
                assert!(
                    answer.message().contains(word),
                    "{word} in {}",
                    answer.message()
                );
            }
        }
    };
    is_invalid(json!({"id": "f", "at": 74}), &["`at`", "74", "73"]).await;
    is_invalid(json!({"id": "f", "at": -1}), &["`at`", "-1"]).await;
    is_invalid(json!({"id": "f", "at": "all"}), &["`at`"]).await;
    is_invalid(json!({"id": "a b"}), &["`id`", "a b"]).await;
    is_invalid(json!({"id": ""}), &["`id`"]).await;
    is_invalid(json!({}), &["`id`"]).await;
    assert_eq!(caller.session("f").await.status, 404);
    let absent = caller.fork("absent", json!({"id": "f"})).await;
    is_refused(&absent, 404, "not_found", &["\"absent\""]);
    for name in ["taken", "there"] {
        let taken = caller.fork("there", json!({"id": name})).await;
        assert_eq!(taken.status, 409, "{}", taken.body);
        assert!(taken.message().contains(name), "{}", taken.body);
        assert_eq!(history(&caller, name).await.len(), 73);
    }
    let bad_path = caller.fork("a%20b", json!({"id": "f"})).await;
    assert_eq!(bad_path.status, 400);
    let not_json = crate::support::client()
        .post(SERVER.url("/v1/sessions/there/fork"))
        .body("{");
    assert_eq!(not_json.send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn what_can_not_be_rewound_is_refused() {
    let caller = SERVER.caller();
    told_so_far(&caller, "short").await;
    for (body, words) in [
        (json!({"tokens": 74}), &["`tokens`", "74", "73"][..]),
        (json!({"tokens": -1}), &["`tokens`", "-1"]),
        (json!({"tokens": 1.5}), &["`tokens`"]),
        (json!({}), &["`tokens`"]),
    ] {
        let answer = caller.rewind("short", body).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        for word in words {
            assert!(
                answer.message().contains(word),
                "{word} in {}",
                answer.message()
            );
        }
    }
    assert_eq!(history(&caller, "short").await.len(), 73);
    let absent = caller.rewind("nowhere", json!({"tokens": 1})).await;
    is_refused(&absent, 404, "not_found", &["\"nowhere\""]);
}

/// A rewind to zero leaves a session with an empty history.
#[tokio::test]
async fn a_session_can_be_rewound_to_its_beginning() {
    let caller = SERVER.caller();
    told_so_far(&caller, "all").await;
    let after = caller.rewind("all", json!({"tokens": 73})).await.ok();
    assert_eq!(after["token_count"], 0);
    assert_eq!(history(&caller, "all").await, Vec::<usize>::new());
    let refused = caller
        .post(COMPLETIONS, json!({"session_id": "all", "max_tokens": 2}))
        .await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.message().contains("no history"),
        "{}",
        refused.message()
    );
    goes_on_as_anew(&caller, "all").await;
}

async fn goes_on_as_anew(caller: &Caller, id: &str) {
    let continued = told(caller.post(COMPLETIONS, turn(id, &prompt(9, 2), 9)).await);
    let cold = caller
        .with_key("anew")
        .post(COMPLETIONS, fresh(&prompt(9, 2), 9))
        .await;
    assert_eq!(continued, told(cold));
}
