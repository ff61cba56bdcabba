//! Fair sharing between keys: the requests of one don't delay those of another, and priorities order the
//! queue. The tests count steps and starts, not time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::support::keys::{FREE, KeysFile};
use crate::support::pace::{Gate, PATIENCE};
use crate::support::{Answer, Setup, TestServer, client};
use serde_json::{Value, json};
use skald::keys::KeyScope;
use tokio::task::JoinHandle;

const COMPLETIONS: &str = "/v1/completions";

/// The requests of each step so far, by name.
#[derive(Clone, Default)]
struct Steps(Arc<Mutex<Vec<Vec<String>>>>);

impl Steps {
    fn all(&self) -> Vec<Vec<String>> {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.clone()
    }

    /// Returns the names in the order in which the requests began.
    fn begun(&self) -> Vec<String> {
        let mut begun = Vec::new();
        for name in self.all().into_iter().flatten() {
            if !begun.contains(&name) {
                begun.push(name);
            }
        }
        begun
    }
}

/// Starts a server that makes no step until the gate is open, and records the requests of each step.
fn gated(change: impl FnOnce(&mut Setup)) -> (TestServer, Gate, Steps) {
    let (gate, steps) = (Gate::after(0), Steps::default());
    let (hook, noted) = (gate.hook(), steps.clone());
    let mut setup = Setup::default();
    setup.engine.queue_timeout = Duration::from_secs(1000);
    setup.engine.step_hook = Some(Arc::new(move |ids| {
        let names = ids.iter().map(ToString::to_string).collect();
        let mut steps = noted.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.push(names);
        drop(steps);
        hook(ids);
    }));
    change(&mut setup);
    (TestServer::with(setup), gate, steps)
}

/// Makes a server require a key of one of these owners. Returns the keys.
fn with_keys<const N: usize>(setup: &mut Setup, owners: [&str; N]) -> [&'static str; N] {
    let mut file = KeysFile::new();
    let keys = owners.map(|owner| file.add(owner, KeyScope::Generate, FREE));
    setup.access.keys = Some(file.load());
    keys
}

/// Sends a request under a name and with a key.
fn send(
    server: &TestServer,
    (name, key): (&str, &str),
    path: &str,
    body: &Value,
) -> JoinHandle<Answer> {
    let request = client()
        .post(server.url(path))
        .header("x-request-id", name)
        .bearer_auth(key)
        .body(body.to_string());
    tokio::spawn(async move {
        let response = request.send().await.expect("an answer");
        Answer::whole(response).await.expect("a whole body")
    })
}

/// Waits until the step that holds the server is running.
async fn until_held(server: &TestServer) {
    server
        .until("held", |status| !status.silence.is_zero())
        .await;
}

async fn until_waiting(server: &TestServer, requests: usize) {
    server
        .until("waiting", |status| status.waiting == requests)
        .await;
}

#[tokio::test]
async fn two_requests_of_a_key_are_not_behind_the_five_hundred_of_another() {
    let mut keys = ["", ""];
    let (server, gate, steps) = gated(|setup| {
        keys = with_keys(setup, ["many", "few"]);
        setup.engine.max_batch = 4;
        setup.engine.queue_limit = 500;
    });
    let [many, few] = keys;
    let body = json!({"prompt": "A", "max_tokens": 4, "ignore_eos": true});
    let mut answers = vec![send(&server, ("first", many), COMPLETIONS, &body)];
    until_held(&server).await;
    let mut hundred = body.clone();
    hundred["n"] = json!(100);
    for n in 1..=5 {
        let name = format!("many-{n}");
        answers.push(send(&server, (&name, many), COMPLETIONS, &hundred));
        until_waiting(&server, 100 * n).await;
    }
    // The queue is full for this key.
    let refused = send(&server, ("one", many), COMPLETIONS, &body).await;
    let refused = refused.expect("no panic");
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(!refused.header("retry-after").is_empty());
    let answers_of_few =
        ["few-1", "few-2"].map(|name| send(&server, (name, few), COMPLETIONS, &body));
    until_waiting(&server, 502).await;
    let status = server.engine().status();
    assert_eq!(status.tenants_waiting, 2);
    gate.open();
    for answer in answers_of_few {
        answer.await.expect("no panic").ok();
    }
    for answer in answers {
        answer.await.expect("no panic").ok();
    }
    let steps = steps.all();
    let is_few = |step: &Vec<String>| step.iter().any(|name| name.starts_with("few"));
    let last = steps.iter().rposition(is_few).expect("they ran");
    // Alone they take four steps.
    assert!(last <= 12, "{:?}", &steps[..=last]);
    assert!(steps.len() >= 500, "{}", steps.len());
}

#[tokio::test]
async fn endless_streams_of_one_key_give_up_places_to_another() {
    let mut keys = ["", ""];
    let (server, gate, _) = gated(|setup| {
        keys = with_keys(setup, ["many", "few"]);
        setup.engine.max_batch = 2;
    });
    let [many, few] = keys;
    gate.open();
    let endless = crate::support::load::endless();
    let streams: Vec<_> = ["a", "b", "c"]
        .map(|name| send(&server, (name, many), COMPLETIONS, &endless))
        .into();
    server
        .until("full", |status| (status.running, status.waiting) == (2, 1))
        .await;
    let body = json!({"prompt": "A", "max_tokens": 8, "ignore_eos": true});
    for name in ["few-1", "few-2", "few-3"] {
        let answer = send(&server, (name, few), COMPLETIONS, &body).await;
        answer.expect("no panic").ok();
    }
    let status = server.engine().status();
    assert!(status.yields > 0, "{status:?}");
    assert_eq!(status.preemptions, 0);
    for stream in streams {
        assert!(!stream.is_finished());
        stream.abort();
    }
    server
        .until("free", |status| (status.running, status.waiting) == (0, 0))
        .await;
}

/// Returns a request in each dialect, with a priority.
fn prioritized(priority: &Value) -> [(&'static str, Value); 4] {
    [
        (
            COMPLETIONS,
            json!({"prompt": "A", "max_tokens": 2, "priority": priority}),
        ),
        (
            "/v1/chat/completions",
            json!({
                "messages": [{"role": "user", "content": "A"}], "max_tokens": 2,
                "priority": priority,
            }),
        ),
        (
            "/generate",
            json!({"inputs": "A", "parameters": {"max_new_tokens": 2, "priority": priority}}),
        ),
        (
            "/v1/embeddings",
            json!({"input": "A", "priority": priority}),
        ),
    ]
}

#[tokio::test]
async fn a_lower_priority_value_begins_earlier_in_every_dialect() {
    let (server, gate, steps) = gated(|setup| setup.engine.max_batch = 1);
    let first = json!({"prompt": "A", "max_tokens": 1});
    let mut answers = vec![send(&server, ("first", "a"), COMPLETIONS, &first)];
    until_held(&server).await;
    let priorities = [7, 0, -1000, 1000, -1, 0];
    for (n, priority) in priorities.iter().enumerate() {
        let (path, body) = prioritized(&json!(priority))[n % 4].clone();
        let (name, key) = (format!("{priority}#{n}"), ["a", "b"][n % 2]);
        let name = name.replace('#', ":");
        answers.push(send(&server, (&name, key), path, &body));
        until_waiting(&server, n + 1).await;
    }
    gate.open();
    for answer in answers {
        answer.await.expect("no panic").ok();
    }
    let begun = steps.begun();
    let expected = ["-1000:2", "-1:4", "0:1", "0:5", "7:0", "1000:3"];
    let expected = expected.map(|name| format!("{name}/0"));
    assert_eq!(begun[1..], expected);
}

#[tokio::test]
async fn a_key_without_the_permission_may_only_wait_longer() {
    let mut setup = Setup::default();
    let [key] = with_keys(&mut setup, ["ada"]);
    let server = TestServer::with(setup);
    let caller = server.caller().with_key(key);
    for (path, body) in prioritized(&json!(-1)) {
        let refused = caller.post(path, body).await;
        assert_eq!(refused.status, 403, "{path}: {}", refused.body);
        assert!(refused.message().contains("`priority`"), "{path}");
        if path.starts_with("/v1") {
            let error = &refused.body["error"];
            assert_eq!(error["code"], "priority_not_allowed", "{path}");
            assert_eq!(error["param"], "priority", "{path}");
        } else {
            assert_eq!(refused.body["error_type"], "priority_not_allowed");
        }
    }
    for priority in [json!(0), json!(1000), Value::Null] {
        for (path, body) in prioritized(&priority) {
            caller.post(path, body).await.ok();
        }
    }
}

#[tokio::test]
async fn a_priority_is_checked() {
    let server = TestServer::start();
    for wrong in [json!(-1001), json!(1001), json!("first"), json!(0.5)] {
        for (path, body) in prioritized(&wrong) {
            let refused = server.post(path, body).await;
            let is_native = !path.starts_with("/v1");
            let status = if is_native { 422 } else { 400 };
            assert_eq!(refused.status, status, "{path}: {}", refused.body);
            assert!(refused.message().contains("priority"), "{path}");
        }
    }
}

/// Without keys clients could invent tenants, and get a further share with each.
#[tokio::test]
async fn tokens_that_are_checked_against_nothing_share_as_one() {
    let (server, gate, _) = gated(|setup| setup.engine.queue_limit = 2);
    let body = json!({"prompt": "A", "max_tokens": 1});
    let mut answers = vec![send(&server, ("first", "a"), COMPLETIONS, &body)];
    until_held(&server).await;
    for n in 1..=2 {
        answers.push(send(&server, ("more", "a"), COMPLETIONS, &body));
        until_waiting(&server, n).await;
    }
    let refused = send(&server, ("other", "b"), COMPLETIONS, &body).await;
    assert_eq!(refused.expect("no panic").status, 429);
    gate.open();
    for answer in answers {
        answer.await.expect("no panic").ok();
    }
}

/// The prompt of each request is other ids of the same vocabulary, so that they share no prefix.
fn completion_of(ids: std::ops::Range<usize>) -> Value {
    let ids: Vec<usize> = ids.collect();
    json!({"prompt": ids, "max_tokens": 2, "ignore_eos": true})
}

#[tokio::test]
async fn a_short_prompt_is_answered_while_the_long_ones_of_its_key_are_read() {
    let (server, gate, steps) = gated(|setup| {
        setup.engine.max_batch = 8;
        setup.engine.max_step_tokens = 32;
        setup.engine.step_time = PATIENCE;
    });
    let send = |name, body: &Value| send(&server, (name, "a"), COMPLETIONS, body);
    let mut answers = vec![send("first", &completion_of(10..12))];
    until_held(&server).await;
    let requests = [
        ("long-1", completion_of(100..1000)),
        ("long-2", completion_of(200..1100)),
        ("twin-of-1", completion_of(100..1000)),
        ("long-3", completion_of(300..1200)),
        ("short", completion_of(20..30)),
    ];
    for (n, (name, body)) in requests.iter().enumerate() {
        answers.push(send(name, body));
        until_waiting(&server, n + 1).await;
    }
    gate.allow(6);
    // The twin waits for the prompt of the other one, but not in the queue.
    server
        .until("all in the batch", |status| {
            (status.waiting, status.running) == (0, 4)
        })
        .await;
    gate.open();
    for answer in answers {
        answer.await.expect("no panic").ok();
    }
    let steps = steps.all();
    let last = |name: &str| {
        let has = |step: &Vec<String>| step.iter().any(|its| its.starts_with(name));
        steps.iter().rposition(has).expect("it ran")
    };
    assert!(last("short") <= 6, "{steps:?}");
    // 900 tokens in steps of at least 16.
    assert!(last("long-1") >= 28, "{steps:?}");
    let twin = steps
        .iter()
        .flatten()
        .filter(|name| name.starts_with("twin"));
    assert!(twin.count() <= 3, "{steps:?}");
}
