//! Request bodies of every dialect, through the whole server but its sockets.
//!
//! The first byte of an input says which endpoint gets the rest as its body.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use bytesize::ByteSize;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

use super::tiny;
use crate::engine::{EngineConfig, EngineHandle};
use crate::http::{App, HttpConfig, router};
use crate::model::{Model, ModelSpec};
use crate::request::Limits;
use crate::serving::{ModelInfo, Serving};
use crate::session::{SessionConfig, Sessions, tokenizer_fingerprint};
use crate::text::GrammarCompiler;

/// Method and path of each endpoint, by the byte of its place from `a` on.
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
/// A request that makes the session that some of them are about.
const SESSION: &[u8] = br#"{"prompt": "Once", "max_tokens": 3, "session_id": "s"}"#;
/// Bytes of an error.
const MAX_ERROR: usize = 8 << 10;
/// Bytes of an answer.
const MAX_ANSWER: usize = 8 << 20;
/// How long an answer may take, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that serves one request at a time.
struct Server {
    runtime: Runtime,
    router: Router,
    engine: EngineHandle,
}

/// A body is refused with a short error that is its client's fault, or is answered; and nothing of a
/// request is left when it is over.
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
        let files = tiny::model();
        let model = Model::load(&files, &tiny::runtime()).expect("a model");
        let spec = model.spec().clone();
        let config = EngineConfig {
            kv_memory: ByteSize::kib(256),
            max_batch: 8,
            ..EngineConfig::default()
        };
        let engine = crate::engine::start(model, config).expect("an engine");
        let app = App::new(HttpConfig {
            watchdog_timeout: PATIENCE,
            ..HttpConfig::default()
        });
        let _inside = runtime.enter();
        app.ready(serving(files, spec, engine.clone()));
        Self {
            router: router(app),
            engine,
            runtime,
        }
    }

    /// Sends a request and checks its answer; returns the JSON of one that is whole.
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

    /// Deletes what a request has left.
    fn forget_sessions(&self) {
        let list = self.call("GET", "/v1/sessions", Vec::new());
        for session in list["data"].as_array().into_iter().flatten() {
            let id = session["id"].as_str().expect("a name");
            self.call("DELETE", &format!("/v1/sessions/{id}"), Vec::new());
        }
    }

    /// Waits until the engine has nothing to do and nothing is held.
    fn is_at_rest(&self) {
        let begun = Instant::now();
        loop {
            let status = self.engine.status();
            assert!(status.alive, "the worker is gone");
            let requests = status.running + status.waiting + status.stalled;
            if requests == 0 && status.kv_blocks_used == 0 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "something is left: {status:?}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn serving(files: crate::checkpoint::ModelFiles, spec: ModelSpec, engine: EngineHandle) -> Serving {
    let ends = spec.end_of_text.clone();
    let mut limits = Limits::for_model(spec.context_length, spec.vocab_size, ends);
    // So that no input takes long because it asks for much.
    limits.max_tokens = 64;
    limits.max_choices = 8;
    limits.max_best_of = 4;
    limits.max_request_tokens = 2048;
    limits.max_embedding_inputs = 16;
    limits.max_embedding_tokens = 1024;
    limits.max_session_tokens = 256;
    let info = ModelInfo {
        id: "fuzzed".to_owned(),
        source: "fuzzed".to_owned(),
        spec,
        dtype: "f32".to_owned(),
        isa: "any".to_owned(),
        fingerprint: "fuzzed".to_owned(),
        created: SystemTime::UNIX_EPOCH,
    };
    let chat = files.chat(None).expect("the plain form");
    let tokenizer = Arc::new(files.tokenizer);
    let fingerprint = tokenizer_fingerprint(&tokenizer, limits.vocab_size);
    let sessions = SessionConfig::default();
    let sessions = Sessions::open(
        sessions,
        engine.clone(),
        limits.n_positions,
        fingerprint,
        None,
    );
    let grammars = GrammarCompiler::new(
        Arc::clone(&tokenizer),
        limits.vocab_size,
        &limits.end_of_text,
    );
    Serving {
        engine,
        sessions: sessions.expect("sessions in memory"),
        tokenizer,
        grammars,
        chat: Arc::new(chat),
        limits,
        info,
    }
}

fn check(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Value {
    let text = std::str::from_utf8(body).expect("UTF-8");
    // 424 is TGI's word for a generation that failed.
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

/// Each event is JSON, or the last; and none says that the server has failed.
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
