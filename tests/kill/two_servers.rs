//! Two servers that share a session store: a session is used by one at a time, and each server continues
//! where the other stopped.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::reference::{Choice, Reference};
use crate::support::caller::{Caller, said};
use crate::support::process::Process;
use crate::support::sse::Live;

/// Two servers with one session store.
pub struct TwoServers<Place> {
    pub servers: [Process; 2],
    /// Directory or database of the store; it exists as long as this.
    pub place: Place,
}

impl<Place> TwoServers<Place> {
    pub fn callers(&self) -> [Caller; 2] {
        self.servers.each_ref().map(Process::caller)
    }
}

/// Returns a greedy turn of six tokens.
fn turn(session: &str, inputs: &str, if_busy: &str) -> Value {
    json!({
        "inputs": inputs, "session_id": session, "if_busy": if_busy,
        "parameters": {"max_new_tokens": 6, "do_sample": false, "details": true},
    })
}

/// Returns a streamed turn that never ends.
pub fn endless(session: &str) -> Value {
    json!({
        "prompt": " and", "max_tokens": 200_000, "overflow": "slide", "ignore_eos": true,
        "session_id": session, "stream": true,
    })
}

pub async fn each_continues_where_the_other_stopped<Place>(pair: TwoServers<Place>) {
    let reference = Reference::start();
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

/// Asserts that each of 24 turns from six clients is either refused because the session is busy, or in the
/// history.
pub async fn turns_at_once<Place>(pair: TwoServers<Place>, if_busy: &str) {
    let reference = Reference::start();
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

    // The history consists of these turns, one after the other.
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

/// Asserts that a session is busy for one server while the other uses it, for at least `held`, and is
/// released when that one is killed.
pub async fn busy_until_the_other_is_killed<Place>(pair: TwoServers<Place>, held: Duration) {
    let [one, other] = pair.callers();
    one.post("/generate", turn("tale", "Once", "wait"))
        .await
        .ok();
    let before = one.history("tale").await.expect("it is there");
    let mut stream = Live::new(one.send("/v1/completions", endless("tale")).await);
    stream.next().await.expect("it runs").expect("an event");

    for inputs in [" He", " She"] {
        let refused = other.post("/generate", turn("tale", inputs, "error")).await;
        assert_eq!(refused.status, 409, "{}", refused.body);
        assert_eq!(refused.body["error_type"], "conflict");
    }
    let rewind = json!({"tokens": 1, "if_busy": "error"});
    assert_eq!(other.rewind("tale", rewind).await.status, 409);
    assert_eq!(other.delete("/v1/sessions/tale").await.status, 409);
    // Reading does not wait.
    assert_eq!(other.history("tale").await.as_ref(), Some(&before));
    other.fork("tale", json!({"id": "copy"})).await.created();
    assert_eq!(other.history("copy").await.as_ref(), Some(&before));

    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.post("/generate", turn("tale", " They", "wait")).await }
    });
    // Only time can show that it continues to wait.
    tokio::time::sleep(held).await;
    assert!(!waiting.is_finished());
    let TwoServers {
        servers: [mut killed, _left],
        place,
    } = pair;
    killed.kill();
    waiting.await.expect("it ends").ok();
    let after = other.history("tale").await.expect("it is there");
    assert!(after.starts_with(&before) && after.len() > before.len());
    drop(place);
}
