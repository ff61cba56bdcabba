//! What Skald tells those who operate it, besides metrics: logs on standard error, traces to an
//! OpenTelemetry collector.
//!
//! | module | what it is for |
//! |---|---|
//! | `logs` | lines on standard error |
//! | `log_writer` | the way of lines there, and the count of those that are lost |
//! | `endpoint` | where traces go |
//! | `traces` | the tracer that spans are made with, from start to stop |
//! | `export` | the way of finished spans to the collector, and the count of those that are lost |
//!
//! Nothing here knows of requests; the front end makes the spans (`http::request_trace`).

mod endpoint;
mod export;
mod log_writer;
mod logs;
mod traces;

pub use endpoint::{InvalidEndpoint, OtlpEndpoint};
pub use logs::{FlushLogs, LogError, flush_logs, lost_log_lines, say, start};
pub use traces::{Traces, TracesError};
