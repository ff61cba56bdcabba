//! Logs: what is written, where to, and in which form.
//!
//! Lines go to standard error, by way of a thread of their own. The front end opens a span per request
//! with its id and its trace id, which are so on every line written while the request is served.
//! Nothing here may log a prompt, and nothing else in a running server may write to standard error or
//! standard output.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

use super::log_writer::LogWriter;
use crate::config::LogFormat;

/// Directives that hold unless the filter says otherwise. The exporter warns of every batch it
/// loses; `telemetry::export` counts them and warns once a minute instead.
const QUIET: &str = "opentelemetry-otlp=error";
/// How long the last lines of a process may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The process's own, as its subscriber is; none before logs are started.
static WRITER: OnceLock<LogWriter> = OnceLock::new();

/// Why logs can't be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter can't be understood.
    #[error("`log` is not a valid filter: {0}")]
    Filter(#[from] ParseError),
    /// A word of the filter is not a level. Taken for a target, as it would be, it silences everything else.
    #[error(
        "`log`: {0:?} is not a log level; write error, warn, info, debug, trace or off, or a filter such as \
         `info,skald::engine=debug`"
    )]
    Level(String),
    /// The system gives no thread or file descriptor.
    #[error("logs could not be started: {0}")]
    Start(#[from] io::Error),
}

/// Starts logging for the whole process; later calls change nothing.
///
/// # Errors
/// If `filter` is not a valid filter (`info`, `warn,skald=debug`), or the system gives no thread.
pub fn start(format: LogFormat, filter: &str) -> Result<(), LogError> {
    if let Some(word) = unknown_level(filter) {
        return Err(LogError::Level(word.to_owned()));
    }
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}"))?;
    let colours = io::stderr().is_terminal();
    let human = match format {
        LogFormat::Auto => colours,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    if WRITER.get().is_some() {
        return Ok(());
    }
    // Not by the standard library's handle: its lock would be held for as long as a write takes.
    let standard_error = io::stderr().as_fd().try_clone_to_owned()?;
    let writer = LogWriter::start(File::from(standard_error))?;
    let writer = WRITER.get_or_init(|| writer);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // They would go to standard error directly.
        .log_internal_errors(false)
        .with_writer(move || writer.clone());
    let _ = if human {
        builder.with_ansi(colours).with_target(false).try_init()
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init()
    };
    Ok(())
}

/// Returns the first word of a filter that stands alone and is neither a level nor a path.
fn unknown_level(filter: &str) -> Option<&str> {
    let mut words = filter.split(',').map(str::trim);
    words.find(|word| {
        let is_alone = !word.is_empty() && !word.contains(['=', '[', ':']);
        is_alone && *word != "skald" && word.parse::<LevelFilter>().is_err()
    })
}

/// Log lines that were not written since the start of the process.
#[must_use]
pub fn lost_log_lines() -> usize {
    WRITER.get().map_or(0, LogWriter::lost)
}

/// Writes a line as it is, after all that was logged; where it can't be written it is lost.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    if let Some(writer) = WRITER.get() {
        writer.push(line.as_bytes());
    } else {
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Waits until what was logged is written, for a second at most.
pub fn flush_logs() {
    if let Some(writer) = WRITER.get() {
        writer.flush(PATIENCE);
    }
}

/// Flushes logs when it is dropped, also by a panic.
#[derive(Debug)]
pub struct FlushLogs;

impl Drop for FlushLogs {
    fn drop(&mut self) {
        flush_logs();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_told_and_filters_are_not() {
        for filter in ["bogus", "info,foo", "warn, verbose"] {
            assert!(unknown_level(filter).is_some(), "{filter}");
        }
        for filter in [
            "",
            "info",
            "INFO",
            "off",
            "warn,skald=debug",
            "skald",
            "skald::engine",
            "[request]=debug",
        ] {
            assert_eq!(unknown_level(filter), None, "{filter}");
        }
    }
}
