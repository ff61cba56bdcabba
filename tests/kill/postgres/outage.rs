//! A database that crashes under load, is down, or hangs: turns are kept or refused, other requests are not
//! affected, and the server does not need a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use super::{is_away, turn};
use crate::client::Client;
use crate::load::{check, clients, seed};
use crate::random::Random;
use crate::reference::Reference;
use crate::support::caller::Caller;
use crate::support::postgres::Cluster;
use crate::support::process::Process;
use crate::support::sse::Live;
use crate::two_servers::endless;

/// Crashes in an ordinary run.
const CRASHES: usize = 4;
/// Maximum time until sessions work again after the database does.
const RECOVERED: Duration = Duration::from_secs(15);

/// Outcomes of a client's requests.
#[derive(Default)]
struct Outcomes {
    /// Requests that were refused with a retry hint.
    refused: usize,
}

/// Performs one operation after another. After an error, waits for the database and checks whether the
/// operation took effect.
async fn through_outages(
    client: &mut Client,
    caller: &Caller,
    reference: &Reference,
    stop: &AtomicBool,
) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let caller = client.asking(caller);
    while !stop.load(Ordering::SeqCst) {
        if client.step(&caller, reference).await.is_ok() {
            continue;
        }
        outcomes.refused += 1;
        available(&caller).await;
        for (name, tale) in &mut client.tales {
            if tale.doubt.is_none() {
                continue;
            }
            let Some(found) = settled(&caller, name).await else {
                // Unavailable again; retried in the next round.
                continue;
            };
            if let Err(wrong) = tale.settle(found, reference).await {
                panic!("{name}: {wrong}");
            }
        }
    }
    outcomes
}

/// Waits until sessions are available.
async fn available(caller: &Caller) {
    let deadline = Instant::now() + RECOVERED;
    loop {
        let answer = caller.get("/v1/sessions").await;
        if answer.status == 200 {
            return;
        }
        is_away(&answer);
        assert!(Instant::now() < deadline, "away for {RECOVERED:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the history of a session when no turn runs on it; `None` if the database is unavailable.
async fn settled(caller: &Caller, name: &str) -> Option<Option<Vec<u32>>> {
    let deadline = Instant::now() + RECOVERED;
    loop {
        let answer = caller.session(name).await;
        match answer.status {
            404 => return Some(None),
            503 => return None,
            _ => (),
        }
        let session = answer.ok();
        if session["busy"] == false {
            return Some(Some(crate::support::caller::token_ids(&session["tokens"])));
        }
        assert!(
            Instant::now() < deadline,
            "{name} is busy for {RECOVERED:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_under_load_loses_no_turn() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("crashes").await;
    let mut random = Random::new(seed());
    let reference = Reference::start();
    let server = Process::with_store(&url, &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let running: Vec<_> = clients(&mut random)
        .into_iter()
        .map(|mut client| {
            let (caller, reference) = (server.caller(), reference.clone());
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let outcomes = through_outages(&mut client, &caller, &reference, &stop).await;
                (client, outcomes)
            })
        })
        .collect();
    for _ in 0..CRASHES {
        tokio::time::sleep(Duration::from_millis(random.within(500..2000) as u64)).await;
        cluster.stop();
        tokio::time::sleep(Duration::from_millis(random.within(0..2500) as u64)).await;
        cluster.resume();
        available(&server.caller()).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::SeqCst);
    let (mut turns, mut refused, mut sessions) = (0, 0, 0);
    let caller = server.caller();
    for ended in join_all(running).await {
        let (mut client, outcomes) = ended.expect("a client that saw what it may see");
        turns += client.turns;
        refused += outcomes.refused;
        check(&mut client, &caller, &reference).await;
        sessions += client.there().count();
    }
    println!(
        "{CRASHES} crashes of the database: {turns} turns, every one of them kept; {refused} \
         requests told to come again; {sessions} sessions at the end"
    );
    assert!(turns > CRASHES && refused > 0, "{turns} {refused}");
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_everything_else_goes_on() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("away").await;
    let server = Process::with_store(&url, &[]);
    let caller = server.caller();
    caller.post("/generate", turn("tale", "Once", 3)).await.ok();
    let before = caller.history("tale").await.expect("it is there");
    cluster.stop();

    let deadline = Instant::now() + Duration::from_secs(10);
    while caller.session("tale").await.status != 503 {
        assert!(Instant::now() < deadline, "the outage is not noticed");
    }
    for answer in [
        caller.session("tale").await,
        caller.get("/v1/sessions").await,
        caller.delete("/v1/sessions/tale").await,
        caller.fork("tale", json!({"id": "copy"})).await,
        caller.rewind("tale", json!({"tokens": 1})).await,
        caller.post("/generate", turn("tale", " He", 3)).await,
        caller.post("/generate", turn("new", "He", 3)).await,
        caller
            .post("/generate_stream", turn("tale", " He", 3))
            .await,
        caller.post("/v1/completions", endless("tale")).await,
    ] {
        is_away(&answer);
        let name = &answer.body["error"]["code"];
        assert!(
            *name == "session_store_unavailable" || answer.body["error_type"] == "unavailable",
            "{}",
            answer.body
        );
    }
    for path in ["/readyz", "/livez", "/health", "/metrics", "/info"] {
        let begun = Instant::now();
        assert_eq!(caller.get(path).await.status, 200, "{path}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{path} waits");
    }
    let plain = json!({"inputs": "Once", "parameters": {"max_new_tokens": 3}});
    caller.post("/generate", plain).await.ok();

    cluster.resume();
    available(&caller).await;
    assert_eq!(caller.history("tale").await, Some(before));
    caller.post("/generate", turn("tale", " He", 3)).await.ok();
    server.stop();
}

/// A turn that ends during an outage is not lost: it is stored when the database is back, and only then does
/// its answer end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_ends_in_an_outage_is_kept_after_it() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("ends").await;
    let server = Process::with_store(&url, &[]);
    let caller = server.caller();
    let mut body = endless("tale");
    body["max_tokens"] = json!(300);
    let mut stream = Live::new(caller.send("/v1/completions", body).await);
    stream.next().await.expect("it runs").expect("an event");
    cluster.stop();
    let ending = tokio::spawn(async move {
        let mut last = json!(null);
        while let Some(event) = stream.next().await.expect("it goes on") {
            last = event;
        }
        last
    });
    // All tokens are generated; only the commit is left.
    let deadline = Instant::now() + Duration::from_secs(20);
    while caller.get("/info").await.ok()["engine"]["running"] != 0 {
        assert!(Instant::now() < deadline, "it does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!ending.is_finished(), "it was not kept anywhere");
    cluster.resume();
    let last = ending.await.expect("it ends");
    assert!(last.get("error").is_none(), "{last}");
    let history = caller.history("tale").await.expect("it is kept");
    assert!(history.len() > 300, "{}", history.len());
    server.stop();
}

/// A turn that ends while the database stays down fails, and is not stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_can_not_be_kept_says_so() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("never").await;
    let server = Process::with_store(&url, &[]);
    let caller = server.caller();
    caller.post("/generate", turn("tale", "Once", 3)).await.ok();
    let before = caller.history("tale").await;
    let mut body = endless("tale");
    body["max_tokens"] = json!(200);
    let mut stream = Live::new(caller.send("/v1/completions", body).await);
    stream.next().await.expect("it runs").expect("an event");
    cluster.stop();
    let mut last = json!(null);
    while let Some(event) = stream.next().await.expect("it goes on") {
        last = event;
    }
    assert_eq!(last["error"]["code"], "session_store_unavailable", "{last}");
    cluster.resume();
    available(&caller).await;
    assert_eq!(caller.history("tale").await, before);
    caller.post("/generate", turn("tale", " He", 3)).await.ok();
    server.stop();
}

/// A database that hangs: the wait is bounded, and other requests do not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_locked_is_not_waited_for_without_end() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("locked").await;
    let server = Process::with_store(&url, &[]);
    let caller = server.caller();
    caller.post("/generate", turn("tale", "Once", 3)).await.ok();
    let admin = cluster.connect("locked").await;
    let lock = "BEGIN; LOCK TABLE skald_sessions IN ACCESS EXCLUSIVE MODE";
    admin.batch_execute(lock).await.expect("it is locked");
    let begun = Instant::now();
    let (answer, metrics) = tokio::join!(
        caller.post("/generate", turn("tale", " He", 3)),
        caller.get("/metrics")
    );
    is_away(&answer);
    assert_eq!(metrics.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(20), "{begun:?}");
    admin.batch_execute("ROLLBACK").await.expect("it is free");
    available(&caller).await;
    caller.post("/generate", turn("tale", " He", 3)).await.ok();
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_without_its_database_waits_for_it() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("later").await;
    cluster.stop();
    let server = Process::with_store(&url, &[]);
    let caller = server.caller();
    assert_eq!(caller.get("/readyz").await.status, 200);
    is_away(&caller.post("/generate", turn("tale", "Once", 3)).await);
    let plain = json!({"inputs": "Once", "parameters": {"max_new_tokens": 3}});
    caller.post("/generate", plain).await.ok();
    cluster.resume();
    available(&caller).await;
    caller.post("/generate", turn("tale", "Once", 3)).await.ok();
    server.stop();
}

/// A closed connection is not an outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_ended_are_replaced_without_a_word_to_clients() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("ended").await;
    let server = Process::with_store(&url, &[]);
    let caller = server.caller();
    let admin = cluster.connect("postgres").await;
    for n in 0..10 {
        caller.post("/generate", turn("tale", " so", 2)).await.ok();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name = 'skald'";
        admin.batch_execute(end).await.expect("they are ended");
        assert!(caller.history("tale").await.expect("it is there").len() >= 2 * n);
    }
    server.stop();
}
