//! Two servers on one database: one is on a session at a time, and one that was stopped can't undo
//! what the other did meanwhile.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{endless, turn};
use crate::reference::{Choice, Reference};
use crate::support::caller::{Caller, said};
use crate::support::postgres::Cluster;
use crate::support::process::Process;
use crate::support::sse::Live;

/// Two servers that have a database in common.
struct Pair {
    servers: [Process; 2],
    cluster: Cluster,
}

impl Pair {
    async fn start(database: &str) -> Option<Self> {
        let cluster = Cluster::start()?;
        let url = cluster.create(database).await;
        let servers = std::array::from_fn(|_| Process::with_store(&url, &[]));
        Some(Self { servers, cluster })
    }

    fn callers(&self) -> [Caller; 2] {
        self.servers.each_ref().map(Process::caller)
    }
}

fn asking(session: &str, inputs: &str, if_busy: &str) -> Value {
    let mut body = turn(session, inputs, 6);
    body["if_busy"] = json!(if_busy);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_goes_on_where_the_other_stopped() {
    let reference = Reference::start();
    let Some(pair) = Pair::start("alternate").await else {
        return;
    };
    let callers = pair.callers();
    let mut history = Vec::new();
    for n in 0..6 {
        let inputs = format!(" On day {n} the king");
        let told = callers[n % 2].post("/generate", turn("tale", &inputs, 6));
        let told = told.await.ok();
        history.extend(reference.ids(&inputs));
        let expected = reference.next(&history, Choice::Greedy, 6).await;
        assert_eq!(said(&told), expected, "turn {n}");
        history.extend(expected);
        for caller in &callers {
            assert_eq!(caller.history("tale").await.as_ref(), Some(&history));
        }
    }
    let [one, other] = &callers;
    let copy = json!({"id": "copy", "at": 20});
    one.fork("tale", copy).await.created();
    let copied = other.history("copy").await;
    assert_eq!(copied.expect("it is there"), history[..20]);
    assert_eq!(other.fork("tale", json!({"id": "copy"})).await.status, 409);
    other.rewind("tale", json!({"tokens": 5})).await.ok();
    history.truncate(history.len() - 5);
    assert_eq!(one.history("tale").await, Some(history));
    other.delete("/v1/sessions/tale").await.ok();
    assert_eq!(one.session("tale").await.status, 404);
    let list = one.get("/v1/sessions").await.ok();
    assert_eq!(list["data"].as_array().expect("a list").len(), 1, "{list}");
    one.post("/generate", turn("tale", "Anew", 3)).await.ok();
    let anew = other.history("tale").await.expect("it is there");
    assert!(anew.starts_with(&reference.ids("Anew")) && anew.len() < 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_are_in_the_history_or_were_refused() {
    at_once("error").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_that_wait_are_all_in_the_history() {
    at_once("wait").await;
}

/// Each of 24 turns from six clients either says that the session is busy or is in the history.
async fn at_once(if_busy: &str) {
    let reference = Reference::start();
    let Some(pair) = Pair::start("at_once").await else {
        return;
    };
    let callers = pair.callers();
    let clients = (0..6).map(|client| {
        let caller = callers[client % 2].clone();
        async move {
            let mut answers = Vec::new();
            for n in 0..4 {
                let inputs = format!(" ({client}.{n})");
                let body = asking("tale", &inputs, if_busy);
                let answer = caller.post("/generate", body).await;
                answers.push((inputs, answer));
            }
            answers
        }
    });
    let answers: Vec<_> = join_all(clients).await.into_iter().flatten().collect();
    let mut told: Vec<(Vec<u32>, Vec<u32>)> = Vec::new();
    for (inputs, answer) in answers {
        match answer.status {
            200 => told.push((reference.ids(&inputs), said(&answer.body))),
            409 if if_busy == "error" => assert_eq!(answer.body["error_type"], "conflict"),
            status => panic!("{status}: {}", answer.body),
        }
    }
    assert!(told.len() > 1, "only {} of 24 turns", told.len());
    if if_busy == "wait" {
        assert_eq!(told.len(), 24);
    }
    println!(
        "two servers, one session, if_busy {if_busy}: {} of 24 turns kept",
        told.len()
    );

    // The history is these turns, one after the other, and nothing else.
    let history = callers[0].history("tale").await.expect("it is there");
    assert_eq!(callers[1].history("tale").await.as_ref(), Some(&history));
    let mut rest = &history[..];
    while !rest.is_empty() {
        let next = told
            .iter()
            .position(|(prompt, said)| rest.starts_with(&[&prompt[..], said].concat()));
        let (prompt, said) = told.swap_remove(next.unwrap_or_else(|| panic!("{rest:?} is torn")));
        let begun = history.len() - rest.len() + prompt.len();
        let expected = reference.next(&history[..begun], Choice::Greedy, 6).await;
        assert_eq!(said, expected, "each turn has read all before it");
        rest = &rest[prompt.len() + said.len()..];
    }
    assert_eq!(told, [], "no turn is lost");
    for server in &pair.servers {
        assert_eq!(server.warnings(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_other_is_on_is_busy_and_is_free_after_the_lease_when_it_is_killed() {
    let Some(pair) = Pair::start("killed").await else {
        return;
    };
    let [one, other] = pair.callers();
    one.post("/generate", turn("tale", "Once", 6)).await.ok();
    let before = one.history("tale").await.expect("it is there");
    let mut stream = Live::new(one.send("/v1/completions", endless("tale")).await);
    stream.next().await.expect("it runs").expect("an event");

    let refused = other
        .post("/generate", asking("tale", " He", "error"))
        .await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    let rewind = json!({"tokens": 1, "if_busy": "error"});
    assert_eq!(other.rewind("tale", rewind).await.status, 409);
    assert_eq!(other.delete("/v1/sessions/tale").await.status, 409);
    // Looking does not wait.
    assert_eq!(other.history("tale").await.as_ref(), Some(&before));
    other.fork("tale", json!({"id": "copy"})).await.created();
    assert_eq!(other.history("copy").await.as_ref(), Some(&before));

    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.post("/generate", turn("tale", " They", 6)).await }
    });
    // Longer than the lease: it is renewed.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!waiting.is_finished());
    let Pair {
        servers: [mut killed, _left],
        cluster,
    } = pair;
    let begun = Instant::now();
    killed.kill();
    waiting.await.expect("it ends").ok();
    println!("free {:.1} s after the kill", begun.elapsed().as_secs_f32());
    let after = other.history("tale").await.expect("it is there");
    assert!(after.starts_with(&before) && after.len() > before.len());
    drop(cluster);
}

/// A server that stops in good order gives all back at once.
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

/// A server that is stopped for longer than its lease in the middle of a turn: the other takes the
/// session, and the first is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_stopped_can_not_overwrite_a_newer_turn() {
    let reference = Reference::start();
    let Some(pair) = Pair::start("fenced").await else {
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
        message.contains("\"tale\"") && message.contains("not kept"),
        "{message}"
    );
    for caller in [&one, &other] {
        assert_eq!(caller.history("tale").await.as_ref(), Some(&after));
    }
    // It has its session back as any other.
    one.post("/generate", turn("tale", " She", 6)).await.ok();
    let last = other.history("tale").await.expect("it is there");
    assert!(last.starts_with(&after) && last.len() > after.len());
}

/// The same with a turn that is as good as over when its server is stopped: its commit comes after
/// the other's, and finds another version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_comes_too_late_is_refused() {
    let Some(pair) = Pair::start("late").await else {
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
        // Until the turn runs, which the database says.
        let client = pair.cluster.connect("late").await;
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
            // It was over before it was stopped.
            other
                .rewind("tale", json!({"tokens": after.len() - 2}))
                .await
                .ok();
            continue;
        }
        assert_eq!(late.status, 409, "{}", late.body);
        assert_eq!(late.body["error_type"], "conflict");
        assert!(late.message().contains("not kept"), "{}", late.body);
        assert_eq!(other.history("tale").await, Some(after));
        break;
    }
}
