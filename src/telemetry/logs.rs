//! Logs: what is written, where to, and in which form.
//!
//! Lines go to standard error. The front end opens a span per request with its id and its trace id,
//! which are so on every line written while the request is served. Nothing here may log a prompt.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::LogFormat;

/// Directives that hold unless the filter says otherwise. The exporter warns of every batch it
/// loses; `telemetry::export` counts them and warns once a minute instead.
const QUIET: &str = "opentelemetry-otlp=error";

/// Starts logging for the whole process; later calls change nothing.
///
/// # Errors
/// If `filter` is not a valid filter (`info`, `warn,skald=debug`).
pub fn start(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}"))?;
    let human = match format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = if human {
        let colours = std::io::stderr().is_terminal();
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
