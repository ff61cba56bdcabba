//! What a turn adds to a session, and how a session continues.

use serde_json::{Value, json};

use crate::support::caller::{said, token_ids};
use crate::support::load::{endless, held, slow, streamed};
use crate::support::{TestServer, sse};
use crate::sessions::{COMPLETIONS, GENERATE, fresh, native, prompt, told, turn, with};

use std::sync::LazyLock;
use std::time::Duration;

static SERVER: LazyLock<TestServer> = LazyLock::new(super::start);

#[tokio::test]
async fn field_and_header_name_a_session_in_both_dialects_and_at_every_endpoint() {
    let caller = SERVER.caller();
    let mut expected = Vec::new();
    for path in [GENERATE, "/"] {
        let answer = caller.post(path, native("all", " It was", 3)).await.ok();
        let answer = answer.get(0).unwrap_or(&answer);
        expected.extend(SERVER.ids(" It was"));
        expected.extend(said(answer));
    }
    let events = caller
        .stream("/generate_stream", native("all", " It was", 3))
        .await;
    expected.extend(SERVER.ids(" It was"));
    expected.extend(events.data.iter().map(|event| {
        let id = event["token"]["id"].as_u64().unwrap();
        u32::try_from(id).unwrap()
    }));
    assert_eq!(caller.history("all").await.unwrap(), expected);

    let body = json!({"prompt": [7, 8], "max_tokens": 2, "temperature": 0, "ignore_eos": true});
    let sent = crate::support::client()
        .post(SERVER.url(COMPLETIONS))
        .header("x-session-id", "all")
        .body(body.to_string());
    assert_eq!(sent.send().await.unwrap().status(), 200);
    let history = caller.history("all").await.unwrap();
    assert_eq!(history[..expected.len()], expected);
    assert_eq!(history[expected.len()..][..2], [7, 8]);
    assert_eq!(history.len(), expected.len() + 4);

    // If both name a session, the body decides.
    let sent = crate::support::client()
        .post(SERVER.url(COMPLETIONS))
        .header("x-session-id", "all")
        .body(turn("other", &[9], 1).to_string());
    assert_eq!(sent.send().await.unwrap().status(), 200);
    assert_eq!(caller.history("all").await.unwrap(), history);
    assert_eq!(caller.history("other").await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_turn_is_what_a_prompt_of_the_whole_history_is_bit_for_bit() {
    let caller = SERVER.caller();
    let mut history: Vec<usize> = Vec::new();
    for (n, length) in [1, 15, 16, 17, 40].into_iter().enumerate() {
        let own = prompt(length, 100 + n);
        let sampled = json!({"temperature": 0.9, "top_k": 40, "seed": 5 + n});
        let more = if n % 2 == 0 { json!({}) } else { sampled };
        let body = with(turn("exact", &own, 9), more.clone());
        let continued = told(caller.post(COMPLETIONS, body).await);
        history.extend(own);
        let whole = with(fresh(&history, 9), more);
        // The key is used only here, so nothing is cached.
        let stranger = caller.with_key(["a", "b", "c", "d", "e"][n]);
        assert_eq!(continued, told(stranger.post(COMPLETIONS, whole).await));
        let kept = caller.history("exact").await.unwrap();
        history = kept.into_iter().map(|id| id as usize).collect();
    }
}

#[tokio::test]
async fn only_what_is_new_is_computed() {
    let caller = SERVER.caller().with_key("new");
    let usage = |answer: Value| {
        let usage = answer["usage"].clone();
        (
            usage["prompt_tokens"].as_u64().unwrap(),
            usage["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap(),
        )
    };
    let first = caller
        .post(COMPLETIONS, turn("new", &prompt(70, 1), 9))
        .await;
    assert_eq!(usage(first.ok()), (70, 0));
    // All but the last of the 79 tokens, which was sampled and never computed.
    let second = caller.post(COMPLETIONS, turn("new", &[5, 6, 7], 9)).await;
    assert_eq!(usage(second.ok()), (82, 78));
    let session = caller.session("new").await.ok();
    assert_eq!(session["token_count"], 91);
    // Whole blocks of the 90 computed tokens.
    assert_eq!(session["cached_tokens"], 80);
    assert_eq!(session["kv_resident"], true);
}

#[tokio::test]
async fn a_session_is_shown_whole_and_in_the_list() {
    let caller = SERVER.caller().with_key("shown");
    for name in ["one", "two", "one"] {
        caller.post(GENERATE, native(name, "Once", 4)).await.ok();
    }
    let session = caller.session("one").await.ok();
    let tokens = token_ids(&session["tokens"]);
    assert_eq!(session["text"], SERVER.tokenizer().decode(&tokens));
    assert_eq!(session["token_count"], tokens.len());
    assert_eq!(session["object"], "session");
    assert_eq!(session["busy"], false);
    assert!(session["created"].as_u64() <= session["last_used"].as_u64());

    let list = caller.get("/v1/sessions").await.ok();
    assert_eq!(list["object"], "list");
    let names: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|session| {
            assert!(session.get("tokens").is_none() && session.get("text").is_none());
            session["id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(names, ["one", "two"], "the last used first");
    let in_list = list["data"][0].as_object().unwrap();
    for field in [
        "id",
        "object",
        "token_count",
        "cached_tokens",
        "kv_resident",
        "created",
        "last_used",
        "busy",
    ] {
        assert_eq!(in_list[field], session[field], "{field}");
    }
}

#[tokio::test]
async fn no_token_to_generate_appends_the_prompt_alone() {
    let caller = SERVER.caller();
    let answer = caller
        .post(COMPLETIONS, turn("read", &prompt(30, 3), 0))
        .await;
    assert_eq!(answer.ok()["usage"]["completion_tokens"], 0);
    assert_eq!(caller.history("read").await.unwrap().len(), 30);
    caller
        .post(COMPLETIONS, turn("read", &prompt(7, 4), 0))
        .await
        .ok();
    let both = [prompt(30, 3), prompt(7, 4)].concat();
    let kept = caller.history("read").await.unwrap();
    assert_eq!(kept.iter().map(|&id| id as usize).collect::<Vec<_>>(), both);
    let goes_on = json!({"session_id": "read", "max_tokens": 6, "temperature": 0, "logprobs": 3, "ignore_eos": true});
    let continued = told(caller.post(COMPLETIONS, goes_on).await);
    let stranger = caller.with_key("of read");
    assert_eq!(
        continued,
        told(stranger.post(COMPLETIONS, fresh(&both, 6)).await)
    );
}

#[tokio::test]
async fn a_session_goes_on_past_the_window_as_a_prompt_of_its_history_does() {
    let caller = SERVER.caller();
    let slide = json!({"overflow": "slide"});
    let long = prompt(1000, 7);
    let body = with(turn("endless", &long, 40), slide.clone());
    caller.post(COMPLETIONS, body).await.ok();
    let history = || async { caller.history("endless").await.unwrap() };
    assert_eq!(history().await.len(), 1040);

    // Refused if the window is the limit, in both dialects, and nothing changes.
    let refused = caller.post(COMPLETIONS, turn("endless", &[1], 1)).await;
    crate::sessions::is_refused(&refused, 400, "context_length_exceeded", &["1040", "slide"]);
    let refused = caller.post(GENERATE, native("endless", " so", 5)).await;
    crate::sessions::is_refused(&refused, 422, "validation", &["1040", "slide"]);
    assert_eq!(history().await.len(), 1040);

    let native = with(native("endless", " so", 5), slide.clone());
    let answer = caller.post(GENERATE, native).await.ok();
    let so = SERVER.ids(" so");
    let continued = history().await;
    assert_eq!(continued[1040..1040 + so.len()], so);
    assert_eq!(continued[1040 + so.len()..], said(&answer));

    let before: Vec<usize> = continued.iter().map(|&id| id as usize).collect();
    let body = with(turn("endless", &prompt(20, 8), 30), slide.clone());
    let continued = told(caller.post(COMPLETIONS, body).await);
    let whole = with(fresh(&[before, prompt(20, 8)].concat(), 30), slide);
    let stranger = caller.with_key("of endless");
    assert_eq!(continued, told(stranger.post(COMPLETIONS, whole).await));
}

#[tokio::test]
async fn a_turn_that_fails_leaves_no_trace() {
    let caller = SERVER.caller();
    let refused = caller
        .post(COMPLETIONS, turn("none", &prompt(1020, 1), 10))
        .await;
    assert_eq!(refused.status, 400);
    assert_eq!(caller.session("none").await.status, 404);
    caller
        .post(COMPLETIONS, turn("some", &prompt(20, 1), 10))
        .await
        .ok();
    let before = caller.session("some").await.ok();
    for (more, status) in [
        (json!({"max_tokens": 2000}), 400),
        (json!({"temperature": 3}), 400),
        (json!({"guided_regex": "("}), 400),
        (json!({"logit_bias": {"1": "x"}}), 400),
    ] {
        let answer = caller
            .post(COMPLETIONS, with(turn("some", &[5], 5), more))
            .await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    let after = caller.session("some").await.ok();
    assert_eq!(
        (&after["tokens"], &after["busy"]),
        (&before["tokens"], &json!(false))
    );
}

#[tokio::test]
async fn a_client_that_leaves_keeps_what_it_was_sent() {
    let server = slow(Duration::from_millis(20), super::there);
    let caller = server.caller();
    for (path, body) in [
        (
            COMPLETIONS,
            streamed(with(
                turn("left", &prompt(20, 1), 900),
                json!({"logprobs": null}),
            )),
        ),
        (
            "/generate_stream",
            native("left-too", "Once upon a time", 900),
        ),
    ] {
        let id = body["session_id"].as_str().unwrap().to_owned();
        let mut stream = sse::Live::new(caller.send(path, body.clone()).await);
        for _ in 0..5 {
            stream.next().await.unwrap().expect("an event");
        }
        drop(stream);
        let session = caller.idle(&id).await;
        let prompt = if path == COMPLETIONS {
            20
        } else {
            server.ids("Once upon a time").len()
        };
        let kept = token_ids(&session["tokens"]);
        let said = kept.len() - prompt;
        assert!((5..900).contains(&said), "{said} tokens");

        // The same request, not cut off.
        let mut whole = body;
        whole["session_id"] = json!("whole");
        whole["stream"] = json!(false);
        let path = if path == COMPLETIONS {
            whole["max_tokens"] = json!(said);
            path
        } else {
            whole["parameters"]["max_new_tokens"] = json!(said);
            GENERATE
        };
        server.caller().post(path, whole).await.ok();
        let whole = caller.history("whole").await.unwrap();
        assert_eq!(whole, kept);
        caller.delete("/v1/sessions/whole").await.ok();
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_anything_was_sent_leaves_no_trace() {
    // The prompt takes 15 steps; the engine is held after three of them.
    let (server, gate) = held(3, |setup: &mut crate::support::Setup| {
        super::there(setup);
        setup.engine.max_step_tokens = 64;
    });
    let caller = server.caller();
    let sending = tokio::spawn({
        let caller = caller.clone();
        async move {
            caller
                .send(COMPLETIONS, turn("early", &prompt(900, 1), 10))
                .await
        }
    });
    server
        .until("under way", |status| status.running == 1)
        .await;
    // The rewind waits until the server has noticed that the client disconnected.
    let rewinding = tokio::spawn({
        let caller = caller.clone();
        async move { caller.rewind("early", json!({"tokens": 1})).await }
    });
    server.until_waiting(1).await;
    sending.abort();
    assert_eq!(rewinding.await.expect("it ends").status, 404);
    gate.open();
    server
        .until("idle", |status| status.running + status.waiting == 0)
        .await;
    assert_eq!(caller.session("early").await.status, 404);
    // The next turn is not affected.
    caller
        .post(COMPLETIONS, turn("early", &prompt(5, 1), 2))
        .await
        .ok();
    assert_eq!(caller.history("early").await.unwrap().len(), 7);
}

#[tokio::test]
async fn a_deleted_session_is_gone_and_a_running_turn_does_not_bring_it_back() {
    let server = slow(Duration::from_millis(5), super::there);
    let caller = server.caller();
    let body = with(endless(), json!({"session_id": "gone", "stream": true}));
    let mut stream = sse::Live::new(caller.send(COMPLETIONS, body).await);
    stream.next().await.unwrap().expect("an event");
    let deleted = caller.delete("/v1/sessions/gone").await;
    // Before its first turn has ended, a session may exist or not; but it does not reappear.
    assert!([200, 404].contains(&deleted.status), "{}", deleted.body);
    if deleted.status == 200 {
        assert_eq!(
            deleted.body,
            json!({"id": "gone", "object": "session.deleted", "deleted": true})
        );
    }
    stream
        .next()
        .await
        .unwrap()
        .expect("the turn itself goes on");
    drop(stream);
    server.until("idle", |status| status.running == 0).await;

    caller
        .post(COMPLETIONS, turn("kept", &[1, 2], 2))
        .await
        .ok();
    let body = with(endless(), json!({"session_id": "kept", "stream": true}));
    let mut stream = sse::Live::new(caller.send(COMPLETIONS, body).await);
    stream.next().await.unwrap().expect("an event");
    caller.delete("/v1/sessions/kept").await.ok();
    assert_eq!(caller.session("kept").await.status, 404);
    drop(stream);
    server.until("idle", |status| status.running == 0).await;
    assert_eq!(caller.session("kept").await.status, 404);
    assert_eq!(caller.delete("/v1/sessions/kept").await.status, 404);
    // The name starts a new history.
    caller.post(COMPLETIONS, turn("kept", &[3], 1)).await.ok();
    assert_eq!(caller.history("kept").await.unwrap()[0], 3);
}
