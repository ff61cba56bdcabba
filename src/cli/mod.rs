//! The command line: one file per subcommand.
//!
//! Exit codes: 0 success (a graceful stop included), 1 something failed while running, 2 the
//! command line, the settings or the model can't be used.

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

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use reqwest::Url;
use tokio::signal::unix::SignalKind;

use crate::telemetry::{self, FlushLogs};

/// The exit code for settings and models that can't be used; clap's own for bad flags.
const UNUSABLE: u8 = 2;

/// A shell's exit code for a command that writes to a pipe without a reader.
const ENDED_BY_SIGPIPE: u8 = 141;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "skald",
    version,
    about = "A text-generation server for GPT-2 class language models",
    after_help = "Examples:\n  \
        skald serve\n  \
        curl -N localhost:8080/generate -d '{\"inputs\":\"Once upon a time\",\"stream\":true}'\n\n  \
        skald serve --model openai-community/gpt2 --dtype q8 --threads 4\n  \
        skald generate \"Once upon a time\" --seed 7\n  \
        skald bench --concurrency 8\n  \
        skald health http://localhost:8080\n  \
        skald keys create ada --keys keys.toml\n  \
        skald pull openai-community/gpt2"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over HTTP
    Serve(Box<serve::Serve>),
    /// Generate from one prompt in the terminal
    Generate(generate::Generate),
    /// Measure how fast a server answers under load
    Bench(bench::Bench),
    /// Fetch a model from the hub into the cache, without serving it
    Pull(pull::Pull),
    /// Ask a server whether it is ready
    Health(health::Health),
    /// Create, list and revoke API keys
    Keys(keys::Keys),
    /// Print the `OpenAPI` description
    Openapi(openapi::Openapi),
}

/// Why a command ended early.
#[derive(Debug)]
enum CommandError {
    /// Settings or model can't be used.
    Unusable(anyhow::Error),
    /// Something failed while running.
    Running(anyhow::Error),
}

impl Cli {
    /// Parses the command line; ends the process where it can't be used, or asks for help.
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

    /// Runs the command to its end; failures are told on standard error.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let _flush = FlushLogs;
        let signals = match self.command {
            // Has handlers of its own: it drains.
            Command::Serve(_) => &[] as &[_],
            // Has one for Ctrl-C: it reports what it has measured.
            Command::Bench(_) => &[SignalKind::terminate()],
            _ => &[SignalKind::terminate(), SignalKind::interrupt()],
        };
        if let Err(error) = signals::end_process_one(signals) {
            telemetry::say(&format!(
                "skald: signals will not end this command: {error}"
            ));
        }
        let outcome = match self.command {
            Command::Serve(command) => command.run(),
            Command::Generate(command) => command.run(),
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
        telemetry::say(&format!("skald: {}", told(&error)));
        ExitCode::from(code)
    }
}

/// The reader of standard output has gone away (`| head`); the command ends silently.
#[derive(Debug, thiserror::Error)]
#[error("the reader of standard output has gone away")]
struct ReaderGone;

/// Parses the address of a server; `host:port` is enough.
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
        return Err("expected an http:// or https:// address".to_owned());
    }
    Ok(url)
}

/// Writes to standard output.
///
/// # Errors
/// [`ReaderGone`], and what else the system refuses.
fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(error) => Err(anyhow!("standard output: {error}")),
    }
}

/// Joins an error and its causes, without those whose words it has already said itself.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// An asynchronous runtime of a few threads: the front end's work is small, and the cores belong
/// to the compute threads.
fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("skald-http")
        .enable_all()
        .build()
        .map_err(|error| CommandError::Running(error.into()))
}
