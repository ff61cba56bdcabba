//! The `skald` command from outside: exit codes, messages, layers of settings, and a server from start to
//! stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::pace::PATIENCE;
use crate::support::process::skald;
use serde_json::Value;

pub fn output(command: &mut Command) -> Output {
    command.output().expect("skald runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts that a command fails with exit code 2 and a message that contains all of `words`.
#[track_caller]
fn is_refused(command: &mut Command, words: &[&str]) {
    let output = output(command);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} in {message}");
    }
}

fn toml(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(content.as_bytes()).expect("written");
    file
}

fn config(file: &tempfile::NamedTempFile) -> Command {
    let path = file.path().to_str().expect("a path");
    skald(&["serve", "--config", path])
}

/// A server process; killed when dropped.
struct Server {
    child: Child,
    address: String,
    log: BufReader<std::process::ChildStderr>,
}

impl Server {
    /// Starts `skald serve` on a free port and waits until it is ready.
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("skald runs");
        let mut log = BufReader::new(child.stderr.take().expect("a pipe"));
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).expect("a log") > 0, "it ended");
            let line: Value = serde_json::from_str(&line).expect("every log line is JSON");
            let message = line["message"].as_str().unwrap_or_default();
            if let Some(address) = message.strip_prefix("ready at http://") {
                break address.to_owned();
            }
        };
        Self {
            child,
            address,
            log,
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn info(&self) -> Value {
        let answer = self.get("/info");
        let body = answer.split("\r\n\r\n").nth(1).expect("a body");
        serde_json::from_str(body).expect("JSON")
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_names_every_subcommand_and_gives_examples() {
    let help = text(&output(&mut skald(&["--help"])).stdout);
    for word in [
        "serve", "generate", "bench", "pull", "health", "openapi", "curl -N",
    ] {
        assert!(help.contains(word), "{word} in {help}");
    }
    let serve = text(&output(&mut skald(&["serve", "--help"])).stdout);
    for word in [
        "--kv-memory",
        "SKALD_KV_MEMORY",
        "default: 1GiB",
        "Examples",
    ] {
        assert!(serve.contains(word), "{word} in {serve}");
    }
}

#[test]
fn a_misspelt_flag_or_value_is_refused_with_the_nearest() {
    is_refused(&mut skald(&["serve", "--thread", "2"]), &["--threads"]);
    is_refused(&mut skald(&["serve", "--dtype", "q4"]), &["q8", "bf16"]);
    is_refused(&mut skald(&["serve", "--threads", "0"]), &["--threads"]);
    is_refused(
        &mut skald(&["serve", "--device", "gpu"]),
        &["cpu", "candle"],
    );
    is_refused(
        &mut skald(&["serve", "--max-batch", "9000"]),
        &["max-batch", "9000", "4096"],
    );
    is_refused(&mut skald(&["sreve"]), &["serve"]);
}

#[test]
fn candle_refuses_precisions_that_it_does_not_compute_in() {
    for dtype in ["bf16", "q8"] {
        is_refused(
            &mut skald(&["generate", "--device", "candle", "--dtype", dtype, "Once"]),
            &["`dtype`", dtype, "`device`", "f32"],
        );
    }
}

#[test]
fn a_configuration_file_that_is_wrong_is_refused_with_file_and_line() {
    let misspelt = toml("model = \"builtin\"\n\nkv_memory = \"1GiB\"\n");
    let name = misspelt.path().to_str().expect("a path");
    is_refused(
        &mut config(&misspelt),
        &[name, "line 3", "kv_memory", "kv-memory"],
    );
    is_refused(&mut config(&toml("model = 3\n")), &["model", "string"]);
    is_refused(&mut config(&toml("model = \n")), &["line 1"]);
    is_refused(
        &mut config(&toml("drain-timeout = \"soon\"\n")),
        &["soon", "30s"],
    );
    is_refused(
        &mut skald(&["serve", "--config", "no-such-file.toml"]),
        &["no-such-file.toml"],
    );
}

#[test]
fn a_setting_of_zero_is_refused_in_plain_words() {
    for (arguments, words) in [
        (
            &["serve", "--max-pending", "0"] as &[&str],
            &["--max-pending", "64 KiB"],
        ),
        (&["serve", "--threads", "0"], &["--threads", "1 to 1024"]),
        (
            &["generate", "x", "--threads", "0"],
            &["--threads", "1 to 1024"],
        ),
        (
            &["keys", "create", "a", "--requests-per-minute", "0"],
            &["--requests-per-minute", "1 to 4294967295"],
        ),
        (
            &["keys", "create", "a", "--concurrent-requests", "0"],
            &["--concurrent-requests", "1 to 4294967295"],
        ),
    ] {
        is_refused(&mut skald(arguments), words);
    }
    let file = toml("threads = 0\n");
    let name = file.path().to_str().expect("a path");
    let mut serve = skald(&["serve", "--config", name]);
    is_refused(&mut serve, &["line 1", "1 to 1024"]);
}

#[test]
fn a_model_that_can_not_be_used_is_refused() {
    is_refused(&mut skald(&["serve", "--model", "a/b/c"]), &["a/b/c"]);
    let empty = tempfile::tempdir().expect("a directory");
    let path = empty.path().to_str().expect("a path");
    is_refused(
        &mut skald(&["serve", "--listen", "127.0.0.1:0", "--model", path]),
        &["config.json", path],
    );
    is_refused(&mut skald(&["pull", "builtin"]), &["builtin"]);
    is_refused(
        &mut skald(&["generate", "Once", "--temperature=-1"]),
        &["temperature"],
    );
}

#[test]
fn a_chat_template_is_a_file_a_template_or_plain_and_is_checked_at_the_start() {
    let serve = |template: &str| {
        skald(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--chat-template",
            template,
        ])
    };
    is_refused(
        &mut serve("{% for message in messages"),
        &["`chat-template`", "syntax error", ":1"],
    );
    is_refused(
        &mut serve("no-such-file.jinja"),
        &["chat-template", "no-such-file.jinja"],
    );
    let broken = toml("a\n{% if %}");
    let name = broken.path().to_str().expect("a path");
    is_refused(&mut serve(name), &[name, "syntax error", ":2"]);
    let whole = toml("{{ messages[0].content }}");
    let name = whole.path().to_str().expect("a path");
    let origin = |server: Server| server.info()["model"]["chat_template"].clone();
    let mut by_variable = skald(&["serve"]);
    by_variable.env("SKALD_CHAT_TEMPLATE", name);
    assert_eq!(origin(Server::start(&mut by_variable)), name);
    assert_eq!(origin(Server::start(&mut skald(&["serve"]))), "plain");
}

#[test]
fn flags_win_over_the_environment_that_over_the_file_that_over_defaults() {
    let file = toml("max-queue = 11\nmax-batch = 12\nserved-model-name = \"teller\"\n");
    let server = Server::start(
        config(&file)
            .env("SKALD_MAX_QUEUE", "21")
            .env("SKALD_MAX_BATCH", "22")
            .args(["--max-queue", "31"]),
    );
    let info = server.info();
    assert_eq!(info["model_id"], "teller");
    assert_eq!(info["limits"]["max_queue_requests"], 31);
    assert_eq!(info["limits"]["max_batch_requests"], 22);
    // More choices would never fit the queue.
    assert_eq!(info["limits"]["max_choices"], 31);
    assert!(server.get("/v1/models/builtin").contains("200 OK"));
    assert!(server.get("/v1/models/gpt2").contains("404"));
}

#[test]
fn a_server_tells_what_it_runs_and_stops_at_sigterm() {
    let mut server = Server::start(&mut skald(&["serve"]));
    assert!(server.get("/health").contains("200 OK"));
    server.signal("TERM");
    let mut rest = String::new();
    server.log.read_to_string(&mut rest).expect("a log");
    assert!(rest.contains("stopped"), "{rest}");
    let status = server.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
}

/// Starts `skald serve`, stops it when it is ready, and returns the lines of the log.
pub fn log_of(command: &mut Command) -> Vec<Value> {
    let mut child = command
        .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("skald runs");
    let log = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut lines = Vec::new();
    for line in log.lines() {
        let Ok(line) = serde_json::from_str::<Value>(&line.expect("a log")) else {
            continue; // the command's own last words
        };
        let ready = line["message"].as_str().unwrap_or_default();
        if ready.starts_with("ready at") {
            child.kill().expect("a signal");
        }
        lines.push(line);
    }
    child.wait().expect("it ends");
    lines
}

#[test]
fn the_log_tells_threads_and_memory_and_what_set_them() {
    let logged = |log: &[Value], field: &str| {
        let found = log.iter().find_map(|line| line.get(field));
        found.cloned().unwrap_or_default()
    };
    let flags = ["serve", "--threads", "3", "--kv-memory", "96MiB"];
    let log = log_of(&mut skald(&flags));
    assert_eq!(logged(&log, "threads"), 3);
    assert_eq!(logged(&log, "threads_from"), "setting");
    assert_eq!(logged(&log, "kv_cache"), "96.0 MiB");
    assert_eq!(logged(&log, "kv_cache_from"), "setting");

    let log = log_of(&mut skald(&["serve"]));
    let available = std::thread::available_parallelism().expect("a number");
    assert_eq!(logged(&log, "threads"), available.get());
    assert_ne!(logged(&log, "threads_from"), "setting");
    assert_ne!(logged(&log, "kv_cache_from"), "setting");
    if cfg!(target_os = "linux") {
        assert!(logged(&log, "memory_limit").is_string());
    }
}

#[test]
fn a_context_is_as_long_as_the_kv_cache_holds() {
    let length = |flags: &[&str]| {
        let log = log_of(&mut skald(&[&["serve"], flags].concat()));
        let found = log.iter().find_map(|line| line.get("context_length"));
        let warned = log.iter().any(|line| line["level"] == "WARN");
        (found.and_then(Value::as_u64), warned)
    };
    let all = ["--kv-memory", "96MiB", "--dtype", "q8"];
    assert_eq!(length(&all), (Some(1024), false));
    let shorter = [&all[..], &["--max-context", "100"]].concat();
    assert_eq!(length(&shorter), (Some(100), false));
    // 7,680 bytes a token in bf16.
    let small = ["--kv-memory", "3MiB", "--dtype", "q8"];
    assert_eq!(length(&small), (Some(400), true));
    let failed = output(&mut skald(&["serve", "--max-context", "4096"]));
    assert_eq!(failed.status.code(), Some(2));
    let message = "`max-context` is 4096; it must be at most 1024";
    assert!(text(&failed.stderr).contains(message));
}

#[test]
fn a_kv_cache_that_exceeds_the_memory_is_pointed_out() {
    let Some(limit) = skald::resources::memory_limit() else {
        eprintln!("skipped: this system tells no memory limit");
        return;
    };
    // With the weights, this exceeds the memory. If the system does not promise that much, the server exits
    // after the warning.
    let all = limit.value.as_u64().to_string();
    let log = log_of(&mut skald(&["serve", "--kv-memory", &all]));
    let warned = log.iter().find(|line| line["level"] == "WARN");
    let message = warned.expect("a warning")["message"].to_string();
    assert!(message.contains("memory limit"), "{message}");
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let failed = output(&mut skald(&["serve", "--listen", &address]));
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains(&address));
}

#[test]
fn generate_gives_the_same_text_for_the_same_seed() {
    let tell = || {
        let mut command = skald(&["generate", "Once upon a time", "--seed", "7", "-n", "20"]);
        let output = output(&mut command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let tale = tell();
    assert!(tale.len() > 20);
    assert_eq!(tale, tell());
}

#[test]
fn generate_reads_standard_input_and_writes_json() {
    let mut child = skald(&["generate", "-", "--json", "-n", "5", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("skald runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"The wolf said").expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["tokens"], 5);
    assert_eq!(answer["finish_reason"], "length");
    assert!(answer["seed"].is_u64() && answer["text"].is_string());
}

#[test]
fn openapi_prints_the_contract_that_is_in_the_repository() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.yaml");
    let committed = std::fs::read_to_string(path).expect("the contract");
    assert_eq!(text(&output(&mut skald(&["openapi"])).stdout), committed);
    let json = output(&mut skald(&["openapi", "--json"])).stdout;
    let contract: Value = serde_json::from_slice(&json).expect("JSON");
    assert!(contract["paths"]["/generate"].is_object());
}

#[test]
fn an_environment_variable_that_sets_nothing_is_pointed_out() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = skald(&["serve", "--listen", &address]);
    let log = text(&output(command.env("SKALD_KV_MEMROY", "1GiB")).stderr);
    assert!(log.contains("SKALD_KV_MEMROY") && log.contains("SKALD_KV_MEMORY"));
}

/// The test starts itself again as the process that panics.
#[test]
fn a_panic_is_a_line_of_the_log_that_names_its_place() {
    const ITSELF: &str = "commands::a_panic_is_a_line_of_the_log_that_names_its_place";
    if std::env::var_os("SKALD_TEST_PANIC").is_some() {
        skald::panics::log();
        skald::telemetry::start(skald::config::LogFormat::Json, "info").expect("a filter");
        let worker = std::thread::Builder::new().name("a worker".to_owned());
        let panics = worker.spawn(|| panic!("injected {}", 1)).expect("a thread");
        panics.join().expect_err("it panicked");
        skald::telemetry::flush_logs();
        return;
    }
    let itself = std::env::current_exe().expect("this program");
    let mut command = Command::new(itself);
    command.args(["--exact", ITSELF, "--nocapture"]);
    for (backtrace, is_there) in [("0", false), ("1", true)] {
        let child = command
            .env("SKALD_TEST_PANIC", "1")
            .env("RUST_BACKTRACE", backtrace);
        let log = text(&output(child).stderr);
        let lines = log.lines().filter(|line| line.starts_with('{'));
        let lines: Vec<Value> = lines
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect();
        let [line] = &lines[..] else {
            panic!("one line: {log}");
        };
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["failure"], "injected 1");
        assert_eq!(line["thread"], "a worker");
        let place = line["location"].as_str().expect("a place");
        assert!(place.starts_with("tests/cli/commands.rs:"), "{place}");
        assert_eq!(line["backtrace"].is_string(), is_there, "{line}");
    }
}

/// A server whose log is not read still answers.
#[test]
fn a_second_signal_ends_a_draining_server_at_once() {
    let mut server = Server::start(&mut skald(&["serve", "--drain-timeout", "10m"]));
    let mut stream = TcpStream::connect(&server.address).expect("a connection");
    let body = r#"{"prompt":"Once","stream":true,"overflow":"slide","max_tokens":100000,"ignore_eos":true}"#;
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut begun = [0; 64];
    stream.read_exact(&mut begun).expect("the answer begins");
    server.signal("TERM");
    // Signals that arrive together count as one, so the second is sent after the first was handled.
    let deadline = Instant::now() + PATIENCE;
    while !server.get("/readyz").starts_with("HTTP/1.1 503") {
        assert!(Instant::now() < deadline, "it does not drain");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(server.child.try_wait().expect("a status").is_none());
    // Signals that arrive close together count as one, so it is repeated until it counts.
    let ended = loop {
        server.signal("TERM");
        if let Some(ended) = server.child.try_wait().expect("a status") {
            break ended;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ended.code(), Some(130));
}
