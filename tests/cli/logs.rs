//! Standard error that is not read, closed, or on a full disk: requests are still answered, lost lines are
//! counted, and the server stops gracefully.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::caller::Caller;
use crate::support::pace::{PATIENCE, until};
use crate::support::process::skald;
use serde_json::{Value, json};

/// A server whose log can't be searched for its address.
struct Mute {
    child: Child,
    caller: Caller,
}

impl Mute {
    async fn start(standard_error: Stdio) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address").to_string();
        drop(free);
        let json = ["--log-format", "json", "--log", "debug"];
        let flags = [&["serve", "--listen", &address], &json[..]].concat();
        let child = skald(&flags)
            .stdout(Stdio::null())
            .stderr(standard_error)
            .spawn()
            .expect("skald runs");
        let server = Self {
            child,
            caller: Caller::new(format!("http://{address}")),
        };
        until("ready", async || {
            let answer = server.caller.try_get("/readyz").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        server
    }

    /// Returns the number of lost lines from `/metrics`.
    async fn lost(&self) -> u64 {
        let metrics = self.caller.get("/metrics").await.body;
        let metrics = metrics.as_str().expect("text");
        let mut lines = metrics.lines();
        let lost = lines.find_map(|line| line.strip_prefix("skald_log_lines_lost_total "));
        lost.expect("the metric").parse().expect("a number")
    }

    /// Sends requests with long log lines until some are lost, and returns the number of requests.
    async fn until_lines_are_lost(&self) -> usize {
        let path = format!("/{}", "x".repeat(4000));
        for count in 1..4000 {
            let answer = tokio::time::timeout(PATIENCE, self.caller.get(&path));
            assert_eq!(answer.await.expect("no request hangs").status, 404);
            if count % 50 == 0 && self.lost().await > 0 {
                return count;
            }
        }
        panic!("no line is lost");
    }

    /// Asserts that generation works, whole and streamed.
    async fn generates(&self) {
        let body = json!({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 3}});
        self.caller.post("/generate", body.clone()).await.ok();
        let events = self.caller.stream("/generate_stream", body).await;
        drop(events);
    }

    /// Asks the server to stop and waits for its graceful exit.
    fn stops(&mut self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", "TERM", &pid]).status();
        assert!(sent.expect("kill runs").success());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_log_that_is_not_read_costs_lines_and_no_request() {
    let mut server = Mute::start(Stdio::piped()).await;
    server.until_lines_are_lost().await;
    server.generates().await;
    // When it is read again, the log continues with whole lines, reports the lost ones, and ends with the
    // last line.
    let pipe = server.child.stderr.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(pipe).lines();
        let lines = lines.map(|line| serde_json::from_str(&line.expect("text")));
        lines.collect::<Result<Vec<Value>, _>>()
    });
    until("all written", async || {
        let before = server.lost().await;
        server.generates().await;
        server.lost().await == before
    })
    .await;
    server.stops();
    let lines = reader.join().expect("no panic").expect("whole lines");
    let message = |line: &&Value| line["message"] == "log lines lost";
    let told = lines.iter().find(message).expect("it says so");
    assert!(told["lost"].as_u64() > Some(0), "{told}");
    // Lines lost just before the last one can be reported after it.
    let last = lines.iter().rfind(|line| !message(line));
    assert_eq!(last.expect("a line")["message"], "stopped");
}

#[tokio::test]
async fn a_log_that_is_never_read_does_not_hold_up_the_end() {
    let mut server = Mute::start(Stdio::piped()).await;
    server.until_lines_are_lost().await;
    server.stops();
}

#[tokio::test]
async fn a_closed_log_costs_lines_and_no_request() {
    let mut server = Mute::start(Stdio::piped()).await;
    drop(server.child.stderr.take());
    for _ in 0..5 {
        server.generates().await;
    }
    until("counted", async || server.lost().await > 0).await;
    server.generates().await;
    server.stops();
}

#[tokio::test]
async fn a_log_on_a_full_disk_costs_lines_and_no_request() {
    let full = File::options().write(true).open("/dev/full");
    let mut server = Mute::start(full.expect("a full disk").into()).await;
    for _ in 0..5 {
        server.generates().await;
    }
    until("counted", async || server.lost().await > 0).await;
    server.stops();
}

#[tokio::test]
async fn a_log_that_is_written_loses_nothing() {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let mut server = Mute::start(log.reopen().expect("it").into()).await;
    for _ in 0..20 {
        server.generates().await;
    }
    assert_eq!(server.lost().await, 0);
    server.stops();
    let lines = std::fs::read_to_string(log.path()).expect("the log");
    let answered = lines.lines().filter(|line| line.contains("/generate"));
    assert!(answered.count() >= 40, "{lines}");
}

/// Neither case may panic, which would exit with code 101.
#[test]
fn a_closed_output_does_not_change_how_a_command_ends() {
    for (arguments, code) in [
        (
            &["serve", "--listen", "127.0.0.1:0", "--model", "a/b/c"][..],
            2,
        ),
        (&["serve", "--threads", "0"], 2),
        // The exit code of a program that SIGPIPE ends.
        (&["openapi"], 141),
    ] {
        let mut child = skald(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("skald runs");
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

/// The test starts itself again as the process that panics, with a closed log.
#[test]
fn a_panic_whose_line_can_not_be_written_is_one_thread_s() {
    const ITSELF: &str = "logs::a_panic_whose_line_can_not_be_written_is_one_thread_s";
    if std::env::var_os("SKALD_TEST_PANIC").is_some() {
        skald::panics::log();
        skald::telemetry::start(skald::config::LogFormat::Json, "info").expect("a filter");
        // Wait until the other end is closed.
        let mut wait = [0];
        std::io::stdin().read_exact(&mut wait).expect_err("its end");
        for _ in 0..10 {
            let panics = std::thread::spawn(|| panic!("injected"));
            panics.join().expect_err("it panicked");
        }
        skald::telemetry::flush_logs();
        assert_eq!(skald::telemetry::lost_log_lines(), 10);
        return;
    }
    let itself = std::env::current_exe().expect("this program");
    let mut child = Command::new(itself)
        .args(["--exact", ITSELF, "--nocapture"])
        .env("SKALD_TEST_PANIC", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    drop(child.stderr.take());
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}
