//! Every setting of the server, declared once: type, flag, environment variable, default, range and help.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{ArgAction, Args};

use super::adapter::AdapterSetting;
use super::choices::{KvPrecision, LogFormat, Speculation};
use super::error::ConfigError;
use super::hosts::{AllowedHost, CorsOrigin};
use super::model_settings::ModelSettings;
use super::values::{
    SecretUrl, address, at_least_a_moment, count, duration, duration_within, name, size,
    size_within,
};

/// The server's settings.
///
/// A field's documentation is its help and its text in `config/skald.toml`; its flag is its key in a file.
/// If the default depends on the machine, the model or another setting, the field is optional and its
/// documentation says what happens without it.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Settings {
    /// The model and its computation.
    #[command(flatten)]
    pub model: ModelSettings,
    /// Name of the model for clients [default: the model's own name]
    #[arg(
        help_heading = "Model",
        long,
        env = "SKALD_SERVED_MODEL_NAME",
        value_name = "NAME",
        value_parser = name
    )]
    pub served_model_name: Option<String>,
    /// LoRA adapters to serve; clients select one by its name. Each is a directory as peft saves it, or a hub id;
    /// separated by commas, or given repeatedly [default: none]
    #[arg(
        help_heading = "Model",
        long,
        env = "SKALD_ADAPTER",
        value_name = "NAME=PATH_OR_ID",
        value_delimiter = ','
    )]
    pub adapter: Vec<AdapterSetting>,
    /// The template that turns conversations into prompts: a file with a Jinja template, such a template
    /// itself, or `plain` for paragraphs like `User: …` [default: the model's own, else plain]
    #[arg(
        help_heading = "Model",
        long,
        env = "SKALD_CHAT_TEMPLATE",
        value_name = "TEMPLATE"
    )]
    pub chat_template: Option<String>,
    /// Memory for the KV cache, allocated as it is used [default: 1GiB, or half of what the
    /// memory limit leaves beside the weights if that is less]
    ///
    /// All requests and sessions share it. GPT-2 (124M) needs 72 KiB a token in f32, the built-in model
    /// 7.5 KiB in bf16.
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_KV_MEMORY",
        value_name = "SIZE",
        value_parser = size
    )]
    pub kv_memory: Option<ByteSize>,
    /// Maximum tokens of a context, prompt and generated text together [default: what the model has; either
    /// is reduced to what kv-memory holds for one sequence]
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_MAX_CONTEXT",
        value_name = "N",
        value_parser = count(1, 1 << 24)
    )]
    pub max_context: Option<usize>,
    /// Precision of the keys and values in the KV cache
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_KV_DTYPE",
        value_name = "DTYPE",
        default_value = "auto"
    )]
    pub kv_dtype: KvPrecision,
    /// Maximum sequences in a batch
    ///
    /// A larger batch serves more streams at once, each a little slower.
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_MAX_BATCH",
        value_name = "N",
        value_parser = count(1, 4096),
        default_value = "64"
    )]
    pub max_batch: usize,
    /// Maximum tokens in a step, at least max-batch; long prompts are prefilled in chunks that use the rest
    /// of each step
    ///
    /// A smaller value keeps running streams smoother, a larger one prefills prompts faster.
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_MAX_STEP_TOKENS",
        value_name = "N",
        value_parser = count(1, 1 << 16),
        default_value = "512"
    )]
    pub max_step_tokens: usize,
    /// Target for the longest time of a step while requests wait for their next token; the chunks in which
    /// prompts are prefilled are sized to it
    ///
    /// A shorter time keeps streams smoother, a longer one prefills prompts faster.
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_STEP_TIME",
        value_name = "DURATION",
        value_parser = duration,
        default_value = "100ms"
    )]
    pub step_time: Duration,
    /// Speculative decoding: draft tokens from a request's own text and verify several in one pass; the
    /// output is the same, bit for bit
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_SPECULATION",
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub speculation: Speculation,
    /// Maximum requests that wait for a place in the batch; more get a 429
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_MAX_QUEUE",
        value_name = "N",
        value_parser = count(1, 1 << 20),
        default_value = "256"
    )]
    pub max_queue: usize,
    /// Maximum time that a request waits for a place in the batch, and for its session: one that would wait
    /// longer for the batch gets a 429 at once, one that has waited this long a 503
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_QUEUE_TIMEOUT",
        value_name = "DURATION",
        value_parser = at_least_a_moment,
        default_value = "30s"
    )]
    pub queue_timeout: Duration,
    /// Share cached prefixes of prompts between tenants (API keys); the time to the first token can then
    /// reveal to one tenant which prompts another has sent
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_SHARE_PREFIX_CACHE",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub share_prefix_cache: bool,
    /// PostgreSQL database that stores sessions, which servers on many machines can share [default: none]
    ///
    /// `postgres://USER@HOST/DATABASE`, with the password in PGPASSWORD, or all of it in
    /// `SKALD_SESSION_STORE`, so that it can't be seen in the list of processes.
    #[arg(
        help_heading = "Sessions",
        long,
        env = "SKALD_SESSION_STORE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub session_store: Option<SecretUrl>,
    /// Time without a sign of life after which other servers can take over the sessions that a server holds
    /// in that database
    #[arg(
        help_heading = "Sessions",
        long,
        env = "SKALD_SESSION_LEASE",
        value_name = "DURATION",
        value_parser = duration_within(Duration::from_secs(1), Duration::from_secs(3600)),
        default_value = "10s"
    )]
    pub session_lease: Duration,
    /// Directory that stores sessions, so that they outlive the server [default: in memory]
    ///
    /// Several servers can share it, even with different models: each tokenizer has a part of its own. With
    /// session-store it holds only KV blocks of sessions.
    #[arg(
        help_heading = "Sessions",
        long,
        env = "SKALD_SESSION_DIR",
        value_name = "DIR"
    )]
    pub session_dir: Option<PathBuf>,
    /// Maximum disk space for KV blocks of sessions in that directory, 0B for none; beyond it the least
    /// recently used are deleted
    #[arg(
        help_heading = "Sessions",
        long,
        env = "SKALD_SESSION_KV_SIZE",
        value_name = "SIZE",
        value_parser = size,
        default_value = "4GiB"
    )]
    pub session_kv_size: ByteSize,
    /// Time after which an unused session is deleted [default: never]
    #[arg(
        help_heading = "Sessions",
        long,
        env = "SKALD_SESSION_TTL",
        value_name = "DURATION",
        value_parser = at_least_a_moment
    )]
    pub session_ttl: Option<Duration>,
    /// Maximum sessions of one API key [default: unlimited]
    #[arg(
        help_heading = "Sessions",
        long,
        env = "SKALD_SESSION_LIMIT",
        value_name = "N",
        value_parser = count(1, 1 << 30)
    )]
    pub session_limit: Option<usize>,
    /// Maximum sessions in memory, without session-store and session-dir; beyond it the least recently used
    /// session of the API key with the most sessions is deleted
    ///
    /// A session of more than 2,048 tokens counts once for every 2,048.
    #[arg(
        help_heading = "Sessions",
        long,
        env = "SKALD_MAX_SESSIONS",
        value_name = "N",
        value_parser = count(1, 1 << 30),
        default_value = "10000"
    )]
    pub max_sessions: usize,
    /// Maximum tokens of a session's history; a turn that could exceed it is refused
    #[arg(
        help_heading = "Sessions",
        long,
        env = "SKALD_MAX_SESSION_TOKENS",
        value_name = "N",
        value_parser = count(1, 1 << 30),
        default_value = "262144"
    )]
    pub max_session_tokens: usize,
    /// Address to listen on; the system chooses the port if it is 0
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_LISTEN",
        value_name = "ADDRESS:PORT",
        value_parser = address,
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,
    /// Hosts that requests can name besides this machine's addresses: names, `*.example.org` for all below
    /// it, or `*` for any; separated by commas, or given repeatedly [default: none]
    ///
    /// On 0.0.0.0 and [::], requests can name any IP address. Probes and /metrics can name any host.
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_ALLOWED_HOST",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub allowed_host: Vec<AllowedHost>,
    /// Origins whose web pages can call the server, such as `https://app.example.org`, or `*` for any;
    /// separated by commas, or given repeatedly [default: none]
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub cors_origin: Vec<CorsOrigin>,
    /// File with API keys, created by `skald keys create`; every request but probes then needs a key, even
    /// if the file has none [default: none]
    ///
    /// The file is read again when it changes or on SIGHUP.
    #[arg(help_heading = "HTTP", long, env = "SKALD_KEYS", value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// The server's certificate chain in PEM, its own certificate first; the server then speaks TLS
    /// [default: none]
    ///
    /// Certificate and key are read again when they change or on SIGHUP.
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_TLS_CERT",
        value_name = "FILE"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM [default: none]
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_TLS_KEY",
        value_name = "FILE"
    )]
    pub tls_key: Option<PathBuf>,
    /// Maximum open connections [default: what the limit of open files leaves, up to 16384]
    ///
    /// When all are taken, connections without a request are closed in favor of new ones. If every
    /// connection has a request, probes are answered and other requests get a 503.
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_MAX_CONNECTIONS",
        value_name = "N",
        value_parser = count(1, 1 << 20)
    )]
    pub max_connections: Option<usize>,
    /// Time for which requests are still accepted after SIGTERM or Ctrl-C, while /health and /readyz
    /// already return 503, so that routers send them elsewhere
    ///
    /// Behind a router: a little longer than the router takes to notice.
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_DRAIN_DELAY",
        value_name = "DURATION",
        value_parser = duration,
        default_value = "0s"
    )]
    pub drain_delay: Duration,
    /// Maximum time for which running streams continue after that
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_DRAIN_TIMEOUT",
        value_name = "DURATION",
        value_parser = duration,
        default_value = "30s"
    )]
    pub drain_timeout: Duration,
    /// Interval of keep-alive comments in a stream without tokens, so that proxies keep it open
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_KEEP_ALIVE",
        value_name = "DURATION",
        value_parser = at_least_a_moment,
        default_value = "15s"
    )]
    pub keep_alive: Duration,
    /// Maximum time for which a client can read none of its response before the response is ended
    ///
    /// A stream with 256 unread tokens gives up its place in the batch before that, and resumes where it was
    /// if the client reads again.
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_STALL_TIMEOUT",
        value_name = "DURATION",
        value_parser = at_least_a_moment,
        default_value = "30s"
    )]
    pub stall_timeout: Duration,
    /// Time for which the inference worker can have work and make no step before /livez and /readyz return
    /// 503, so that the server is restarted; longer than any step takes
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_WATCHDOG_TIMEOUT",
        value_name = "DURATION",
        value_parser = at_least_a_moment,
        default_value = "30s"
    )]
    pub watchdog_timeout: Duration,
    /// Maximum time for a client to send the head of a request; also the time after which an unused
    /// connection is closed
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_HEADER_TIMEOUT",
        value_name = "DURATION",
        value_parser = at_least_a_moment,
        default_value = "30s"
    )]
    pub header_timeout: Duration,
    /// Maximum time for a client to send the body of a request
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_BODY_TIMEOUT",
        value_name = "DURATION",
        value_parser = at_least_a_moment,
        default_value = "30s"
    )]
    pub body_timeout: Duration,
    /// Maximum size of a request body
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_MAX_BODY",
        value_name = "SIZE",
        value_parser = size_within(ByteSize::kib(1), ByteSize::gib(1)),
        default_value = "2MiB"
    )]
    pub max_body: ByteSize,
    /// Maximum bytes of requests over 64 KiB that are parsed and tokenized or wait for it, and separately of
    /// bodies that are arriving and of whole responses that clients have not read; at least 64KiB
    ///
    /// More requests get a 429, or the body or response that has made no progress for the longest is ended.
    #[arg(
        help_heading = "HTTP",
        long,
        env = "SKALD_MAX_PENDING",
        value_name = "SIZE",
        value_parser = size_within(ByteSize::kib(64), ByteSize::b(u64::MAX)),
        default_value = "64MiB"
    )]
    pub max_pending: ByteSize,
    /// Format of log lines
    #[arg(
        help_heading = "Logs",
        long,
        env = "SKALD_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto"
    )]
    pub log_format: LogFormat,
    /// Log level (error, warn, info, debug or trace), or a filter such as `info,skald::engine=debug`
    #[arg(
        help_heading = "Logs",
        long,
        env = "SKALD_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,
    /// Log prompts and answers, and the parts of them that errors quote
    #[arg(
        help_heading = "Logs",
        long,
        env = "SKALD_LOG_PROMPTS",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub log_prompts: bool,
    /// OpenTelemetry collector that receives traces by OTLP over HTTP (protobuf), such as
    /// `http://localhost:4318` [default: none, or `OTEL_EXPORTER_OTLP_ENDPOINT`]
    #[arg(
        help_heading = "Traces",
        long,
        env = "SKALD_OTLP_ENDPOINT",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub otlp_endpoint: Option<SecretUrl>,
}

impl Settings {
    /// Checks the settings against each other; each alone was checked when it was parsed.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.max_batch > self.max_step_tokens {
            return Err(ConfigError::BatchExceedsStep {
                max_batch: self.max_batch,
                max_step_tokens: self.max_step_tokens,
            });
        }
        let (given, missing) = match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => ("tls-cert", "tls-key"),
            (None, Some(_)) => ("tls-key", "tls-cert"),
            (Some(_), Some(_)) | (None, None) => return Ok(()),
        };
        Err(ConfigError::Incomplete { given, missing })
    }
}
