//! A disk that is full, read-only or gone: turns on sessions fail with the reason, other requests are
//! answered, histories stay unchanged, and sessions work again when the disk does.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::caller::Caller;
use crate::support::pace::until;
use crate::support::process::{Process, skald};

/// A file system in memory; unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// Mounts a file system; `None`, with the reason, if this process must not mount: with
    /// `SKALD_TEST_MOUNT=1` this fails.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs"];
        let mount = Command::new("mount")
            .args(options)
            .arg(directory.path())
            .stderr(Stdio::null())
            .status();
        if !mount.is_ok_and(|status| status.success()) {
            let required = std::env::var_os("SKALD_TEST_MOUNT").is_some_and(|v| v == "1");
            assert!(
                !required,
                "SKALD_TEST_MOUNT=1, and a tmpfs can't be mounted"
            );
            println!("skipped: a tmpfs can't be mounted");
            return None;
        }
        Some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let mut mount = Command::new("mount");
        let status = mount.args(["-o", &options]).arg(self.path()).status();
        assert!(status.expect("mount runs").success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn turn(session: &str) -> Value {
    json!({
        "inputs": " and the king", "session_id": session, "parameters": {"max_new_tokens": 4},
    })
}

/// Asserts that all turns fail with this reason, and that requests without a session are answered.
async fn turns_fail(caller: &Caller, reason: &str) {
    for session in ["tale", "new"] {
        let answer = caller.post("/generate", turn(session)).await;
        assert_eq!(answer.status, 500, "{}", answer.body);
        assert!(answer.message().contains(reason), "{}", answer.body);
    }
    // A stream that has begun reports it in its last event.
    let body = json!({
        "prompt": " and", "session_id": "tale", "max_tokens": 4, "stream": true,
    });
    let answer = caller.post("/v1/completions", body).await;
    let text = answer.body.to_string();
    assert!(text.contains(reason) && !text.contains("[DONE]"), "{text}");
    goes_on_without_sessions(caller).await;
}

async fn goes_on_without_sessions(caller: &Caller) {
    let body = json!({"inputs": "Once", "parameters": {"max_new_tokens": 4}});
    caller.post("/generate", body).await.ok();
    caller.get("/readyz").await.ok();
    caller.get("/metrics").await;
}

/// Asserts that the session continues from its history.
async fn goes_on(caller: &Caller, history: &[u32]) -> Vec<u32> {
    let answer = caller.post("/generate", turn("tale")).await.ok();
    assert!(answer.get("history_lost").is_none());
    let now = caller.history("tale").await.expect("it is there");
    assert!(now.starts_with(history) && now.len() > history.len());
    now
}

#[tokio::test]
async fn a_full_disk_fails_turns_until_there_is_room() {
    let Some(disk) = Disk::mount() else {
        return;
    };
    let server = Process::on(disk.path(), &["--session-kv-size", "0B"]);
    let caller = server.caller();
    caller.post("/generate", turn("tale")).await.ok();
    let history = caller.history("tale").await.expect("it is there");
    let filler = disk.path().join("filler");
    let full = fs::write(&filler, vec![0; 1 << 20]).expect_err("it is full by now");
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    turns_fail(&caller, "No space left on device").await;
    assert_eq!(caller.history("tale").await.as_ref(), Some(&history));
    fs::remove_file(filler).expect("removed");
    goes_on(&caller, &history).await;
    goes_on_without_sessions(&caller).await;
    server.stop();
}

#[tokio::test]
async fn a_read_only_disk_fails_turns_until_it_can_be_written() {
    let Some(disk) = Disk::mount() else {
        return;
    };
    let server = Process::on(disk.path(), &["--session-kv-size", "0B"]);
    let caller = server.caller();
    caller.post("/generate", turn("tale")).await.ok();
    let history = caller.history("tale").await.expect("it is there");
    disk.remount("ro");
    turns_fail(&caller, "Read-only file system").await;
    assert_eq!(caller.history("tale").await.as_ref(), Some(&history));
    assert_eq!(caller.delete("/v1/sessions/tale").await.status, 500);
    disk.remount("rw");
    goes_on(&caller, &history).await;
    server.stop();
}

#[tokio::test]
async fn a_disk_that_is_gone_fails_turns_until_it_is_back_and_nothing_is_written_in_its_place() {
    let parent = tempfile::tempdir().expect("a directory");
    let (mounted, away) = (parent.path().join("mounted"), parent.path().join("away"));
    let server = Process::on(&mounted, &[]);
    let caller = server.caller();
    caller.post("/generate", turn("tale")).await.ok();
    let history = caller.history("tale").await.expect("it is there");
    fs::rename(&mounted, &away).expect("moved");
    // As an empty mount point.
    fs::create_dir(&mounted).expect("made");
    turns_fail(&caller, "is gone").await;
    // An unknown history must not look like a session that does not exist.
    assert_eq!(caller.session("tale").await.status, 500);
    assert_eq!(caller.get("/v1/sessions").await.status, 500);
    let there = fs::read_dir(&mounted).expect("a directory").count();
    assert_eq!(there, 0);
    fs::remove_dir(&mounted).expect("removed");
    fs::rename(&away, &mounted).expect("moved back");
    goes_on(&caller, &history).await;
    server.stop();
}

/// Without a handler, the signal that accompanies the error would end the process.
#[tokio::test]
async fn a_limit_on_the_size_of_files_fails_the_turn_that_reaches_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path");
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("an address").to_string();
    drop(free);
    let flags = ["serve", "--listen", &address, "--session-dir", path];
    let server = skald(&flags);
    let mut limited = Command::new("sh");
    // 8 blocks of 512 or 1024 bytes.
    limited
        .args(["-c", "ulimit -f 8; exec \"$@\"", "sh"])
        .arg(server.get_program())
        .args(server.get_args())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = limited.spawn().expect("sh runs");
    let caller = Caller::new(format!("http://{address}"));
    until("ready", async || {
        let answer = caller.try_get("/readyz").await;
        answer.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    let prompt: Vec<u32> = (0..500).collect();
    let body = json!({
        "prompt": prompt, "max_tokens": 1, "session_id": "tale", "overflow": "slide",
    });
    let mut history = Vec::new();
    let refused = loop {
        let answer = caller.post("/v1/completions", body.clone()).await;
        if answer.status != 200 {
            break answer;
        }
        history = caller.history("tale").await.expect("it is there");
        assert!(history.len() < 8192, "no limit holds");
    };
    assert_eq!(refused.status, 500, "{}", refused.body);
    assert!(
        refused.message().contains("File too large"),
        "{}",
        refused.body
    );
    assert!(!history.is_empty());
    assert_eq!(caller.history("tale").await, Some(history));
    goes_on_without_sessions(&caller).await;
    child.kill().expect("a signal");
    child.wait().expect("it ends");
}
