//! Logs on standard error, and traces to an OpenTelemetry collector. Metrics are in `http::metrics`.
//!
//! | module | purpose |
//! |---|---|
//! | `logs` | setup of logging: filter, format and output |
//! | `log_writer` | the thread that writes log lines, and the count of lost lines |
//! | `endpoint` | the URL that traces are sent to |
//! | `traces` | setup and shutdown of tracing |
//! | `export` | the export of finished spans, and the count of lost spans |
//!
//! This module must not know about requests; the front end creates the spans (`http::request_trace`).

mod endpoint;
mod export;
mod log_writer;
mod logs;
mod traces;

pub use endpoint::{InvalidEndpoint, OtlpEndpoint};
pub use logs::{FlushLogs, LogError, flush_logs, lost_log_lines, say, start};
pub use traces::{Traces, TracesError};
