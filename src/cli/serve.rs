//! `skald serve`: listens first, so that probes are answered, then loads the model.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use opentelemetry_sdk::trace::SdkTracer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, field, info, warn};

use super::keys::missing;
use super::reload::{self, Reload};
use super::{Failure, runtime};
use crate::config::{Layer, SecretUrl, Settings, Speculation, unknown_variables};
use crate::engine::EngineConfig;
use crate::http::{self, Access, App, HttpConfig, Listener};
use crate::keys::Keys;
use crate::resources::{self, Connections};
use crate::serving::{Serving, ServingSettings};
use crate::session::SessionConfig;
use crate::session::postgres::{self, Database};
use crate::telemetry::{self, Traces};
use crate::tls::Identity;

/// The exit code after a second signal, as shells have it for Ctrl-C.
const EXIT_BY_SIGNAL: i32 = 130;
/// Signals so close together are one: `timeout` and shells signal a process and then its group.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// Serve a model over HTTP
#[derive(Debug, Args)]
#[command(
    after_help = "Flags win over SKALD_* environment variables, those over the file given by \
        --config, that over the defaults. config/skald.toml documents every setting.\n\n\
        Examples:\n  \
        skald serve\n  \
        skald serve --model openai-community/gpt2 --dtype bf16\n  \
        skald serve --model ./checkpoint --listen 0.0.0.0:8080 --kv-memory 4GiB"
)]
pub struct Serve {
    /// A TOML file with settings
    #[arg(long, env = "SKALD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Layer,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let settings = self.settings().map_err(Failure::Unusable)?;
        telemetry::start(settings.log_format, &settings.log)
            .map_err(|error| Failure::Unusable(error.into()))?;
        for (name, nearest) in unknown_variables(std::env::vars().map(|(name, _)| name)) {
            warn!(name, nearest, "unknown environment variable ignored");
        }
        let export = Traces::start(settings.otlp_endpoint.clone())
            .map_err(|error| Failure::Unusable(error.into()))?;
        let tracer = export.as_ref().map(Traces::tracer);
        let runtime = runtime()?;
        let outcome = runtime.block_on(serve(settings, tracer));
        if let Some(export) = export {
            export.stop();
        }
        // A model that is still loading is not waited for.
        runtime.shutdown_background();
        outcome
    }

    fn settings(self) -> anyhow::Result<Settings> {
        let file = match &self.config {
            Some(file) => Layer::from_file(file)?,
            None => Layer::default(),
        };
        Ok(self.flags.over(file).settle()?)
    }
}

async fn serve(settings: Settings, tracer: Option<SdkTracer>) -> Result<(), Failure> {
    let identity = identity(&settings)?;
    let keys = keys(&settings)?;
    let connections = connections(&settings)?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| {
            format!(
                "can't listen on {}; choose another address or port with `--listen`",
                settings.listen
            )
        })
        .map_err(Failure::Running)?;
    let address = listener
        .local_addr()
        .map_err(|e| Failure::Running(e.into()))?;
    let http = http_config(&settings, connections);
    let engine = engine_config(&settings);
    warn_if_open(address, keys.as_deref(), identity.is_some());
    let access = Access {
        hosts: settings.allowed_host,
        origins: settings.cors_origin,
        keys: keys.clone(),
    };
    let sharing = access.sharing();
    let app = App::with(http, access, tracer);
    let stop = CancellationToken::new();
    stop_on_signals(&stop).map_err(Failure::Running)?;
    let certificate = identity.iter().cloned().map(|it| it as Arc<dyn Reload>);
    let keys = keys.into_iter().map(|it| it as Arc<dyn Reload>);
    reload::watch(certificate.chain(keys).collect()).map_err(Failure::Running)?;
    let scheme = if identity.is_some() { "https" } else { "http" };
    let listener = Listener::new(listener, identity.map(|identity| identity.acceptor()));
    let serving = tokio::spawn(http::run(listener, app.clone(), stop.clone()));
    let memory_limit = resources::memory_limit();
    info!(
        threads = settings.threads.value,
        threads_from = %settings.threads.origin,
        memory_limit = memory_limit.map(|limit| field::display(limit.value)),
        memory_limit_from = memory_limit.map(|limit| field::display(limit.origin)),
        "resources"
    );
    let sessions = SessionConfig {
        // Before the model is loaded: who mistyped a password learns it at once.
        database: match &settings.session_store {
            Some(url) => Some(database(url, settings.session_lease).await?),
            None => None,
        },
        dir: settings.session_dir,
        kv_size: settings.session_kv_size,
        ttl: settings.session_ttl,
        per_tenant: settings.session_limit,
        max_in_memory: settings.max_sessions,
        max_waiting: settings.max_queue,
        sharing,
    };
    let model = ServingSettings {
        model: settings.model,
        served_model_name: settings.served_model_name,
        dtype: settings.dtype,
        kv_dtype: settings.kv_dtype,
        threads: settings.threads.value,
        kv_memory: settings.kv_memory,
        memory_limit,
        generation_config: settings.generation_config,
        chat_template: settings.chat_template,
        max_session_tokens: Some(settings.max_session_tokens),
        engine,
        sessions,
    };
    let loading = tokio::task::spawn_blocking(move || Serving::load(&model));
    tokio::select! {
        loaded = loading => match loaded {
            Ok(Ok(serving)) => {
                app.ready(serving);
                info!("ready at {scheme}://{address}");
            }
            Ok(Err(error)) => return Err(Failure::Unusable(error.into())),
            Err(panic) => return Err(Failure::Running(anyhow!("loading the model failed: {panic}"))),
        },
        () = stop.cancelled() => (),
    }
    let outcome = serving.await.map_err(|e| Failure::Running(e.into()))?;
    outcome.map_err(|e| Failure::Running(e.into()))?;
    info!("stopped");
    Ok(())
}

/// Returns the settings of the front end.
fn http_config(settings: &Settings, connections: Connections) -> HttpConfig {
    HttpConfig {
        drain_delay: settings.drain_delay,
        drain_timeout: settings.drain_timeout,
        keep_alive: settings.keep_alive,
        stall_timeout: settings.stall_timeout,
        watchdog_timeout: settings.watchdog_timeout,
        header_timeout: settings.header_timeout,
        body_timeout: settings.body_timeout,
        max_body: settings.max_body,
        max_pending: settings.max_pending,
        connections,
        log_prompts: settings.log_prompts,
    }
}

/// Returns the settings of the engine.
fn engine_config(settings: &Settings) -> EngineConfig {
    EngineConfig {
        max_batch: settings.max_batch,
        max_step_tokens: settings.max_step_tokens,
        step_time: settings.step_time,
        queue_limit: settings.max_queue,
        queue_timeout: settings.queue_timeout,
        share_prefixes: settings.share_prefix_cache,
        speculative_rows: match settings.speculation {
            Speculation::Auto => EngineConfig::default().speculative_rows,
            Speculation::Off => 0,
        },
        ..EngineConfig::default()
    }
}

/// Reads the server's certificate and key, if it has them.
fn identity(settings: &Settings) -> Result<Option<Arc<Identity>>, Failure> {
    let (Some(certificate), Some(key)) = (&settings.tls_cert, &settings.tls_key) else {
        return Ok(None);
    };
    let identity = Identity::load(certificate.clone(), key.clone());
    let identity = identity.map_err(|error| Failure::Unusable(error.into()))?;
    Ok(Some(Arc::new(identity)))
}

/// Reads the API keys, if requests need any.
fn keys(settings: &Settings) -> Result<Option<Arc<Keys>>, Failure> {
    let Some(file) = &settings.keys else {
        return Ok(None);
    };
    let keys = Keys::load(file.clone(), Instant::now());
    let keys = keys.map_err(|error| {
        if error.is_not_found() {
            missing(file)
        } else {
            Failure::Unusable(error.into())
        }
    })?;
    info!(file = %file.display(), keys = keys.len(), "API keys required");
    if keys.is_empty() {
        warn!("no API keys in the file: every request is refused; see `skald keys create`");
    }
    Ok(Some(Arc::new(keys)))
}

/// Returns how many connections may be open. Raises the limit of open files first.
fn connections(settings: &Settings) -> Result<Connections, Failure> {
    let files = resources::raise_file_limit();
    let turns = match settings.session_dir {
        Some(_) => settings.max_batch + settings.max_queue,
        None => 0,
    };
    Connections::within(settings.max_connections, files, turns)
        .map_err(|error| Failure::Unusable(error.into()))
}

/// Warns of a server that other machines can use without a key, or whose keys can be read on the way.
fn warn_if_open(address: SocketAddr, keys: Option<&Keys>, tls: bool) {
    if address.ip().is_loopback() {
        return;
    }
    if keys.is_none() {
        warn!(
            %address,
            "listening beyond this machine without API keys: every client that can reach the \
             address may use the server; see --keys"
        );
    } else if !tls {
        warn!(
            %address,
            "listening beyond this machine without TLS: API keys can be read on the network unless a \
             proxy or a tunnel encrypts it; see --tls-cert"
        );
    }
}

/// Connects to the database of sessions.
async fn database(url: &SecretUrl, lease: Duration) -> Result<Database, Failure> {
    let on_the_command_line = |argument: String| argument.contains(url.expose());
    let password = std::env::var("PGPASSWORD").ok();
    let database = Database::open(url.expose(), password.as_deref(), lease).await;
    let database = database
        .context("`session-store`")
        .map_err(Failure::Unusable)?;
    if postgres::has_password(url.expose()) && std::env::args().any(on_the_command_line) {
        warn!("the password of `session-store` is in the list of processes; use PGPASSWORD");
    }
    Ok(database)
}

/// Cancels the token at SIGTERM or Ctrl-C; a second one ends the process at once.
fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = stop.clone();
    tokio::spawn(async move {
        let mut first = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
            let at = *first.get_or_insert_with(Instant::now);
            if stop.is_cancelled() && at.elapsed() > SAME_SIGNAL {
                error!("a second signal: stopping at once");
                telemetry::flush_logs();
                std::process::exit(EXIT_BY_SIGNAL);
            }
            stop.cancel();
        }
    });
    Ok(())
}
