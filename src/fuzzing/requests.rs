//! Request bodies of every dialect, through the whole server except its sockets.
//!
//! The first byte of an input chooses the endpoint; the rest is the body.

use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use bytesize::ByteSize;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

use super::tiny;
use crate::checkpoint::ModelSource;
use crate::config::{Dtype, GenerationDefaults, KvPrecision};
use crate::engine::{EngineConfig, EngineHandle};
use crate::http::{App, HttpConfig, router};
use crate::request::Limits;
use crate::serving::{Serving, ServingSettings};
use crate::session::SessionConfig;

/// Method and path of each endpoint; the first byte of an input is `a` plus the index.
const ENDPOINTS: [(&str, &str); 12] = [
    ("POST", "/generate"),
    ("POST", "/generate_stream"),
    ("POST", "/"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/v1/sessions/s/fork"),
    ("POST", "/v1/sessions/s/rewind"),
    ("GET", "/v1/sessions/s"),
    ("DELETE", "/v1/sessions/s"),
];
/// A request that creates the session that some endpoints need.
const SESSION: &[u8] = br#"{"prompt": "Once", "max_tokens": 3, "session_id": "s"}"#;
/// Maximum bytes of an error.
const MAX_ERROR: usize = 8 << 10;
/// Maximum bytes of an answer.
const MAX_ANSWER: usize = 8 << 20;
/// Maximum time of an answer on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that serves one request at a time.
struct Server {
    runtime: Runtime,
    router: Router,
    engine: EngineHandle,
}

/// Checks that a body is answered or refused with a short client error, and that a request releases
/// all resources.
pub(super) fn run(bytes: &[u8]) {
    static SERVER: LazyLock<Server> = LazyLock::new(Server::start);
    let Some((endpoint, body)) = bytes.split_first() else {
        return;
    };
    let place = usize::from(endpoint.wrapping_sub(b'a')) % ENDPOINTS.len();
    let (method, path) = ENDPOINTS[place];
    if path.starts_with("/v1/sessions/") {
        SERVER.call("POST", "/v1/completions", SESSION.to_vec());
    }
    SERVER.call(method, path, body.to_vec());
    SERVER.forget_sessions();
    SERVER.is_at_rest();
}

impl Server {
    fn start() -> Self {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        let app = App::new(HttpConfig {
            watchdog_timeout: PATIENCE,
            ..HttpConfig::default()
        });
        let _inside = runtime.enter();
        let serving = serving();
        let engine = serving.engine.clone();
        app.ready(serving);
        Self {
            router: router(app),
            engine,
            runtime,
        }
    }

    /// Sends a request and checks its response; returns the JSON of a response that is not a
    /// stream.
    fn call(&self, method: &str, path: &str, body: Vec<u8>) -> Value {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::HOST, "localhost");
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).expect("a request");
        let answer = async {
            let answer = self
                .router
                .clone()
                .oneshot(request)
                .await
                .expect("an answer");
            let (head, body) = answer.into_parts();
            let body = to_bytes(body, MAX_ANSWER).await.expect("a bounded answer");
            (head.status, head.headers, body)
        };
        let answer = async { tokio::time::timeout(PATIENCE, answer).await };
        let answer = self.runtime.block_on(answer);
        let (status, headers, body) = answer.expect("an answer in time");
        check(status, &headers, &body)
    }

    /// Deletes all sessions.
    fn forget_sessions(&self) {
        let list = self.call("GET", "/v1/sessions", Vec::new());
        for session in list["data"].as_array().into_iter().flatten() {
            let id = session["id"].as_str().expect("a name");
            self.call("DELETE", &format!("/v1/sessions/{id}"), Vec::new());
        }
    }

    /// Waits until the engine is idle and holds no KV block.
    fn is_at_rest(&self) {
        let begun = Instant::now();
        loop {
            let status = self.engine.status();
            assert!(status.alive, "the worker has ended");
            let requests = status.running + status.waiting + status.stalled;
            if requests == 0 && status.kv_blocks_used == 0 {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "resources are still in use: {status:?}"
            );
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Serves a tiny model, with limits that keep every input short.
fn serving() -> Serving {
    let settings = ServingSettings {
        model: "fuzzed".to_owned(),
        served_model_name: Some("fuzzed".to_owned()),
        adapters: Vec::new(),
        device: crate::config::Device::Cpu,
        dtype: Dtype::F32,
        kv_dtype: KvPrecision::F32,
        threads: NonZeroUsize::MIN,
        kv_memory: Some(ByteSize::kib(256)),
        memory_limit: None,
        generation_config: GenerationDefaults::None,
        chat_template: None,
        max_session_tokens: Some(256),
        engine: EngineConfig {
            max_batch: 8,
            ..EngineConfig::default()
        },
        sessions: SessionConfig::default(),
    };
    let files = tiny::model();
    let serving = Serving::start(&settings, &ModelSource::Builtin, files, None);
    let mut serving = serving.expect("a model");
    serving.limits = Limits {
        max_tokens: 64,
        max_choices: 8,
        max_best_of: 4,
        max_request_tokens: 2048,
        max_embedding_inputs: 16,
        max_embedding_tokens: 1024,
        ..serving.limits
    };
    serving
}

fn check(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Value {
    let text = std::str::from_utf8(body).expect("UTF-8");
    // 424 is TGI's status of a failed generation.
    let is_fault = status.is_server_error() || status == StatusCode::FAILED_DEPENDENCY;
    assert!(!is_fault, "{status}: {text}");
    let kind = headers.get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")) {
        check_stream(text);
        return Value::Null;
    }
    if body.is_empty() && status == StatusCode::NO_CONTENT {
        return Value::Null;
    }
    let json: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    if !status.is_success() {
        assert!(body.len() <= MAX_ERROR, "{status}: {} bytes", body.len());
        let error = &json["error"];
        assert!(error.is_string() || error["message"].is_string(), "{text}");
    }
    json
}

/// Checks that each event is JSON or `[DONE]`, and that none reports a failure of the server.
fn check_stream(text: &str) {
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(':'))
    {
        let Some((field, data)) = line.split_once(':') else {
            panic!("{line}");
        };
        let data = data.strip_prefix(' ').unwrap_or(data);
        if field != "data" || data == "[DONE]" {
            continue;
        }
        let event: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
        let kind = event["error"]["type"]
            .as_str()
            .or(event["error_type"].as_str());
        let failed = [
            "server_error",
            "generation",
            "internal",
            "incomplete_generation",
        ];
        assert!(!kind.is_some_and(|kind| failed.contains(&kind)), "{data}");
    }
}
