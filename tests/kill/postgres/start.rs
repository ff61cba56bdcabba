//! Start-up with a database: schemas, passwords, URLs, several models.

use std::process::Output;

use serde_json::json;

use super::turn;
use crate::support::postgres::{Cluster, PASSWORD};
use crate::support::process::{Process, skald};
use crate::support::tiny_model;

/// Runs a server that exits instead of serving. Returns its output.
pub fn refused(url: &str) -> Output {
    let output = skald(&["serve", "--listen", "127.0.0.1:0"])
        .env("SKALD_SESSION_STORE", url)
        .output();
    output.expect("skald runs")
}

/// Asserts exit code 2, and a message with these words and without the password.
#[track_caller]
pub fn is_unusable(output: &Output, words: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for word in words {
        assert!(told.contains(word), "{word:?} in {told}");
    }
    assert!(!told.contains("s3cret"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_together_make_one_schema() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("together").await;
    let flags = ["--session-store", &url];
    let mut servers: Vec<Process> = (0..4).map(|_| Process::spawn(&flags)).collect();
    for server in &mut servers {
        server.wait_until_ready();
        assert_eq!(server.warnings(), Vec::<String>::new());
    }
    let client = cluster.connect("together").await;
    let rows = client.query("SELECT version FROM skald_schema", &[]).await;
    assert_eq!(rows.expect("rows").len(), 2);
    servers[0]
        .caller()
        .post("/generate", turn("tale", "Once", 3))
        .await
        .ok();
    let history = servers[3].caller().history("tale").await;
    assert!(history.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_of_a_newer_server_is_refused() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("newer").await;
    Process::with_store(&url, &[]).stop();
    let client = cluster.connect("newer").await;
    let newer = "INSERT INTO skald_schema (version) VALUES (99)";
    client.batch_execute(newer).await.expect("a row");
    is_unusable(&refused(&url), &["version 99", "update the server"]);
}

/// Tables as the first version made them, with a session, are migrated; what servers of that version
/// then read and write still works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_the_first_version_are_migrated_under_a_server_of_that_version() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("first").await;
    let server = Process::with_store(&url, &[]);
    let caller = server.caller();
    caller
        .post("/generate", turn("tale", "Once upon", 3))
        .await
        .ok();
    let before = caller.history("tale").await.expect("a session");
    server.stop();
    // Back to what the first version had.
    let client = cluster.connect("first").await;
    let back = "ALTER TABLE skald_sessions DROP COLUMN forked_from, DROP COLUMN forked_at; \
                DELETE FROM skald_schema WHERE version > 1";
    client.batch_execute(back).await.expect("the first version");

    let server = Process::with_store(&url, &[]);
    assert_eq!(server.warnings(), Vec::<String>::new());
    let caller = server.caller();
    let tale = caller.session("tale").await.ok();
    assert_eq!(tale["tokens"], json!(before));
    assert_eq!(tale["forked_from"], json!(null));
    let fork = json!({"id": "fork", "at": 2});
    let fork = caller.fork("tale", fork).await.created();
    assert_eq!(fork["forked_from"], json!({"id": "tale", "at": 2}));
    // A turn of a server of the first version: it takes, then commits.
    let seize = "UPDATE skald_sessions SET version = nextval('skald_session_version'), \
                holder = 'old', held_until = clock_timestamp() + interval '10 seconds' \
                WHERE id = 'fork' AND holder IS NULL \
                RETURNING version, tokens, created, last_used";
    let taken = client.query_one(seize, &[]).await.expect("it is free");
    assert_eq!(taken.get::<_, Vec<u8>>("tokens").len(), 8);
    let commit = "UPDATE skald_sessions SET tokens = tokens || '\\x05000000', \
                  last_used = statement_timestamp(), turns = turns || version, \
                  holder = NULL, held_until = NULL WHERE id = 'fork' AND holder = 'old'";
    assert_eq!(client.execute(commit, &[]).await.expect("a commit"), 1);
    let insert = "INSERT INTO skald_sessions (tokenizer, tenant, id, version, tokens, created, last_used) \
                  SELECT tokenizer, tenant, 'theirs', nextval('skald_session_version'), tokens, created, \
                  last_used FROM skald_sessions WHERE id = 'tale'";
    client
        .batch_execute(insert)
        .await
        .expect("a session of theirs");
    let after = caller.session("fork").await.ok();
    assert_eq!(after["token_count"], 3);
    assert_eq!(after["forked_from"], json!({"id": "tale", "at": 2}));
    let theirs = caller.session("theirs").await.ok();
    assert_eq!(theirs["forked_from"], json!(null));
    caller.post("/generate", turn("fork", " a", 2)).await.ok();
    let kept = caller.session("fork").await.ok();
    assert_eq!(kept["forked_from"], json!({"id": "tale", "at": 2}));
}

/// A role without the right to create tables can use existing ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_only_reads_and_writes_rows_is_enough() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("least").await;
    let client = cluster.connect("least").await;
    let role = format!(
        "CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'; \
         REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    );
    client.batch_execute(&role).await.expect("a role");
    let theirs = url.replace("skald:", "clerk:");
    is_unusable(&refused(&theirs), &["permission denied", "clerk@127.0.0.1"]);
    Process::with_store(&url, &[]).stop();
    let rights = "GRANT SELECT, INSERT, UPDATE, DELETE ON skald_sessions TO clerk; \
                  GRANT SELECT ON skald_schema TO clerk; \
                  GRANT USAGE ON SEQUENCE skald_session_version TO clerk";
    client.batch_execute(rights).await.expect("rights");
    let server = Process::with_store(&theirs, &[]);
    let caller = server.caller();
    caller.post("/generate", turn("tale", "Once", 3)).await.ok();
    assert_eq!(server.warnings(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_used_is_said_without_the_password() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let wrong = cluster.url_with("s3cret-and-wrong", "postgres");
    is_unusable(
        &refused(&wrong),
        &[
            "session-store",
            "skald@127.0.0.1",
            "password authentication failed",
        ],
    );
    is_unusable(
        &refused(&cluster.url("nowhere")),
        &["nowhere", "does not exist"],
    );
    let required = format!("{}?sslmode=require", cluster.url("postgres"));
    is_unusable(&refused(&required), &["TLS"]);
    for url in [
        "mysql://skald:s3cret@127.0.0.1/x",
        "postgres://skald:s3cret@or@127.0.0.1/x",
        "postgres://skald:s3cret@127.0.0.1:s3cret/x",
        "postgres://skald:s3cret@127.0.0.1/x?sslmode=perhaps",
    ] {
        is_unusable(&refused(url), &["session-store"]);
    }
    // A configuration file with a syntax error in the line of the password.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let broken = "session-store = \"postgres://skald:s3cret@127.0.0.1/x\n";
    std::fs::write(file.path(), broken).expect("a file");
    let path = file.path().to_str().expect("a path");
    let output = skald(&["serve", "--config", path]).output();
    is_unusable(&output.expect("skald runs"), &[path]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_not_told_anywhere() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("quiet").await;
    // In the arguments, which is discouraged.
    let mut server = Process::spawn_in(&[], &["--log", "trace", "--session-store", &url]);
    server.wait_until_ready();
    let caller = server.caller();
    caller.post("/generate", turn("tale", "Once", 3)).await.ok();
    let mut told = vec![
        caller.get("/info").await.body.to_string(),
        caller.get("/metrics").await.body.to_string(),
    ];
    cluster.stop();
    let away = caller.post("/generate", turn("tale", " He", 3)).await;
    assert_eq!(away.status, 503, "{}", away.body);
    told.push(away.body.to_string());
    let help = skald(&["serve", "--help"])
        .env("SKALD_SESSION_STORE", &url)
        .output();
    let help = String::from_utf8(help.expect("help").stdout).expect("text");
    assert!(help.contains("SKALD_SESSION_STORE"), "{help}");
    told.push(help);
    let log = server.log();
    assert!(log.contains("is in the list of processes"), "{log}");
    assert!(log.contains("session database unavailable"), "{log}");
    told.push(log);
    for text in told {
        assert!(!text.contains(PASSWORD), "{text}");
    }
}

/// The password in one variable and the URL in another, so neither is in the list of processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_may_be_in_the_environment() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster
        .url("postgres")
        .replace(&format!(":{PASSWORD}@"), "@");
    is_unusable(&refused(&url), &["password"]);
    let mut server = Process::spawn_in(
        &[("SKALD_SESSION_STORE", &url), ("PGPASSWORD", PASSWORD)],
        &[],
    );
    server.wait_until_ready();
    let caller = server.caller();
    caller.post("/generate", turn("tale", "Once", 3)).await.ok();
    assert_eq!(server.warnings(), Vec::<String>::new());
}

/// A session belongs to one tokenizer; sessions of the same name and different tokenizers are separate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_on_one_database_do_not_touch_each_other_s_sessions() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("models").await;
    let model = tempfile::tempdir().expect("a directory");
    tiny_model::write(model.path(), tiny_model::files());
    let path = model.path().to_str().expect("a path");
    let tales = Process::with_store(&url, &[]);
    let letters = Process::with_store(&url, &["--model", path]);
    let (tales, letters) = (tales.caller(), letters.caller());
    tales
        .post("/generate", turn("x", "Once upon", 3))
        .await
        .ok();
    let before = tales.history("x").await;
    assert_eq!(letters.session("x").await.status, 404);
    let list = letters.get("/v1/sessions").await.ok();
    assert_eq!(list["data"], json!([]));
    letters.post("/generate", turn("x", "ab", 2)).await.ok();
    assert_eq!(tales.history("x").await, before);
    letters.delete("/v1/sessions/x").await.ok();
    assert_eq!(tales.history("x").await, before);
}

/// Histories in the database, KV blocks in a directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kv_blocks_may_be_in_a_directory_beside() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("beside").await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path");
    let server = Process::with_store(&url, &["--session-dir", path]);
    let caller = server.caller();
    let long = "Once upon a time there lived a king who had three sons. ".repeat(5);
    caller.post("/generate", turn("tale", &long, 3)).await.ok();
    let before = caller.history("tale").await;
    server.stop();
    assert!(!directory.path().join("sessions").exists());
    let server = Process::with_store(&url, &["--session-dir", path]);
    let caller = server.caller();
    assert_eq!(caller.history("tale").await, before);
    let body = json!({"prompt": " He", "max_tokens": 2, "session_id": "tale"});
    let answer = caller.post("/v1/completions", body).await.ok();
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64() > Some(0), "{answer}");
}
