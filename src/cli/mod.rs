//! The command line: one file per subcommand.
//!
//! Exit codes: 0 for success (including a graceful stop), 1 for a failure while running, 2 for a command
//! line, settings or a model that can't be used.

mod bench;
mod components;
mod generate;
mod health;
mod keys;
mod openapi;
mod pull;
mod reload;
mod serve;
mod signals;
mod trace;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use reqwest::Url;
use tokio::signal::unix::SignalKind;

use crate::telemetry::{self, FlushLogs};

/// The exit code for settings and models that can't be used, which is clap's for wrong flags.
const UNUSABLE: u8 = 2;

/// A shell's exit code for a command that wrote to a pipe without a reader.
const ENDED_BY_SIGPIPE: u8 = 141;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "skald",
    version,
    about = "A text-generation server for small language models",
    after_help = "Examples:\n  \
        skald serve\n  \
        curl -N localhost:8080/generate -d '{\"inputs\":\"Once upon a time\",\"stream\":true}'\n\n  \
        skald serve --model openai-community/gpt2 --dtype q8 --threads 4\n  \
        skald generate \"Once upon a time\" --seed 7\n  \
        skald trace \"Once upon a time\" --out trace.db\n  \
        skald bench --concurrency 8\n  \
        skald health http://localhost:8080\n  \
        skald keys create ada --keys keys.toml\n  \
        skald pull openai-community/gpt2"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// The descriptions are those of the structs.
#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Generate(generate::Generate),
    Trace(trace::Trace),
    Bench(bench::Bench),
    Pull(pull::Pull),
    Health(health::Health),
    Keys(keys::Keys),
    Openapi(openapi::Openapi),
}

/// Why a command failed; decides its exit code.
#[derive(Debug)]
enum CommandError {
    /// The command line, the settings or the model can't be used.
    Unusable(anyhow::Error),
    /// A failure while running.
    Running(anyhow::Error),
}

impl Cli {
    /// Parses the command line. Exits if it is not valid or asks for help.
    #[must_use]
    pub fn parse_arguments() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            let is_health = std::env::args_os()
                .nth(1)
                .is_some_and(|name| name == "health");
            if is_health && error.use_stderr() {
                let _ = error.print();
                // Docker reserves the other exit codes of a health check.
                std::process::exit(1);
            }
            error.exit()
        })
    }

    /// Runs the command to its end. Writes failures to standard error.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let _flush = FlushLogs;
        let signals = match self.command {
            // Has its own handlers, which remove the incomplete file.
            Command::Trace(_) => &[] as &[_],
            // Has its own handlers, which drain.
            Command::Serve(_) => &[],
            // Has its own handler of Ctrl-C, which prints the report.
            Command::Bench(_) => &[SignalKind::terminate()],
            _ => &[SignalKind::terminate(), SignalKind::interrupt()],
        };
        if let Err(error) = signals::end_process_one(signals) {
            telemetry::say(&format!(
                "skald: can't handle signals, which will not end this command: {error}"
            ));
        }
        let outcome = match self.command {
            Command::Serve(command) => command.run(),
            Command::Generate(command) => command.run(),
            Command::Trace(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Pull(command) => command.run(),
            Command::Health(command) => command.run(),
            Command::Keys(command) => command.run(),
            Command::Openapi(command) => command.run(),
        };
        let (code, error) = match outcome {
            Ok(()) => return ExitCode::SUCCESS,
            Err(CommandError::Unusable(error)) => (UNUSABLE, error),
            Err(CommandError::Running(error)) => (1, error),
        };
        if error.is::<ReaderGone>() {
            return ExitCode::from(ENDED_BY_SIGPIPE);
        }
        telemetry::say(&format!("skald: {}", with_causes(&error)));
        ExitCode::from(code)
    }
}

/// Standard output has no reader any more (`| head`); the command ends silently.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
struct ReaderGone;

/// Parses the URL of a server; `host:port` is enough.
///
/// # Errors
/// The reason, without the text.
fn http_url(text: &str) -> Result<Url, String> {
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url = Url::parse(&whole).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("it must begin with http:// or https://".to_owned());
    }
    Ok(url)
}

/// Writes to standard output.
///
/// # Errors
/// [`ReaderGone`], or the system's error.
fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(error) => Err(anyhow!("standard output: {error}")),
    }
}

/// Joins an error and its causes, without causes that are part of the text already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Creates an asynchronous runtime of two threads: the front end has little to compute, and the cores belong
/// to the compute threads.
fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("skald-http")
        .enable_all()
        .build()
        .map_err(|error| CommandError::Running(error.into()))
}
