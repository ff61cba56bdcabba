//! Traces from outside: the real command exports over a real socket to a stand-in that decodes the real
//! protocol.

mod collector;
mod export;
mod settings;
mod spans;

use reqwest::RequestBuilder;
use serde_json::Value;

use crate::support::process::Process;
use collector::Collector;

/// Sends finished spans at once, instead of every 5 s.
const AT_ONCE: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "20");

/// Starts a server that exports to `collector`.
#[track_caller]
fn traced(collector: &Collector, flags: &[&str]) -> Process {
    let endpoint = collector.endpoint();
    let flags = [&["--otlp-endpoint", &endpoint], flags].concat();
    Process::start_in(&[AT_ONCE], &flags)
}

/// Returns a request with this id.
fn post(server: &Process, id: &str, path: &str, body: &Value) -> RequestBuilder {
    let address = server.address().expect("it is ready");
    crate::support::client()
        .post(format!("{address}{path}"))
        .header("x-request-id", id)
        .body(body.to_string())
}

/// Sends a request and reads the whole answer.
async fn answer(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    (status, response.text().await.expect("a whole body"))
}
