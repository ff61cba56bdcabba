//! `skald bench` from outside, against a real server and against servers that misbehave.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{TestServer, load, pace};

fn bench(server: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skald"));
    command
        .env_remove("SKALD_BENCH_API_KEY")
        .args(["bench", &server.to_string()])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn output(server: SocketAddr, arguments: &[&str]) -> Output {
    bench(server, arguments).output().expect("skald runs")
}

fn report(output: &Output) -> Value {
    let message = text(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {message}"))
}

/// Returns the report of a run that succeeds.
#[track_caller]
fn measured(server: SocketAddr, arguments: &[&str]) -> Value {
    let output = output(server, &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    report(&output)
}

/// A timeout that no answer exceeds, however slow the machine is.
const PATIENCE: &str = "180s";

/// Starts a server that answers one request per connection with `answer` and closes the connection.
fn canned(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            // Closing with unread data would reset the connection.
            read_request(&mut stream);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

/// Reads a head, and the body whose length the head declares.
fn read_request(stream: &mut TcpStream) {
    let mut request = BufReader::new(stream);
    let mut length = 0;
    let mut line = String::new();
    while request.read_line(&mut line).is_ok_and(|read| read > 2) {
        let field = line.to_lowercase();
        if let Some(value) = field.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        line.clear();
    }
    let _ = request.read_exact(&mut vec![0; length]);
}

/// Asserts that a run fails with this kind of error for both requests.
#[track_caller]
fn fails_with(server: SocketAddr, timeout: &str, kind: &str, example: &str) {
    let output = output(server, &["--json", "-n", "2", "--timeout", timeout]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("none of 2 requests succeeded"));
    let report = report(&output);
    assert_eq!(report["requests"]["failed"], 2);
    let error = &report["errors"][0];
    assert_eq!((&error["kind"], &error["count"]), (&kind.into(), &2.into()));
    assert!(
        error["example"].as_str().unwrap().contains(example),
        "{error}"
    );
}

#[test]
fn a_closed_loop_measures_every_request_in_the_openai_dialect() {
    let server = TestServer::start();
    let arguments = [
        "-n",
        "6",
        "--concurrency",
        "2",
        "--warmup",
        "2",
        "--prompt-tokens",
        "9",
        "--output-tokens",
        "5",
        "--seed",
        "7",
    ];
    let report = measured(server.address, &arguments);
    assert_eq!(report["api"], "openai");
    assert_eq!(report["model"], "fairy-tales");
    assert_eq!(report["seed"], 7);
    let requests = &report["requests"];
    assert_eq!(requests["completed"], 6);
    for none in ["failed", "rejected", "cancelled"] {
        assert_eq!(requests[none], 0, "{none}");
    }
    let tokens = &report["tokens"];
    assert_eq!(tokens["prompt"], 54, "each word is a token");
    assert_eq!(
        (&tokens["output"], &tokens["output_asked"]),
        (&30.into(), &30.into())
    );
    assert_eq!(tokens["reported"], true);
    assert_eq!(report["errors"], Value::Array(Vec::new()));
    assert_eq!(report["wait_ms"], Value::Null);
    let of = |measure: &str, figure: &str| report[measure][figure].as_f64().expect("a number");
    assert!(of("ttft_ms", "mean") > 0.0 && of("itl_ms", "max") > 0.0);
    assert!(of("ttft_ms", "mean") + of("tpot_ms", "mean") * 4.0 <= of("e2e_ms", "mean") + 0.01);
    assert!(of("e2e_ms", "p50") <= of("e2e_ms", "max"));
    let seconds = report["duration_s"].as_f64().unwrap();
    let rate = report["throughput"]["output_tokens_per_s"]
        .as_f64()
        .unwrap();
    assert!((rate * seconds - 30.0).abs() < 1e-6);
}

#[test]
fn an_open_loop_sends_at_its_rate_in_the_tgi_dialect() {
    let server = TestServer::start();
    let arguments = [
        "--api",
        "tgi",
        "--rate",
        "200",
        "-n",
        "8",
        "-c",
        "3",
        "--prompt-tokens",
        "5..12",
        "--output-tokens",
        "4",
        "--seed",
        "7",
    ];
    let report = measured(server.address, &arguments);
    assert_eq!(report["api"], "tgi");
    assert_eq!(report["load"]["kind"], "open");
    assert_eq!(report["requests"]["completed"], 8);
    assert_eq!(report["tokens"]["output"], 32);
    assert_eq!(report["tokens"]["reported"], true);
    assert_eq!(report["tokens"]["per_event"], 1.0);
    let prompt = report["tokens"]["prompt"].as_u64().unwrap();
    assert!((40..=96).contains(&prompt), "{prompt}");
    assert!(report["wait_ms"]["max"].is_f64());
}

#[test]
fn the_table_is_for_people_and_the_file_for_programs() {
    let server = TestServer::start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("a path");
    let output = output(
        server.address,
        &["-n", "2", "--output-tokens", "3", "--output", path],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for part in [
        "2 completed",
        "output tokens/s",
        "p99",
        "Time to first token",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(output.stderr.is_empty(), "no bar without a terminal");
    let json = std::fs::read_to_string(path).expect("it is there");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["requests"]["completed"], 2);
}

#[test]
fn an_address_without_a_server_is_reported_clearly() {
    // An address that no other test uses, so that the port stays free.
    let free = TcpListener::bind("127.0.0.2:0").expect("a free port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let output = output(address, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains(&format!("can't connect to http://{address}")),
        "{message}"
    );
    assert!(message.contains("refused"), "{message}");
    assert!(output.stdout.is_empty());
}

#[test]
fn refusals_are_counted_by_status_and_429_apart() {
    let server = TestServer::start();
    let long = output(
        server.address,
        &["-n", "3", "--prompt-tokens", "3000", "--json"],
    );
    assert_eq!(long.status.code(), Some(1));
    let report = report(&long);
    assert_eq!(report["errors"][0]["kind"], "HTTP 400");
    assert_eq!(report["errors"][0]["count"], 3);
    assert!(
        report["errors"][0]["example"]
            .as_str()
            .unwrap()
            .contains("1024")
    );

    // One runs and one waits, half a second each: of eight concurrent requests most are refused.
    let busy = load::slow(Duration::from_millis(100), |setup| {
        setup.engine.max_batch = 1;
        setup.engine.queue_limit = 1;
    });
    let report = measured(
        busy.address,
        &["-n", "8", "-c", "8", "--output-tokens", "4"],
    );
    let count = |how: &str| report["requests"][how].as_u64().unwrap();
    assert!(count("rejected") > 0 && count("completed") > 0, "{report}");
    assert_eq!(count("rejected") + count("completed"), 8);
    assert_eq!(report["errors"], Value::Array(Vec::new()));
}

#[test]
fn answers_that_are_not_complete_streams_are_errors() {
    fails_with(
        canned(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{\"choices\": []}",
        ),
        PATIENCE,
        "no event stream",
        "choices",
    );
    fails_with(
        canned(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n",
        ),
        PATIENCE,
        "stream broke off",
        "after 1 event",
    );
    fails_with(
        canned(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {\"error\":{\"message\":\"out of memory\"}}\n\n",
        ),
        PATIENCE,
        "error in the stream",
        "out of memory",
    );
}

#[test]
fn a_server_that_is_too_slow_times_out() {
    let slow = load::slow(Duration::from_millis(100), |_| ());
    fails_with(slow.address, "300ms", "timed out", "300ms");
}

#[test]
fn several_tokens_in_an_event_are_counted_from_usage() {
    let server = canned(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n\
        data: {\"choices\":[{\"text\":\"a b c\"}]}\n\n\
        data: {\"choices\":[{\"text\":\" d e f\",\"finish_reason\":\"length\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":70,\"completion_tokens\":6}}\n\n\
        data: [DONE]\n\n",
    );
    let report = measured(server, &["-n", "3"]);
    assert_eq!(report["model"], Value::Null, "there is no list of models");
    assert_eq!(report["tokens"]["output"], 18);
    assert_eq!(report["tokens"]["prompt"], 210);
    assert_eq!(report["tokens"]["per_event"], 3.0);
}

#[test]
fn ctrl_c_ends_early_and_reports_what_was_measured() {
    let slow = load::slow(Duration::from_millis(5), |_| ());
    let arguments = ["--json", "-c", "2", "-n", "100000", "--output-tokens", "2"];
    let child = bench(slow.address, &arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("skald runs");
    // Wait until requests are running; a request takes at most three steps.
    let deadline = Instant::now() + pace::PATIENCE;
    while slow.engine().status().steps < 100 {
        assert!(Instant::now() < deadline, "it is not under way");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-s", "INT", &pid]).status();
    assert!(sent.expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = report(&output);
    assert_eq!(report["interrupted"], true);
    assert!(report["requests"]["completed"].as_u64().unwrap() > 2);
    assert!(report["requests"]["cancelled"].as_u64().unwrap() <= 2);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let nowhere: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    for (arguments, word) in [
        (["--output-tokens", "9..3"], "ends before"),
        (["--prompt-tokens", "many"], "normal:MEAN"),
        (["--rate", "0"], "0.001"),
        (["--concurrency", "0"], "from 1"),
        (["--duration", "soon"], "30s"),
        (["--output", "no/such/directory/x.json"], "no/such"),
    ] {
        let output = output(nowhere, &arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(word), "{word:?} in {message}");
    }
}
