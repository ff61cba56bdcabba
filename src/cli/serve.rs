//! `skald serve`: listens first, so that probes are answered, then loads the model.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use bytesize::ByteSize;
use clap::Args;
use opentelemetry_sdk::trace::SdkTracer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, field, info, warn};

use super::keys::missing;
use super::reload::{self, Reload};
use super::{CommandError, components, runtime};
use crate::config::{Layer, SecretUrl, Settings, unknown_variables};
use crate::http::{self, App, Listener};
use crate::keys::Keys;
use crate::resources::{self, Connections, Sourced};
use crate::serving::Serving;
use crate::session::postgres::{self, Database};
use crate::telemetry::{self, OtlpEndpoint, Traces};
use crate::tls::Identity;

/// The exit code after a second signal, which is a shell's for Ctrl-C.
const EXIT_BY_SIGNAL: i32 = 130;
/// Signals within this time count as one: `timeout` and shells signal a process and then its group.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// Serve a model over HTTP
#[derive(Debug, Args)]
#[command(
    after_help = "Flags override SKALD_* environment variables, which override the file given by --config, \
        which overrides the defaults. config/skald.toml is such a file with every setting at its \
        default.\n\n\
        Examples:\n  \
        skald serve\n  \
        skald serve --model openai-community/gpt2 --dtype bf16\n  \
        skald serve --model ./checkpoint --listen 0.0.0.0:8080 --kv-memory 4GiB"
)]
pub struct Serve {
    /// TOML file with settings
    #[arg(long, env = "SKALD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Layer,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CommandError> {
        let settings = self.settings().map_err(CommandError::Unusable)?;
        let collector = collector(&settings).map_err(CommandError::Unusable)?;
        telemetry::start(settings.log_format, &settings.log)
            .map_err(|error| CommandError::Unusable(error.into()))?;
        for (name, nearest) in unknown_variables(std::env::vars().map(|(name, _)| name)) {
            warn!(name, nearest, "unknown environment variable ignored");
        }
        let export =
            Traces::start(collector).map_err(|error| CommandError::Unusable(error.into()))?;
        let tracer = export.as_ref().map(Traces::tracer);
        let runtime = runtime()?;
        let outcome = runtime.block_on(serve(settings, tracer));
        if let Some(export) = export {
            export.stop();
        }
        // Does not wait for a model that is still loading.
        runtime.shutdown_background();
        outcome
    }

    fn settings(self) -> anyhow::Result<Settings> {
        let file = match &self.config {
            Some(file) => Layer::from_file(file)?,
            None => Layer::default(),
        };
        Ok(self.flags.over(file).settings()?)
    }
}

async fn serve(settings: Settings, tracer: Option<SdkTracer>) -> Result<(), CommandError> {
    let identity = identity(&settings)?;
    let keys = keys(&settings)?;
    let connections = connections(&settings)?;
    let (listener, address) = listen(settings.listen)
        .await
        .map_err(CommandError::Running)?;
    warn_if_open(address, keys.as_deref(), identity.is_some());
    let access = components::access(&settings, keys.clone());
    let sharing = access.sharing();
    let app = App::with(components::http(&settings, connections), access, tracer);
    let stop = CancellationToken::new();
    stop_on_signals(&stop).map_err(CommandError::Running)?;
    let certificate = identity.iter().cloned().map(|it| it as Arc<dyn Reload>);
    let keys = keys.into_iter().map(|it| it as Arc<dyn Reload>);
    reload::watch(certificate.chain(keys).collect()).map_err(CommandError::Running)?;
    let scheme = if identity.is_some() { "https" } else { "http" };
    let listener = Listener::new(listener, identity.map(|identity| identity.acceptor()));
    let serving = tokio::spawn(http::run(listener, app.clone(), stop.clone()));
    let threads = resources::threads(settings.model.threads);
    let memory_limit = resources::memory_limit();
    log_resources(threads, memory_limit);
    // Before the model is loaded, so that a wrong password is reported at once.
    let database = match &settings.session_store {
        Some(url) => Some(database(url, settings.session_lease).await?),
        None => None,
    };
    let sessions = components::sessions(&settings, database, sharing);
    let model = components::serving(settings, threads.value, memory_limit, sessions);
    let loading = tokio::task::spawn_blocking(move || Serving::load(&model));
    tokio::select! {
        loaded = loading => match loaded {
            Ok(Ok(serving)) => {
                app.ready(serving);
                info!("ready at {scheme}://{address}");
            }
            Ok(Err(error)) => return Err(CommandError::Unusable(error.into())),
            Err(panic) => {
                return Err(CommandError::Running(anyhow!("loading the model failed: {panic}")));
            }
        },
        () = stop.cancelled() => (),
    }
    let outcome = serving.await.map_err(|e| CommandError::Running(e.into()))?;
    outcome.map_err(|e| CommandError::Running(e.into()))?;
    info!("stopped");
    Ok(())
}

/// Returns the collector of traces that the settings name.
fn collector(settings: &Settings) -> anyhow::Result<Option<OtlpEndpoint>> {
    let url = settings.otlp_endpoint.as_ref();
    let endpoint = url.map(|url| url.expose().parse()).transpose();
    endpoint.context("`otlp-endpoint`")
}

/// Binds the address; returns it with the port that the system chose, if that was left to it.
async fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("can't listen on {address}; choose another address or port with `--listen`")
    })?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn log_resources(threads: Sourced<NonZeroUsize>, memory_limit: Option<Sourced<ByteSize>>) {
    info!(
        threads = threads.value,
        threads_from = %threads.origin,
        memory_limit = memory_limit.map(|limit| field::display(limit.value)),
        memory_limit_from = memory_limit.map(|limit| field::display(limit.origin)),
        "resources"
    );
}

/// Reads the server's certificate and key, if the settings name them.
fn identity(settings: &Settings) -> Result<Option<Arc<Identity>>, CommandError> {
    let (Some(certificate), Some(key)) = (&settings.tls_cert, &settings.tls_key) else {
        return Ok(None);
    };
    let identity = Identity::load(certificate.clone(), key.clone());
    let identity = identity.map_err(|error| CommandError::Unusable(error.into()))?;
    Ok(Some(Arc::new(identity)))
}

/// Reads the API keys, if the settings name a file.
fn keys(settings: &Settings) -> Result<Option<Arc<Keys>>, CommandError> {
    let Some(file) = &settings.keys else {
        return Ok(None);
    };
    let keys = Keys::load(file.clone(), Instant::now());
    let keys = keys.map_err(|error| {
        if error.is_not_found() {
            missing(file)
        } else {
            CommandError::Unusable(error.into())
        }
    })?;
    info!(file = %file.display(), keys = keys.len(), "API keys required");
    if keys.is_empty() {
        warn!("no API keys in the file, refusing every request; see `skald keys create`");
    }
    Ok(Some(Arc::new(keys)))
}

/// Raises the limit of open files and returns the limits of connections within it.
fn connections(settings: &Settings) -> Result<Connections, CommandError> {
    let files = resources::raise_file_limit();
    let turns = match settings.session_dir {
        Some(_) => settings.max_batch + settings.max_queue,
        None => 0,
    };
    Connections::within(settings.max_connections, files, turns)
        .map_err(|error| CommandError::Unusable(error.into()))
}

/// Logs a warning if other machines can use the server without a key, or API keys are sent unencrypted.
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

/// Connects to the database that stores sessions.
async fn database(url: &SecretUrl, lease: Duration) -> Result<Database, CommandError> {
    let on_the_command_line = |argument: String| argument.contains(url.expose());
    let password = std::env::var("PGPASSWORD").ok();
    let database = Database::open(url.expose(), password.as_deref(), lease).await;
    let database = database
        .context("`session-store`")
        .map_err(CommandError::Unusable)?;
    if postgres::has_password(url.expose()) && std::env::args().any(on_the_command_line) {
        warn!("the password of `session-store` is in the list of processes; use PGPASSWORD");
    }
    Ok(database)
}

/// Cancels the token at SIGTERM or Ctrl-C. A second signal ends the process at once.
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
                error!("second signal, stopping at once");
                telemetry::flush_logs();
                std::process::exit(EXIT_BY_SIGNAL);
            }
            stop.cancel();
        }
    });
    Ok(())
}
