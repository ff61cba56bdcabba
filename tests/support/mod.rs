//! A real server on a random port with a real model, for tests over sockets.

#![allow(dead_code, reason = "every test file uses its own part")]

pub mod caller;
pub mod keys;
pub mod load;
pub mod metrics;
pub mod pace;
pub mod postgres;
pub mod process;
pub mod raw;
pub mod reader;
pub mod script;
pub mod sse;
pub mod terminal;
pub mod tiny_model;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use bytesize::ByteSize;
use serde_json::Value;
use skald::checkpoint::ModelSource;
use skald::config::{AdapterSetting, Device, Dtype, GenerationDefaults, KvPrecision};
use skald::engine::{EngineConfig, EngineHandle, EngineStatus};
use skald::http::{Access, App, HttpConfig};
use skald::serving::{Serving, ServingSettings};
use skald::session::postgres::Database;
use skald::session::{SessionConfig, Sessions};
use skald::text::Tokenizer;
use tokio_util::sync::CancellationToken;

use pace::PATIENCE;

/// Differences of a test server from the usual one.
pub struct Setup {
    pub source: ModelSource,
    pub device: Device,
    pub engine: EngineConfig,
    pub sessions: SessionConfig,
    /// URL of the session database.
    pub store: Option<String>,
    pub http: HttpConfig,
    pub access: Access,
    /// Use the defaults of the model's `generation_config.json`.
    pub model_defaults: bool,
    /// Adapters to load.
    pub adapters: Vec<AdapterSetting>,
    /// Replacement of the model's own chat template.
    pub chat_template: Option<&'static str>,
    /// Load the model; without one the server stays "loading".
    pub load: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            source: ModelSource::Builtin,
            device: Device::Cpu,
            engine: EngineConfig {
                kv_memory: ByteSize::mib(256),
                // No timeout, however slow the machine is.
                queue_timeout: PATIENCE,
                ..EngineConfig::default()
            },
            sessions: SessionConfig::default(),
            store: None,
            http: HttpConfig {
                watchdog_timeout: PATIENCE,
                ..HttpConfig::default()
            },
            access: Access::default(),
            model_defaults: false,
            adapters: Vec::new(),
            chat_template: None,
            load: true,
        }
    }
}

/// A server that runs until it is dropped.
pub struct TestServer {
    pub address: SocketAddr,
    pub app: App,
    stop: CancellationToken,
    loaded: Option<Loaded>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Loaded {
    engine: EngineHandle,
    sessions: Sessions,
    tokenizer: Arc<Tokenizer>,
}

/// Loads a model in f32 and starts its engine, as `skald serve` does.
pub fn serving(setup: &Setup) -> Serving {
    let settings = ServingSettings {
        model: setup.source.to_string(),
        served_model_name: None,
        adapters: setup.adapters.clone(),
        dtype: Dtype::F32,
        device: setup.device,
        kv_dtype: KvPrecision::Auto,
        threads: NonZeroUsize::new(2).expect("not zero"),
        kv_memory: Some(setup.engine.kv_memory),
        memory_limit: None,
        generation_config: if setup.model_defaults {
            GenerationDefaults::Auto
        } else {
            GenerationDefaults::None
        },
        chat_template: setup.chat_template.map(str::to_owned),
        max_session_tokens: None,
        engine: setup.engine.clone(),
        sessions: SessionConfig {
            sharing: setup.access.sharing(),
            ..setup.sessions.clone()
        },
    };
    Serving::load(&settings).expect("a model that can be served")
}

/// Returns the `system_fingerprint` of a model in f32.
pub fn fingerprint() -> String {
    let isa = skald::kernels::Isa::detect().name();
    format!("skald-{}-f32-{isa}", env!("CARGO_PKG_VERSION"))
}

impl TestServer {
    /// Starts a server with the built-in model and default settings.
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    /// Starts a server on a thread of its own, so that tests in different runtimes can share it.
    pub fn with(mut setup: Setup) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        setup.sessions.database = setup.store.as_deref().map(|url| {
            let open = Database::open(url, None, std::time::Duration::from_secs(10));
            // The calling thread may be in a runtime of its own.
            let opened = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(open)).join());
            opened.expect("no panic").expect("a database")
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket option");
        let address = listener.local_addr().expect("an address");
        let app = App::with(setup.http, setup.access.clone(), None);
        let loaded = setup.load.then(|| {
            let serving = serving(&setup);
            let loaded = Loaded {
                engine: serving.engine.clone(),
                sessions: serving.sessions.clone(),
                tokenizer: Arc::clone(&serving.tokenizer),
            };
            app.ready(serving);
            loaded
        });
        let stop = CancellationToken::new();
        let thread = std::thread::spawn({
            let (app, stop) = (app.clone(), stop.clone());
            move || {
                runtime.block_on(async move {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
                    skald::http::run(listener, app, stop)
                        .await
                        .expect("it serves");
                });
            }
        });
        Self {
            address,
            app,
            stop,
            loaded,
            thread: Some(thread),
        }
    }

    /// Asks the server to stop, as SIGTERM does.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until `run` has returned.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends well");
        }
    }

    pub fn has_ended(&self) -> bool {
        self.thread
            .as_ref()
            .is_none_or(std::thread::JoinHandle::is_finished)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.loaded.as_ref().expect("a model is loaded").tokenizer
    }

    pub fn engine(&self) -> &EngineHandle {
        &self.loaded.as_ref().expect("a model is loaded").engine
    }

    /// Waits until this many requests wait for their turns on a session.
    pub async fn until_waiting(&self, requests: usize) {
        let sessions = &self.loaded.as_ref().expect("a model is loaded").sessions;
        pace::until("waiting", async || sessions.waiting() == requests).await;
    }

    /// Returns the ids of a text.
    pub fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer()
            .encode(text, true)
            .expect("it is tokenized")
    }

    /// Returns a client of the server without a key.
    pub fn caller(&self) -> caller::Caller {
        caller::Caller::new(format!("http://{}", self.address))
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(
            client()
                .get(self.url(path))
                .send()
                .await
                .expect("an answer"),
        )
        .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(
            client()
                .delete(self.url(path))
                .send()
                .await
                .expect("an answer"),
        )
        .await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_text(path, body.to_string()).await
    }

    /// Posts as `curl -d` does: with the content type of a form.
    pub async fn post_text(&self, path: &str, body: String) -> Answer {
        Answer::of(self.send(path, body).await).await
    }

    /// Posts a request and returns the answer before its body.
    pub async fn send(&self, path: &str, body: String) -> reqwest::Response {
        client()
            .post(self.url(path))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body)
            .send()
            .await
            .expect("an answer")
    }

    /// Posts and reads a whole stream.
    pub async fn stream(&self, path: &str, body: Value) -> sse::Events {
        let response = self.send(path, body.to_string()).await;
        assert_eq!(response.status(), 200, "{path} {body}");
        sse::Events::parse(&response.text().await.expect("a whole body"))
    }

    /// Waits until the engine's status is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(EngineStatus) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(self.engine().status()) {
            let status = self.engine().status();
            assert!(Instant::now() < deadline, "not {what} in time: {status:?}");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Creates a client with a new connection for each request, so that tests do not share any.
pub fn client() -> reqwest::Client {
    skald::tls::http_client()
        .pool_max_idle_per_host(0)
        .no_proxy()
        .build()
        .expect("a client")
}

/// An answer with a JSON body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    async fn of(response: reqwest::Response) -> Self {
        Self::whole(response).await.expect("a whole body")
    }

    /// Reads an answer; an error if the server disconnects before it has ended.
    pub async fn whole(response: reqwest::Response) -> reqwest::Result<Self> {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Self {
            status,
            headers,
            body,
        })
    }

    /// Returns the body of a successful answer.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Returns the body of an answer with status 201.
    #[track_caller]
    pub fn created(self) -> Value {
        assert_eq!(self.status, 201, "{}", self.body);
        self.body
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or(""))
    }

    /// Returns the message of an error, in either dialect.
    pub fn message(&self) -> &str {
        let error = &self.body["error"];
        error
            .as_str()
            .or(error["message"].as_str())
            .unwrap_or_default()
    }
}
