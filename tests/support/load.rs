//! Requests that keep a server busy.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skald::engine::EngineConfig;

use super::pace::Gate;
use super::{Setup, TestServer};

/// Returns a request that never ends by itself.
pub fn endless() -> Value {
    json!({
        "prompt": "On and on", "max_tokens": 200_000, "overflow": "slide", "ignore_eos": true,
    })
}

pub fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body
}

/// Starts a stream and waits for its first event.
pub async fn begun(server: &TestServer, body: Value) -> reqwest::Response {
    let mut response = server
        .send("/v1/completions", streamed(body).to_string())
        .await;
    assert_eq!(response.status(), 200);
    response.chunk().await.unwrap().expect("an event");
    response
}

/// Starts a server whose engine is held after this many steps, until the gate allows more.
pub fn held(steps: usize, change: impl FnOnce(&mut Setup)) -> (TestServer, Gate) {
    let gate = Gate::after(steps);
    let mut setup = Setup::default();
    setup.engine.step_hook = Some(gate.hook());
    change(&mut setup);
    (TestServer::with(setup), gate)
}

/// Starts a server whose steps all take a while, so that an endless stream does not generate much.
pub fn slow(step: Duration, change: impl FnOnce(&mut Setup)) -> TestServer {
    let mut setup = Setup {
        engine: EngineConfig {
            step_hook: Some(Arc::new(move |_| std::thread::sleep(step))),
            ..Setup::default().engine
        },
        ..Setup::default()
    };
    change(&mut setup);
    TestServer::with(setup)
}
