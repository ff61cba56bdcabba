//! A clock that is set back or forward while the server runs, as time synchronisation does: deadlines don't
//! depend on it, and sessions are not lost. Only `--session-ttl` depends on it, because it counts across
//! restarts.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::caller::Caller;
use crate::support::load::{endless, streamed};
use crate::support::process::Process;
use crate::support::sse;

/// A wall clock for one process, by libfaketime; the monotonic clock is the machine's.
struct Clock {
    library: PathBuf,
    offset: tempfile::NamedTempFile,
}

impl Clock {
    /// Creates a clock; `None`, with the reason, if libfaketime is not installed: with `SKALD_TEST_CLOCK=1`
    /// this fails.
    fn new() -> Option<Self> {
        let name = "faketime/libfaketimeMT.so.1";
        let directories = std::fs::read_dir("/usr/lib")
            .into_iter()
            .flatten()
            .flatten();
        let mut places = directories.map(|directory| directory.path().join(name));
        let Some(library) = places.find(|library| library.is_file()) else {
            let required = std::env::var_os("SKALD_TEST_CLOCK").is_some_and(|v| v == "1");
            assert!(
                !required,
                "SKALD_TEST_CLOCK=1, and libfaketime is not installed"
            );
            println!("skipped: libfaketime is not installed");
            return None;
        };
        let clock = Self {
            library,
            offset: tempfile::NamedTempFile::new().expect("a file"),
        };
        clock.set("+0");
        Some(clock)
    }

    /// Sets the offset from the machine's clock, such as `-10y`.
    fn set(&self, offset: &str) {
        // Renamed, so that a reader never finds an empty file.
        let next = self.offset.path().with_extension("next");
        std::fs::write(&next, offset).expect("written");
        std::fs::rename(&next, self.offset.path()).expect("renamed");
    }

    fn start(&self, sessions: &Path, flags: &[&str]) -> Process {
        let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        let (library, offset) = (text(&self.library), text(self.offset.path()));
        let environment = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", offset.as_str()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let sessions = text(sessions);
        Process::start_in(
            &environment,
            &[&["--session-dir", &sessions], flags].concat(),
        )
    }
}

fn turn(session: &str) -> Value {
    json!({"prompt": " and", "max_tokens": 4, "session_id": session, "timeout": 170})
}

/// Returns the year of the server's wall clock, from an answer.
async fn year(caller: &Caller) -> u64 {
    let answer = caller.post("/v1/completions", json!({"prompt": "A", "max_tokens": 1}));
    let created = answer.await.ok()["created"].as_u64();
    1970 + created.expect("a time") / (365 * 86400)
}

#[tokio::test]
async fn steps_of_the_clock_end_no_request_and_lose_no_session() {
    let Some(clock) = Clock::new() else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let flags = ["--session-kv-size", "0B", "--stall-timeout", "60s"];
    let server = clock.start(directory.path(), &flags);
    let caller = server.caller();
    let now = year(&caller).await;
    caller.post("/v1/completions", turn("tale")).await.ok();
    let mut body = streamed(endless());
    body["timeout"] = json!(170);
    let mut stream = sse::Live::new(caller.send("/v1/completions", body).await);
    for (offset, years) in [("-10y", -10), ("+10y", 10), ("-20y", -20), ("+0", 0)] {
        clock.set(offset);
        let there = year(&caller).await.cast_signed() - now.cast_signed();
        assert!(
            (there - years).abs() <= 1,
            "the clock is set: {there} {years}"
        );
        for _ in 0..20 {
            let event = stream.next().await.expect("it goes on").expect("an event");
            assert!(event.get("error").is_none(), "{event}");
        }
        let before = caller.history("tale").await.expect("it is there");
        let answer = caller.post("/v1/completions", turn("tale")).await.ok();
        assert!(answer.get("history_lost").is_none(), "{answer}");
        let after = caller.history("tale").await.expect("it is there");
        assert!(after.starts_with(&before) && after.len() > before.len());
        for probe in ["/livez", "/readyz"] {
            caller.get(probe).await.ok();
        }
    }
    drop(stream);
    server.stop();
}

#[tokio::test]
async fn the_time_to_live_goes_by_the_clock() {
    let Some(clock) = Clock::new() else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let server = clock.start(directory.path(), &["--session-ttl", "30days"]);
    let caller = server.caller();
    caller.post("/v1/completions", turn("tale")).await.ok();
    for (offset, is_there) in [("-1y", true), ("+29d", true), ("+31d", false)] {
        clock.set(offset);
        assert_eq!(caller.history("tale").await.is_some(), is_there, "{offset}");
    }
    server.stop();
}
