//! A collector that is unavailable, hangs, or returns: the server loses spans, but requests and the stop are
//! not delayed.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::collector::Collector;
use super::{AT_ONCE, answer, post};
use crate::support::process::Process;

/// Maximum queued spans, as documented in `docs/operations.md`.
const QUEUE: usize = 4096;
/// Far more than the 3 s for the last spans, far less than the collector's 10 minutes.
const STOP: Duration = Duration::from_secs(60);

/// Returns an address on which nothing listens.
fn free_port() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

/// Asserts that a request is answered.
async fn is_answered(server: &Process, id: &str) {
    let tale = json!({"inputs": "Once", "parameters": {"max_new_tokens": 2}});
    assert_eq!(answer(post(server, id, "/generate", &tale)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_is_a_warning() {
    let endpoint = format!("http://{}", free_port());
    let mut server = Process::start_in(&[AT_ONCE], &["--otlp-endpoint", &endpoint]);
    for n in 0..3 {
        let id = format!("request-{n}");
        is_answered(&server, &id).await;
    }
    server.terminate();
    server.ended();
    let warnings = server.logged("trace export failing");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let reason = warnings[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("refused"), "{reason}");
    assert_eq!(warnings[0]["endpoint"], format!("{endpoint}/v1/traces"));
    let lost = server.logged("trace spans lost in total");
    assert_eq!(lost[0]["lost"], 12, "{lost:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_a_collector_rejects_are_lost_and_its_reason_is_logged() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let mut server = Process::start_in(&[AT_ONCE], &["--otlp-endpoint", &endpoint]);
    collector.reject(3);
    is_answered(&server, "rejected").await;
    collector.request("rejected");
    server.terminate();
    server.ended();
    let warnings = server.logged("trace export failing");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let reason = warnings[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("over quota"), "{reason}");
    let lost = server.logged("trace spans lost in total");
    assert_eq!(lost[0]["lost"], 3, "{lost:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_arrive_once_the_collector_is_there() {
    let address = free_port();
    let endpoint = format!("http://{address}");
    let mut server = Process::start_in(&[AT_ONCE], &["--otlp-endpoint", &endpoint]);
    server.until_logged("trace export failing");
    let collector = Collector::at(address);
    is_answered(&server, "found").await;
    let (_, stages) = collector.request("found");
    assert_eq!(stages.len(), 3);
    server.terminate();
    server.ended();
    assert_eq!(server.logged("trace export recovered").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_up_neither_requests_nor_the_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        let mut never_answered = Vec::new();
        for stream in listener.incoming() {
            never_answered.push(stream);
        }
    });
    let ten_minutes = ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000");
    let mut server = Process::start_in(&[AT_ONCE, ten_minutes], &["--otlp-endpoint", &endpoint]);
    is_answered(&server, "first").await;
    // More spans than the queue holds: the rest is dropped at once.
    let caller = server.caller();
    for _ in 0..QUEUE {
        assert_eq!(caller.get("/v1/models").await.status, 200);
    }
    let warning = server.until_logged("trace export failing");
    assert_eq!(warning["reason"], "the span queue is full");
    assert_eq!(server.logged("trace export failing").len(), 1);
    server.terminate();
    server.ended_within(STOP);
    let undelivered = server.logged("last trace spans not delivered");
    assert_eq!(undelivered[0]["lost"], QUEUE + 4, "{undelivered:#?}");
}
