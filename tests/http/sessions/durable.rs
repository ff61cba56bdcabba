//! Sessions in a directory or a database continue after a restart.

use serde_json::{Value, json};

use crate::sessions::places::{Fresh, Place};
use crate::sessions::{COMPLETIONS, GENERATE, fresh, native, prompt, told, turn, with};
use crate::support::process::Process;

#[tokio::test]
async fn a_restart_changes_nothing() {
    for place in Place::durable() {
        nothing_is_changed(&place).await;
    }
}

async fn nothing_is_changed(place: &Fresh) {
    let server = place.start(&[]);
    let nobody = server.caller();
    let owner = nobody.with_key("sk-1");
    nobody
        .post(COMPLETIONS, turn("tale", &prompt(300, 1), 40))
        .await
        .ok();
    owner
        .post(GENERATE, native("tale", "Once upon a time", 20))
        .await
        .ok();
    nobody
        .fork("tale", json!({"id": "fork", "at": 75}))
        .await
        .created();
    nobody.fork("tale", json!({"id": "back"})).await.created();
    nobody.rewind("back", json!({"tokens": 33})).await.ok();
    nobody.fork("tale", json!({"id": "gone"})).await.created();
    nobody.delete("/v1/sessions/gone").await.ok();
    let names = ["tale", "fork", "back"];
    let mut before = Vec::new();
    for name in names {
        before.push(lasting(nobody.session(name).await.ok()));
    }
    let owners = lasting(owner.session("tale").await.ok());
    server.stop();

    let server = place.start(&[]);
    let (nobody, owner) = (server.caller(), server.caller().with_key("sk-1"));
    for (name, before) in names.iter().zip(&before) {
        assert_eq!(lasting(nobody.session(name).await.ok()), *before);
    }
    assert_eq!(lasting(owner.session("tale").await.ok()), owners);
    assert_eq!(nobody.session("gone").await.status, 404);
    assert_eq!(server.warnings(), Vec::<String>::new());

    for (name, before) in names.iter().zip(&before) {
        let tokens: Vec<usize> = serde_json::from_value(before["tokens"].clone()).expect("ids");
        let continued = told(
            nobody
                .post(COMPLETIONS, turn(name, &prompt(10, 5), 20))
                .await,
        );
        let whole = fresh(&[tokens, prompt(10, 5)].concat(), 20);
        let stranger = nobody.with_key(if *name == "tale" { "x" } else { name });
        assert_eq!(
            continued,
            told(stranger.post(COMPLETIONS, whole).await),
            "{name}"
        );
    }
}

/// Returns a session without the fields that change by themselves.
fn lasting(mut session: Value) -> Value {
    session["cached_tokens"] = Value::Null;
    session["kv_resident"] = Value::Null;
    session
}

#[tokio::test]
async fn without_a_directory_nothing_outlives_the_server() {
    let server = Process::start(&[]);
    server
        .caller()
        .post(COMPLETIONS, turn("tale", &[1, 2], 2))
        .await
        .ok();
    server.stop();
    let server = Process::start(&[]);
    assert_eq!(server.caller().session("tale").await.status, 404);
}

#[tokio::test]
async fn what_slides_is_the_same_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let slide = json!({"overflow": "slide"});
    let server = Process::on(directory.path(), &[]);
    let body = with(turn("long", &prompt(1010, 1), 60), slide.clone());
    server.caller().post(COMPLETIONS, body).await.ok();
    server.stop();
    let server = Process::on(directory.path(), &[]);
    let caller = server.caller();
    let history = caller.history("long").await.expect("it is there");
    assert_eq!(history.len(), 1070);
    let history: Vec<usize> = history.into_iter().map(|id| id as usize).collect();
    let body = with(turn("long", &[9, 8, 7], 30), slide.clone());
    let continued = told(caller.post(COMPLETIONS, body).await);
    let whole = with(fresh(&[&history[..], &[9, 8, 7]].concat(), 30), slide);
    assert_eq!(
        continued,
        told(caller.with_key("x").post(COMPLETIONS, whole).await)
    );
}

/// Names are parts of paths, which must stay within the directory.
#[tokio::test]
async fn every_name_a_session_may_have_is_a_session_of_its_own() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("sessions here");
    std::fs::create_dir(&directory).expect("a directory");
    let longest = "x".repeat(128);
    let names = [
        ".",
        "..",
        "...",
        "-",
        "_",
        ":",
        "@",
        "a.b",
        "history",
        "lock",
        "A",
        "a",
        "..:",
        "kv",
        "a.corrupt",
        ".hidden",
        "CON",
        longest.as_str(),
    ];
    let server = Process::on(&directory, &[]);
    let caller = server.caller();
    for (n, name) in names.iter().enumerate() {
        caller
            .post(COMPLETIONS, turn(name, &prompt(5, n), 1))
            .await
            .ok();
    }
    server.stop();
    let server = Process::on(&directory, &[]);
    let list = server.caller().get("/v1/sessions").await.ok();
    assert_eq!(
        list["data"].as_array().unwrap().len(),
        names.len(),
        "{list}"
    );
    for (n, name) in names.iter().enumerate() {
        // Clients normalize paths, so these two would have to be escaped.
        let history = match *name {
            "." | ".." => continue,
            name => server.caller().history(name).await.expect("it is there"),
        };
        assert_eq!(history[0] as usize, prompt(1, n)[0], "{name}");
    }
    let beside: Vec<_> = std::fs::read_dir(parent.path())
        .expect("a directory")
        .collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
}

#[tokio::test]
async fn a_directory_that_can_not_be_used_is_said_at_the_start() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("a path");
    let mut command = crate::support::process::skald(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--session-dir",
        path,
    ]);
    let output = command.output().expect("skald runs");
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        message.contains(path) && message.contains("session-dir"),
        "{message}"
    );
}
