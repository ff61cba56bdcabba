//! Two servers on one database: a session is used by one at a time, and a server that was suspended can't
//! overwrite turns of the other.

use std::time::{Duration, Instant};

use serde_json::json;

use super::turn;
use crate::reference::Reference;
use crate::support::caller::said;
use crate::support::postgres::Cluster;
use crate::support::process::Process;
use crate::support::sse::Live;
use crate::two_servers::{
    TwoServers, busy_until_the_other_is_killed, each_continues_where_the_other_stopped, endless,
    turns_at_once,
};

async fn start(database: &str) -> Option<TwoServers<Cluster>> {
    let place = Cluster::start()?;
    let url = place.create(database).await;
    let servers = std::array::from_fn(|_| Process::with_store(&url, &[]));
    Some(TwoServers { servers, place })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_goes_on_where_the_other_stopped() {
    if let Some(pair) = start("alternate").await {
        each_continues_where_the_other_stopped(pair).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_are_in_the_history_or_were_refused() {
    if let Some(pair) = start("refused").await {
        turns_at_once(pair, "error").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_that_wait_are_all_in_the_history() {
    if let Some(pair) = start("waiting").await {
        turns_at_once(pair, "wait").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_other_is_on_is_busy_and_is_free_after_the_lease_when_it_is_killed() {
    if let Some(pair) = start("killed").await {
        // Longer than the lease, so it is renewed.
        busy_until_the_other_is_killed(pair, Duration::from_secs(4)).await;
    }
}

/// A graceful stop releases all sessions at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_was_on_is_free_at_once_when_it_stops() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("stopped").await;
    let flags = ["--session-store", &url, "--session-lease", "1h"];
    let stopping = Process::start(&[&flags[..], &["--drain-timeout", "1s"]].concat());
    let other = Process::start(&flags);
    let mut stream = Live::new(
        stopping
            .caller()
            .send("/v1/completions", endless("tale"))
            .await,
    );
    stream.next().await.expect("it runs").expect("an event");
    stopping.stop();
    let caller = other.caller();
    let answer = caller.post("/generate", turn("tale", " He", 3));
    let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
    answer.expect("it does not wait for the lease").ok();
}

/// A server is suspended for longer than its lease in the middle of a turn: the other server takes the
/// session over, and the first one reports it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_stopped_can_not_overwrite_a_newer_turn() {
    let reference = Reference::start();
    let Some(pair) = start("fenced").await else {
        return;
    };
    let [one, other] = pair.callers();
    one.post("/generate", turn("tale", "Once", 6)).await.ok();
    let before = one.history("tale").await.expect("it is there");
    let mut stream = Live::new(one.send("/v1/completions", endless("tale")).await);
    stream.next().await.expect("it runs").expect("an event");
    pair.servers[0].signal("STOP");

    let told = other.post("/generate", turn("tale", " He", 6)).await.ok();
    let after = [&before[..], &reference.ids(" He"), &said(&told)].concat();
    assert_eq!(other.history("tale").await.as_ref(), Some(&after));
    pair.servers[0].signal("CONT");

    let error = loop {
        let event = stream.next().await.expect("it goes on").expect("an error");
        if event.get("error").is_some() {
            break event;
        }
    };
    assert_eq!(error["error"]["code"], "session_taken_over", "{error}");
    let message = error["error"]["message"].as_str().expect("a message");
    assert!(
        message.contains("\"tale\"") && message.contains("not stored"),
        "{message}"
    );
    for caller in [&one, &other] {
        assert_eq!(caller.history("tale").await.as_ref(), Some(&after));
    }
    // The session can be used again.
    one.post("/generate", turn("tale", " She", 6)).await.ok();
    let last = other.history("tale").await.expect("it is there");
    assert!(last.starts_with(&after) && last.len() > after.len());
}

/// The same with a turn that has almost ended when its server is suspended: its commit arrives after the
/// other's, and the version does not match.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_comes_too_late_is_refused() {
    let Some(pair) = start("late").await else {
        return;
    };
    let [one, other] = pair.callers();
    one.post("/generate", turn("tale", "Once", 6)).await.ok();
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries < 20, "it was never stopped in the middle");
        let body = turn("tale", " and", 40);
        let late = tokio::spawn({
            let one = one.clone();
            async move { one.post("/generate", body).await }
        });
        // Wait until the turn runs, according to the database.
        let client = pair.place.connect("late").await;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let held = "SELECT count(*) FROM skald_sessions WHERE holder IS NOT NULL";
            let held: i64 = client.query_one(held, &[]).await.expect("a row").get(0);
            if held > 0 || late.is_finished() {
                break;
            }
            assert!(Instant::now() < deadline, "the turn does not begin");
        }
        pair.servers[0].signal("STOP");
        let told = other.post("/generate", turn("tale", " He", 6)).await.ok();
        let after = other.history("tale").await.expect("it is there");
        assert!(after.ends_with(&said(&told)));
        pair.servers[0].signal("CONT");
        let late = late.await.expect("an answer");
        if late.status == 200 {
            // It ended before the server was suspended.
            other
                .rewind("tale", json!({"tokens": after.len() - 2}))
                .await
                .ok();
            continue;
        }
        assert_eq!(late.status, 409, "{}", late.body);
        assert_eq!(late.body["error_type"], "conflict");
        assert!(late.message().contains("not stored"), "{}", late.body);
        assert_eq!(other.history("tale").await, Some(after));
        break;
    }
}
