//! The lifetime of sessions, and their number.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::sessions::places::Place;
use crate::sessions::{COMPLETIONS, GENERATE, is_refused, native, prompt, turn};
use crate::support::TestServer;
use crate::support::caller::Caller;
use crate::support::pace::until;

const TTL: Duration = Duration::from_secs(2);

/// The session `used`, with the time between its uses: on a machine that is busy with other work, more than
/// the lifetime can pass between two uses.
struct InUse<'a> {
    caller: &'a Caller,
    last: Instant,
    /// Longest time between two uses.
    longest: Duration,
}

impl<'a> InUse<'a> {
    async fn begin(caller: &'a Caller) -> Self {
        let mut used = Self {
            caller,
            last: Instant::now(),
            longest: Duration::ZERO,
        };
        used.again().await;
        used
    }

    async fn again(&mut self) {
        let begun = Instant::now();
        let body = turn("used", &[1], 1);
        self.caller.post(COMPLETIONS, body).await.ok();
        self.longest = self.longest.max(self.last.elapsed());
        self.last = begun;
    }

    /// Asserts that the session exists, unless it was unused for longer than its lifetime.
    async fn is_there(&self) {
        let history = self.caller.history("used").await;
        let longest = self.longest.max(self.last.elapsed());
        if longest < TTL {
            assert!(history.is_some(), "forgotten within {longest:?}");
        }
    }
}

#[tokio::test]
async fn a_session_is_forgotten_when_it_was_not_used_for_so_long() {
    for place in Place::all() {
        let server = place.start(&["--session-ttl", "2s"]);
        let caller = server.caller();
        caller
            .post(COMPLETIONS, turn("idle", &prompt(20, 1), 2))
            .await
            .ok();
        let mut used = InUse::begin(&caller).await;
        // Reading does not count as use.
        until("forgotten", async || {
            caller.get("/v1/sessions").await.ok();
            used.again().await;
            caller.session("idle").await.status == 404
        })
        .await;
        let list = caller.get("/v1/sessions").await.ok();
        let names: Vec<_> = list["data"].as_array().unwrap().iter().collect();
        assert!(
            names.iter().all(|session| session["id"] == "used"),
            "{list}"
        );
        used.is_there().await;
        let gone = caller.fork("idle", json!({"id": "copy"})).await;
        is_refused(&gone, 404, "not_found", &["\"idle\""]);
        // The name starts a new history.
        let begun = Instant::now();
        caller
            .post(COMPLETIONS, turn("idle", &[1, 2], 1))
            .await
            .ok();
        let history = caller.history("idle").await;
        assert!(history.is_some() || begun.elapsed() > TTL);
        assert!(history.is_none_or(|history| history.len() == 3));
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
async fn a_key_that_reaches_its_session_limit_is_refused() {
    for place in Place::all() {
        let server = place.start(&["--session-limit", "2"]);
        let anonymous = server.caller();
        for caller in [anonymous.clone(), anonymous.with_key("sk-1")] {
            caller
                .post(COMPLETIONS, turn("a", &prompt(20, 1), 2))
                .await
                .ok();
            // A refused request does not count towards the limit.
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

            // Existing sessions continue, and requests without a session are not affected.
            caller.post(COMPLETIONS, turn("a", &[1], 1)).await.ok();
            caller
                .post(COMPLETIONS, crate::sessions::fresh(&[1], 1))
                .await
                .ok();
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
            // Long enough to expire, whether the sweep has removed it or not.
            tokio::time::sleep(TTL + Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_path_or_a_query_is_named() {
    let server = TestServer::start();
    let caller = server.caller();
    let long = "x".repeat(300);
    for (path, param, words) in [
        ("?limit=x", "limit", "got x"),
        ("?limit=0", "limit", "from 1 to 1000"),
        ("?limit=1001", "limit", "from 1 to 1000"),
        ("?limit=1&limit=2", "limit", "given twice"),
        ("?limit=99999999999999999999", "limit", "from 1 to 1000"),
        ("?after=%ff", "after", "`after`"),
        ("?after=a%20b", "after", "`after`"),
        ("?after=", "after", "`after`"),
        ("/%ff", "id", "UTF-8"),
        ("/a%20b", "id", "`id`"),
        (&format!("/{long}"), "id", "`id`"),
    ] {
        let refused = caller.get(&format!("/v1/sessions{path}")).await;
        assert_eq!(refused.status, 400, "{path}: {}", refused.body);
        assert_eq!(refused.body["error"]["param"], param, "{path}");
        let message = refused.message();
        assert!(message.contains(words), "{path}: {message}");
        assert!(message.len() < 400, "{path}: {message}");
    }
    let refused = caller.get("/v1/models/%ff").await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert!(refused.message().contains("UTF-8"), "{}", refused.body);
    // Unknown parameters are ignored.
    caller.get("/v1/sessions?limit=1&order=asc").await.ok();
}
