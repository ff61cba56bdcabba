//! One turn at a time: which requests wait, and which are refused.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::caller::Caller;
use crate::support::load::{endless, slow};
use crate::support::{TestServer, sse};
use crate::sessions::{COMPLETIONS, GENERATE, is_refused, native, turn, with};

/// Starts a turn on a session that runs until the stream is dropped.
async fn busy(caller: &Caller, id: &str) -> sse::Live {
    let body = with(endless(), json!({"session_id": id, "stream": true}));
    let mut stream = sse::Live::new(caller.send(COMPLETIONS, body).await);
    stream.next().await.expect("it runs").expect("an event");
    stream
}

fn server() -> TestServer {
    slow(Duration::from_millis(5), super::there)
}

#[tokio::test]
async fn a_turn_on_a_busy_session_is_refused_where_it_asks_for_that() {
    let server = server();
    let caller = server.caller();
    caller
        .post(COMPLETIONS, turn("b", &[1, 2, 3], 2))
        .await
        .ok();
    let running = busy(&caller, "b").await;
    assert_eq!(caller.session("b").await.ok()["busy"], true);
    let error = json!({"if_busy": "error"});
    let refused = caller
        .post(COMPLETIONS, with(turn("b", &[4], 1), error.clone()))
        .await;
    is_refused(&refused, 409, "session_busy", &["\"b\""]);
    assert_eq!(refused.body["error"]["param"], "session_id");
    for path in [GENERATE, "/generate_stream", "/"] {
        let refused = caller
            .post(path, with(native("b", " so", 1), error.clone()))
            .await;
        is_refused(&refused, 409, "conflict", &["\"b\""]);
    }
    let rewind = json!({"tokens": 1, "if_busy": "error"});
    let refused = caller.rewind("b", rewind.clone()).await;
    is_refused(&refused, 409, "session_busy", &["\"b\""]);
    drop(running);
    caller.idle("b").await;
    let answer = caller
        .post(COMPLETIONS, with(turn("b", &[4], 1), error))
        .await;
    answer.ok();
    caller.rewind("b", rewind).await.ok();
}

#[tokio::test]
async fn a_turn_that_does_not_come_in_time_is_refused() {
    let server = slow(Duration::from_millis(5), |setup| {
        super::there(setup);
        setup.engine.queue_timeout = Duration::from_millis(300);
    });
    let caller = server.caller();
    let running = busy(&caller, "b").await;
    let late = caller.post(COMPLETIONS, turn("b", &[4], 1)).await;
    is_refused(&late, 503, "queue_timeout", &["\"b\"", "`--queue-timeout`"]);
    assert!(!late.header("retry-after").is_empty());
    let late = caller.post(GENERATE, native("b", " so", 1)).await;
    is_refused(&late, 503, "overloaded", &["\"b\""]);
    let late = caller.rewind("b", json!({"tokens": 0})).await;
    is_refused(&late, 503, "queue_timeout", &["\"b\""]);
    drop(running);
    caller.idle("b").await;
    caller.post(COMPLETIONS, turn("b", &[4], 1)).await.ok();
}

#[tokio::test]
async fn those_who_wait_take_turns_in_the_order_they_came() {
    let server = server();
    let caller = server.caller();
    let running = busy(&caller, "w").await;
    let before = |id: usize| move |history: &[u32]| history.iter().position(|&t| t as usize == id);
    let mut waiting = Vec::new();
    for n in 0..5 {
        let caller = caller.clone();
        // Waiting is the default; every other request sets it explicitly.
        let more = if n % 2 == 0 {
            json!({"if_busy": "wait"})
        } else {
            json!({"if_busy": null})
        };
        let body = with(turn("w", &[4000 + n], 3), more);
        waiting.push(tokio::spawn(
            async move { caller.post(COMPLETIONS, body).await },
        ));
        server.until_waiting(n + 1).await;
    }
    assert!(waiting.iter().all(|turn| !turn.is_finished()));
    drop(running);
    let mut told = Vec::new();
    for turn in waiting {
        told.push(turn.await.expect("it ends").ok());
    }
    let history = caller.history("w").await.unwrap();
    let places: Vec<usize> = (0..5)
        .map(|n| before(4000 + n)(&history).expect("every turn is in the history"))
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    let lengths = told
        .iter()
        .map(|answer| answer["usage"]["prompt_tokens"].as_u64().unwrap());
    let expected = places.iter().map(|&place| place as u64 + 1);
    assert!(lengths.eq(expected), "each goes on from the one before");
}

#[tokio::test]
async fn one_who_gives_up_waiting_is_not_waited_for() {
    let server = server();
    let caller = server.caller();
    let running = busy(&caller, "g").await;
    let gives_up = tokio::spawn({
        let caller = caller.clone();
        async move { caller.post(COMPLETIONS, turn("g", &[4000], 3)).await }
    });
    server.until_waiting(1).await;
    gives_up.abort();
    server.until_waiting(0).await;
    drop(running);
    caller.post(COMPLETIONS, turn("g", &[4001], 3)).await.ok();
    let history = caller.history("g").await.unwrap();
    assert!(!history.contains(&4000) && history.contains(&4001));
}

#[tokio::test]
async fn a_rewind_waits_for_the_turn_before_it() {
    let server = server();
    let caller = server.caller();
    caller
        .post(COMPLETIONS, turn("r", &[1, 2, 3], 0))
        .await
        .ok();
    let running = busy(&caller, "r").await;
    let rewinding = tokio::spawn({
        let caller = caller.clone();
        async move { caller.rewind("r", json!({"tokens": 1})).await }
    });
    server.until_waiting(1).await;
    assert!(!rewinding.is_finished());
    drop(running);
    let after = rewinding.await.expect("it ends").ok();
    let history = caller.history("r").await.unwrap();
    assert_eq!(after["token_count"], history.len());
    assert!(history.len() > 4, "the turn's tokens but one");
}

#[tokio::test]
async fn other_sessions_do_not_wait() {
    let server = server();
    let caller = server.caller();
    let running = busy(&caller, "one").await;
    caller
        .post(COMPLETIONS, turn("another", &[1], 2))
        .await
        .ok();
    let key = caller.with_key("of another");
    key.post(COMPLETIONS, turn("one", &[1], 2)).await.ok();
    drop(running);
}

#[tokio::test]
async fn if_busy_is_one_of_two_words() {
    let server = super::start();
    let caller = server.caller();
    for value in [json!("queue"), json!(true), json!("")] {
        let more = json!({"if_busy": value});
        let refused: Value = {
            let answer = caller
                .post(COMPLETIONS, with(turn("x", &[1], 1), more.clone()))
                .await;
            assert_eq!(answer.status, 400, "{value}");
            answer.body
        };
        assert_eq!(refused["error"]["param"], "if_busy", "{refused}");
        let answer = caller
            .post(GENERATE, with(native("x", "A", 1), more.clone()))
            .await;
        is_refused(&answer, 422, "validation", &["if_busy"]);
        let answer = caller.rewind("x", with(json!({"tokens": 1}), more)).await;
        is_refused(&answer, 400, "", &["if_busy"]);
    }
    assert_eq!(caller.session("x").await.status, 404);
}
