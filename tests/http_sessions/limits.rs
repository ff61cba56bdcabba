//! How long sessions are kept, and how many.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::places::Place;
use crate::{COMPLETIONS, GENERATE, is_refused, native, prompt, turn};

const TTL: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_session_is_forgotten_when_it_was_not_used_for_so_long() {
    for place in Place::all() {
        let server = place.start(&["--session-ttl", "2s"]);
        let caller = server.caller();
        caller
            .post(COMPLETIONS, turn("idle", &prompt(20, 1), 2))
            .await
            .ok();
        caller
            .post(COMPLETIONS, turn("used", &prompt(20, 2), 2))
            .await
            .ok();
        let begun = Instant::now();
        // Showing is not using.
        while begun.elapsed() < TTL + Duration::from_millis(1500) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            caller.session("idle").await;
            caller.get("/v1/sessions").await.ok();
            caller.post(COMPLETIONS, turn("used", &[1], 1)).await.ok();
        }
        assert_eq!(caller.session("idle").await.status, 404);
        let list = caller.get("/v1/sessions").await.ok();
        assert_eq!(list["data"].as_array().unwrap().len(), 1);
        assert_eq!(list["data"][0]["id"], "used");
        let gone = caller.fork("idle", json!({"id": "copy"})).await;
        is_refused(&gone, 404, "not_found", &["\"idle\""]);
        // Its name begins anew.
        caller
            .post(COMPLETIONS, turn("idle", &[1, 2], 1))
            .await
            .ok();
        assert_eq!(caller.history("idle").await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn the_time_runs_on_while_no_server_does() {
    for place in Place::durable() {
        let server = place.start(&["--session-ttl", "3s"]);
        let caller = server.caller();
        caller
            .post(COMPLETIONS, turn("old", &prompt(20, 1), 2))
            .await
            .ok();
        server.stop();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let server = place.start(&["--session-ttl", "3s"]);
        assert_eq!(server.caller().session("old").await.status, 404);
        assert_eq!(
            server.caller().get("/v1/sessions").await.ok()["data"],
            json!([])
        );
    }
}

#[tokio::test]
async fn a_key_has_so_many_sessions_and_is_told_so() {
    for place in Place::all() {
        let server = place.start(&["--session-limit", "2"]);
        let nobody = server.caller();
        for caller in [nobody.clone(), nobody.with_key("sk-1")] {
            caller
                .post(COMPLETIONS, turn("a", &prompt(20, 1), 2))
                .await
                .ok();
            // What is refused takes no place.
            let refused = caller
                .post(COMPLETIONS, turn("x", &prompt(1020, 1), 90))
                .await;
            assert_eq!(refused.status, 400);
            caller.post(GENERATE, native("b", "Once", 2)).await.ok();

            let refused = caller.post(COMPLETIONS, turn("c", &[1], 1)).await;
            is_refused(&refused, 403, "session_limit", &["2"]);
            for path in [GENERATE, "/generate_stream", "/"] {
                let refused = caller.post(path, native("c", "A", 1)).await;
                is_refused(&refused, 403, "session_limit", &["2"]);
            }
            let refused = caller.fork("a", json!({"id": "c"})).await;
            is_refused(&refused, 403, "session_limit", &["2"]);
            assert_eq!(caller.session("c").await.status, 404);

            // Those there are go on, and requests without a session are none of it.
            caller.post(COMPLETIONS, turn("a", &[1], 1)).await.ok();
            caller.post(COMPLETIONS, crate::fresh(&[1], 1)).await.ok();
            caller.delete("/v1/sessions/b").await.ok();
            caller.fork("a", json!({"id": "c"})).await.created();
            let refused = caller.post(COMPLETIONS, turn("b", &[1], 1)).await;
            is_refused(&refused, 403, "session_limit", &["2"]);
        }
    }
}

#[tokio::test]
async fn a_session_that_is_forgotten_takes_no_place() {
    for place in Place::all() {
        let limits = ["--session-limit", "1", "--session-ttl", "2s"];
        let server = place.start(&limits);
        let caller = server.caller();
        for name in ["one", "two", "two", "three"] {
            caller
                .post(COMPLETIONS, turn(name, &prompt(20, 1), 2))
                .await
                .ok();
            // Whether it was found yet that its time is over or not.
            tokio::time::sleep(TTL + Duration::from_millis(50)).await;
        }
    }
}
