//! Two servers on one directory: the disk is the truth, and one is on a session at a time.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::reference::{Choice, Reference};
use crate::support::caller::{Caller, said};
use crate::support::process::Process;
use crate::support::sse::Live;

/// Two servers that have a directory in common.
struct Pair {
    servers: [Process; 2],
    directory: tempfile::TempDir,
}

impl Pair {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let servers = std::array::from_fn(|_| Process::on(directory.path(), &[]));
        Self { servers, directory }
    }

    fn callers(&self) -> [Caller; 2] {
        self.servers.each_ref().map(Process::caller)
    }
}

fn turn(session: &str, inputs: &str, if_busy: &str) -> Value {
    json!({
        "inputs": inputs, "session_id": session, "if_busy": if_busy,
        "parameters": {"max_new_tokens": 6, "do_sample": false, "details": true},
    })
}

#[tokio::test]
async fn each_goes_on_where_the_other_stopped() {
    let reference = Reference::start();
    let pair = Pair::start();
    let callers = pair.callers();
    let mut history = Vec::new();
    for n in 0..6 {
        let caller = &callers[n % 2];
        let inputs = format!(" On day {n} the king");
        let told = caller
            .post("/generate", turn("tale", &inputs, "wait"))
            .await;
        history.extend(reference.ids(&inputs));
        let expected = reference.next(&history, Choice::Greedy, 6).await;
        assert_eq!(said(&told.ok()), expected, "turn {n}");
        history.extend(expected);
        for caller in &callers {
            assert_eq!(caller.history("tale").await.as_ref(), Some(&history));
        }
    }
    let [one, other] = &callers;
    one.fork("tale", json!({"id": "copy", "at": 20}))
        .await
        .created();
    assert_eq!(
        other.history("copy").await.expect("it is there"),
        history[..20]
    );
    assert_eq!(other.fork("tale", json!({"id": "copy"})).await.status, 409);
    other.rewind("tale", json!({"tokens": 5})).await.ok();
    history.truncate(history.len() - 5);
    assert_eq!(one.history("tale").await, Some(history.clone()));
    let told = one
        .post("/generate", turn("tale", " He", "wait"))
        .await
        .ok();
    history.extend(reference.ids(" He"));
    assert_eq!(
        said(&told),
        reference.next(&history, Choice::Greedy, 6).await
    );

    other.delete("/v1/sessions/tale").await.ok();
    assert_eq!(one.session("tale").await.status, 404);
    let list = one.get("/v1/sessions").await.ok();
    assert_eq!(list["data"].as_array().expect("a list").len(), 1, "{list}");
    one.post("/generate", turn("tale", "Anew", "wait"))
        .await
        .ok();
    let anew = other.history("tale").await.expect("it is there");
    assert!(anew.starts_with(&reference.ids("Anew")) && anew.len() < 20);
}

/// Each of 24 turns from six clients either says that the session is busy or is in the history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_are_in_the_history_or_were_refused() {
    at_once("error").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_that_wait_are_all_in_the_history() {
    at_once("wait").await;
}

async fn at_once(if_busy: &str) {
    let reference = Reference::start();
    let pair = Pair::start();
    let callers = pair.callers();
    let clients = (0..6).map(|client| {
        let caller = callers[client % 2].clone();
        async move {
            let mut answers = Vec::new();
            for n in 0..4 {
                let inputs = format!(" ({client}.{n})");
                let answer = caller
                    .post("/generate", turn("tale", &inputs, if_busy))
                    .await;
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
            409 if if_busy == "error" => {
                assert_eq!(answer.body["error_type"], "conflict");
            }
            status => panic!("{status}: {}", answer.body),
        }
    }
    assert!(told.len() > 1, "only {} of 24 turns", told.len());
    if if_busy == "wait" {
        assert_eq!(told.len(), 24);
    }

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

#[tokio::test]
async fn what_the_other_is_on_is_busy_and_is_free_when_it_is_killed() {
    let pair = Pair::start();
    let [one, other] = pair.callers();
    one.post("/generate", turn("tale", "Once", "wait"))
        .await
        .ok();
    let before = one.history("tale").await.expect("it is there");
    let endless = json!({
        "prompt": " and", "max_tokens": 200_000, "overflow": "slide", "ignore_eos": true,
        "session_id": "tale", "stream": true,
    });
    let mut stream = Live::new(one.send("/v1/completions", endless).await);
    stream.next().await.expect("it runs").expect("an event");

    for answer in [
        other.post("/generate", turn("tale", " He", "error")).await,
        other.post("/generate", turn("tale", " She", "error")).await,
    ] {
        assert_eq!(answer.status, 409, "{}", answer.body);
        assert_eq!(answer.body["error_type"], "conflict");
    }
    let rewind = json!({"tokens": 1, "if_busy": "error"});
    assert_eq!(other.rewind("tale", rewind).await.status, 409);
    // Looking does not wait.
    assert_eq!(other.history("tale").await.as_ref(), Some(&before));
    other.fork("tale", json!({"id": "copy"})).await.created();
    assert_eq!(other.history("copy").await.as_ref(), Some(&before));

    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.post("/generate", turn("tale", " They", "wait")).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    let Pair {
        servers: [mut killed, _left],
        directory,
    } = pair;
    killed.kill();
    waiting.await.expect("it ends").ok();
    let after = other.history("tale").await.expect("it is there");
    assert!(after.starts_with(&before) && after.len() > before.len());
    drop(directory);
}
