//! The `skald` command, and servers in processes of their own, which can be killed.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::NamedTempFile;

use super::caller::Caller;
use super::pace::PATIENCE;

/// Returns the command without settings of this environment.
pub fn skald(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skald"));
    let ours = std::env::vars().map(|(name, _)| name);
    let sets = |name: &String| {
        ["SKALD_", "HF_", "OTEL_"]
            .iter()
            .any(|p| name.starts_with(p))
    };
    for name in ours.filter(sets) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Settings that most tests rely on.
const DEFAULTS: [[&str; 2]; 4] = [
    ["--listen", "127.0.0.1:0"],
    ["--dtype", "f32"],
    ["--threads", "2"],
    ["--generation-config", "none"],
];

/// A server process with the built-in model in f32 and without its sampling defaults, like
/// [`TestServer`](super::TestServer); killed when dropped.
pub struct Process {
    child: Child,
    log: NamedTempFile,
}

impl Process {
    /// Starts `skald serve` on a free port without waiting for it. The URL of a database is passed in the
    /// environment, as recommended.
    pub fn spawn(flags: &[&str]) -> Self {
        match flags.iter().position(|flag| *flag == "--session-store") {
            Some(at) => {
                let rest = [&flags[..at], &flags[at + 2..]].concat();
                Self::spawn_in(&[("SKALD_SESSION_STORE", flags[at + 1])], &rest)
            }
            None => Self::spawn_in(&[], flags),
        }
    }

    /// Starts `skald serve` with a limit of open files, and waits until it is ready.
    #[track_caller]
    pub fn start_with_files(files: usize, flags: &[&str]) -> Self {
        let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command
            .args(["-c", &limited])
            .arg(env!("CARGO_BIN_EXE_skald"));
        let mut server = Self::run(command, &[], flags);
        server.wait_until_ready();
        server
    }

    /// Starts `skald serve` with these variables, without waiting for it.
    pub fn spawn_in(environment: &[(&str, &str)], flags: &[&str]) -> Self {
        Self::run(skald(&[]), environment, flags)
    }

    fn run(mut command: Command, environment: &[(&str, &str)], flags: &[&str]) -> Self {
        let unless_given = DEFAULTS
            .into_iter()
            .filter(|[flag, _]| !flags.contains(flag));
        let log = NamedTempFile::new().expect("a file");
        let file = || File::options().append(true).open(log.path()).expect("it");
        let child = command
            .args(["serve", "--log-format", "json"])
            .args(unless_given.flatten())
            .args(flags)
            .envs(environment.iter().copied())
            .stdout(file())
            .stderr(file())
            .spawn()
            .expect("skald runs");
        Self { child, log }
    }

    /// Starts `skald serve` on a free port and waits until it is ready.
    #[track_caller]
    pub fn start(flags: &[&str]) -> Self {
        let mut server = Self::spawn(flags);
        server.wait_until_ready();
        server
    }

    /// Starts `skald serve` with these variables, and waits until it is ready.
    #[track_caller]
    pub fn start_in(environment: &[(&str, &str)], flags: &[&str]) -> Self {
        let mut server = Self::spawn_in(environment, flags);
        server.wait_until_ready();
        server
    }

    /// Starts a server with a session directory.
    #[track_caller]
    pub fn on(directory: &Path, flags: &[&str]) -> Self {
        let directory = directory.to_str().expect("a path in UTF-8");
        Self::start(&[&["--session-dir", directory], flags].concat())
    }

    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.address().is_none() {
            let ended = self.child.try_wait().expect("a status");
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the address of the server when it is ready.
    pub fn address(&self) -> Option<String> {
        self.messages()
            .find_map(|line| Some(line.strip_prefix("ready at ")?.to_owned()))
    }

    /// Returns the messages of the log, without their fields.
    fn messages(&self) -> impl Iterator<Item = String> {
        self.lines()
            .into_iter()
            .filter_map(|line| Some(line["message"].as_str()?.to_owned()))
    }

    /// Returns the lines of the log.
    fn lines(&self) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Returns the lines of the log with this message.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        let mut lines = self.lines();
        lines.retain(|line| line["message"] == message);
        lines
    }

    /// Returns the whole log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("the log")
    }

    /// Waits until the log has a line with this message, and returns the last one.
    #[track_caller]
    pub fn until_logged(&self, message: &str) -> Value {
        self.until_logged_where(message, |_| true)
    }

    /// Waits until the log has a line with this message that `is_wanted`: a line about a request can be
    /// written after its answer has arrived.
    #[track_caller]
    pub fn until_logged_where(&self, message: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.logged(message).into_iter().rfind(&is_wanted) {
                return line;
            }
            assert!(Instant::now() < deadline, "no {message:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the lines that are warnings or errors.
    pub fn warnings(&self) -> Vec<String> {
        let loud = |line: &&str| line.contains("\"WARN\"") || line.contains("\"ERROR\"");
        self.log().lines().filter(loud).map(str::to_owned).collect()
    }

    /// Returns a client of the server without a key.
    #[track_caller]
    pub fn caller(&self) -> Caller {
        Caller::new(self.address().expect("it is ready"))
    }

    /// Starts a server with a session database and a short lease.
    #[track_caller]
    pub fn with_store(url: &str, flags: &[&str]) -> Self {
        let store = ["--session-store", url, "--session-lease", "2s"];
        Self::start(&[&store, flags].concat())
    }

    /// Asks the server to stop, as an orchestrator does.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Stops the server gracefully.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.ended()
    }

    /// Waits for the graceful exit.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}\n{}", self.log());
        status
    }

    /// Waits at most `limit` for the graceful exit.
    #[track_caller]
    pub fn ended_within(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        while self.child.try_wait().expect("a status").is_none() {
            assert!(Instant::now() < deadline, "it runs on:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.ended()
    }

    /// Ends the process at once, by SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("a signal");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("a server's warnings: {:#?}", self.warnings());
        }
    }
}
