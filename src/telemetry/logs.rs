//! Logging: filter, format and output.
//!
//! A dedicated thread writes the lines to standard error. The front end opens a span per request with its
//! id and trace id, so every line of a request has them. This module must not log prompts, and no other
//! part of a running server may write to standard error or standard output.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

use super::log_writer::LogWriter;
use crate::config::LogFormat;

/// Default directives, which the filter can override. The exporter warns about every lost batch;
/// `telemetry::export` counts them and warns once a minute instead.
const QUIET: &str = "opentelemetry-otlp=error";
/// Time limit for writing the last lines of a process.
const PATIENCE: Duration = Duration::from_secs(1);

/// The writer of this process; unset before logging is started.
static WRITER: OnceLock<LogWriter> = OnceLock::new();

/// Why logging can't be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter can't be parsed.
    #[error("`log` is not a valid filter: {0}")]
    Filter(#[from] ParseError),
    /// A word of the filter is not a level. Interpreted as a target, it would silence everything else.
    #[error(
        "`log`: {0:?} is not a log level; write error, warn, info, debug, trace or off, or a filter such as \
         `info,skald::engine=debug`"
    )]
    Level(String),
    /// The system can't provide a thread or a file descriptor.
    #[error("logging could not be started: {0}")]
    Start(#[from] io::Error),
}

/// Starts logging for the whole process; later calls have no effect.
///
/// # Errors
/// If `filter` is not a valid filter (`info`, `warn,skald=debug`), or the thread can't be started.
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
    // The standard library's handle would hold its lock for the duration of a write.
    let standard_error = io::stderr().as_fd().try_clone_to_owned()?;
    let writer = LogWriter::start(File::from(standard_error))?;
    let writer = WRITER.get_or_init(|| writer);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Internal errors would bypass the writer thread.
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

/// Returns the number of log lines lost since the start of the process.
#[must_use]
pub fn lost_log_lines() -> usize {
    WRITER.get().map_or(0, LogWriter::lost)
}

/// Writes a line verbatim, after all earlier log lines. If it can't be written, it is lost.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    if let Some(writer) = WRITER.get() {
        writer.push(line.as_bytes());
    } else {
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Waits at most one second until all log lines are written.
pub fn flush_logs() {
    if let Some(writer) = WRITER.get() {
        writer.flush(PATIENCE);
    }
}

/// Flushes logs when dropped, including during a panic.
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
    fn a_misspelt_level_is_found_and_filters_are_accepted() {
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
