//! Commits whose answers are lost: the server finds out whether the commit took effect before it answers, or
//! reports that it does not know.

use std::time::{Duration, Instant};

use super::proxy::Proxy;
use super::turn;
use crate::reference::Reference;
use crate::support::caller::{Caller, said};
use crate::support::postgres::Cluster;
use crate::support::process::Process;

/// A server behind a network that can be cut, and the database.
struct Setting {
    cluster: Cluster,
    proxy: Proxy,
    server: Process,
    url: String,
}

impl Setting {
    async fn start(database: &str) -> Option<Self> {
        let cluster = Cluster::start()?;
        let url = cluster.create(database).await;
        let proxy = Proxy::start(&cluster.address()).await;
        let server = Process::with_store(&url.replace(&cluster.address(), &proxy.address()), &[]);
        Some(Self {
            cluster,
            proxy,
            server,
            url,
        })
    }
}

/// Waits until `count` answers were lost.
async fn lost(proxy: &Proxy, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while proxy.lost() < count {
        assert!(Instant::now() < deadline, "no commit came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the tokens that a turn adds to a history, according to its answer.
fn adds(reference: &Reference, inputs: &str, answer: &serde_json::Value) -> Vec<u32> {
    [reference.ids(inputs), said(answer)].concat()
}

async fn history(caller: &Caller) -> Vec<u32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while caller.session("tale").await.status == 503 {
        assert!(Instant::now() < deadline, "it stays away");
    }
    caller.history("tale").await.expect("it is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_confirmation_is_lost_is_kept_once() {
    let Some(setting) = Setting::start("confirmation").await else {
        return;
    };
    let reference = Reference::start();
    let caller = setting.server.caller();
    let mut expected = Vec::new();
    for n in 1..=5 {
        setting.proxy.lose_the_next_answer();
        let inputs = format!(" On day {n} the king");
        let told = caller
            .post("/generate", turn("tale", &inputs, 6))
            .await
            .ok();
        assert_eq!(setting.proxy.lost(), n, "the answer was not lost");
        expected.extend(adds(&reference, &inputs, &told));
        assert_eq!(history(&caller).await, expected, "turn {n}");
    }
    println!("5 confirmations lost: 5 turns kept, each once");
    drop(setting.cluster);
}

/// Another server has continued the session before the first one can look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_known_to_be_kept_even_after_another_came() {
    let Some(setting) = Setting::start("overtaken").await else {
        return;
    };
    let reference = Reference::start();
    let caller = setting.server.caller();
    let other = Process::with_store(&setting.url, &[]);
    let other = other.caller();
    setting.proxy.cut_at_the_next_answer();
    let first = tokio::spawn({
        let caller = caller.clone();
        async move { caller.post("/generate", turn("tale", "Once", 6)).await }
    });
    lost(&setting.proxy, 1).await;
    let second = other.post("/generate", turn("tale", " He", 6)).await.ok();
    assert!(!first.is_finished());
    setting.proxy.mend();
    let first = first.await.expect("an answer").ok();
    let expected = [
        adds(&reference, "Once", &first),
        adds(&reference, " He", &second),
    ];
    assert_eq!(history(&caller).await, expected.concat());
    drop(setting.cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_fate_can_not_be_read_is_said_to_be_unknown() {
    let Some(setting) = Setting::start("unknown").await else {
        return;
    };
    let caller = setting.server.caller();
    setting.proxy.cut_at_the_next_answer();
    let begun = Instant::now();
    let answer = caller.post("/generate", turn("tale", "Once", 6)).await;
    assert_eq!(answer.status, 500, "{}", answer.body);
    assert_eq!(answer.body["error_type"], "session_state_unknown");
    assert_eq!(answer.header("x-should-retry"), "false");
    assert!(answer.message().contains("\"tale\""), "{}", answer.body);
    assert!(begun.elapsed() < Duration::from_secs(25), "{begun:?}");
    setting.proxy.mend();
    // The turn was kept, as the history shows, and the session continues.
    assert!(history(&caller).await.len() > 1);
    caller.post("/generate", turn("tale", " He", 3)).await.ok();
    drop(setting.cluster);
}

/// A server is cut off while its commit is in flight. When the commit arrives, the lease has expired and
/// another server's turn is stored: only the version protects that turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_on_its_way_for_longer_than_the_lease_changes_nothing() {
    let Some(setting) = Setting::start("fence").await else {
        return;
    };
    let reference = Reference::start();
    let caller = setting.server.caller();
    let told = caller.post("/generate", turn("tale", "Once", 6)).await.ok();
    let before = adds(&reference, "Once", &told);
    let other = Process::with_store(&setting.url, &[]);
    let other = other.caller();
    setting.proxy.stall_at_the_next_commit();
    let late = tokio::spawn({
        let caller = caller.clone();
        async move { caller.post("/generate", turn("tale", " She", 6)).await }
    });
    setting.proxy.stalled().await;
    let told = other.post("/generate", turn("tale", " He", 6)).await.ok();
    let after = [before, adds(&reference, " He", &told)].concat();
    assert!(!late.is_finished());
    setting.proxy.mend();
    let late = late.await.expect("an answer");
    assert_eq!(late.status, 409, "{}", late.body);
    assert!(late.message().contains("not stored"), "{}", late.body);
    for caller in [&caller, &other] {
        assert_eq!(history(caller).await, after);
    }
    drop(setting.cluster);
}
