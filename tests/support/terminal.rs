//! Programs at a terminal: a real pseudo-terminal, from `script` of util-linux, whose keyboard and screen a test
//! has.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for something on the screen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ctrl-C.
pub const INTERRUPT: &str = "\x03";
/// Ctrl-D.
pub const END: &str = "\x04";
/// The arrow key up.
pub const UP: &str = "\x1b[A";

/// A program at a terminal; it is killed when this is dropped.
pub struct Terminal {
    script: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
    /// Bytes on the screen that were looked at.
    seen: usize,
}

impl Terminal {
    /// Starts `skald` with arguments without quotes, in an environment with these changes.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let quoted = arguments.iter().map(|argument| format!(" '{argument}'"));
        let line = format!(
            "exec '{}'{}",
            env!("CARGO_BIN_EXE_skald"),
            quoted.collect::<String>()
        );
        let mut script = Command::new("script");
        script
            .args([
                "--quiet",
                "--return",
                "--flush",
                "--command",
                &line,
                "/dev/null",
            ])
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut script = script.spawn().expect("script runs");
        let keyboard = script.stdin.take().expect("a pipe");
        let mut output = script.stdout.take().expect("a pipe");
        let screen = Arc::<Mutex<Vec<u8>>>::default();
        let written = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                written.lock().expect("the screen").extend(&bytes[..read]);
            }
        });
        Self {
            script,
            keyboard,
            screen,
            seen: 0,
        }
    }

    /// Types.
    pub fn press(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("a terminal");
        self.keyboard.flush().expect("a terminal");
    }

    /// Types a line.
    pub fn enter(&mut self, line: &str) {
        self.press(&format!("{line}\r"));
    }

    /// Waits until `text` is on the screen after what was waited for before. Returns what is between.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let screen = self.screen.lock().expect("the screen").clone();
            let new = String::from_utf8_lossy(&screen[self.seen..]).into_owned();
            if let Some(at) = new.find(text) {
                self.seen += at + text.len();
                return new[..at].to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "{text:?} is not in {new:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until something is on the screen after what was waited for before.
    #[track_caller]
    pub fn wait_for_more(&mut self) {
        let begun = Instant::now();
        while self.screen.lock().expect("the screen").len() <= self.seen {
            assert!(begun.elapsed() < PATIENCE, "nothing more");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end. Returns the exit code, and what is on the screen after what was waited for.
    #[track_caller]
    pub fn end(mut self) -> (i32, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.script.try_wait().expect("a process") {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        std::thread::sleep(Duration::from_millis(50));
        let screen = self.screen.lock().expect("the screen").clone();
        let rest = String::from_utf8_lossy(&screen[self.seen..]).into_owned();
        (status.code().expect("an exit code"), rest)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}
