//! The server's settings: flags > `SKALD_*` environment > file > defaults.
//!
//! Every setting is defined once, in [`Layer`]: its documentation is its help, its flag is its
//! key in the file, and its environment variable is its name in capitals. A layer has a value or
//! not; [`Settings`] has all of them, checked, and is what the rest of the program sees.

mod hosts;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde::Deserialize;

pub use self::hosts::{AllowedHost, CorsOrigin, InvalidHost};
use crate::resources::{self, Sourced};
use crate::telemetry::{InvalidEndpoint, OtlpEndpoint};

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("the configuration file {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML, or a value has the wrong type or form.
    #[error("the configuration file {}: {reason}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// The parser's message, with the line.
        reason: String,
    },
    /// The file has a key that is no setting.
    #[error("the configuration file {}, line {line}: there is no setting `{key}`{}", file.display(), suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// Where the key stands.
        line: usize,
        /// The key.
        key: String,
        /// The setting whose name is nearest.
        nearest: Option<String>,
    },
    /// The address of the trace collector can't be used.
    #[error("`otlp-endpoint`: {0}")]
    Endpoint(#[from] InvalidEndpoint),
    /// A value is out of its range.
    #[error("`{setting}` is {value}; {expected}")]
    Range {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: String,
    },
    /// A setting that is of no use without another.
    #[error("`{given}` is set but `{missing}` is not; set both or neither")]
    Incomplete {
        /// The setting that has a value.
        given: &'static str,
        /// The one that needs a value too.
        missing: &'static str,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

/// How weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// The checkpoint's own precision: f32 stays f32, f16 and bf16 run as bf16.
    Auto,
    /// 32-bit floats: the reference.
    F32,
    /// bfloat16: half the memory, twice the speed.
    Bf16,
    /// 8-bit integers: a quarter of the memory, the fastest.
    Q8,
}

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KvPrecision {
    /// f32 with f32 weights, bf16 with others.
    Auto,
    /// 32-bit floats, as computed.
    F32,
    /// bfloat16: twice as many tokens in the same memory, read twice as fast.
    Bf16,
}

/// Whether the model's `generation_config.json` fills in what requests leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum GenerationDefaults {
    /// It does, where the model has one.
    Auto,
    /// It does not.
    None,
}

/// Whether tokens are guessed ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Speculation {
    /// Where it pays: with few streams, whose texts repeat themselves.
    Auto,
    /// Never.
    Off,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// A duration as people write it: `30s`, `1m 30s`, `500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

impl FromStr for HumanDuration {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Self)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(DurationText)
    }
}

/// Reads a duration from a string.
struct DurationText;

impl serde::de::Visitor<'_> for DurationText {
    type Value = HumanDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration in quotes, such as \"30s\" or \"500ms\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HumanDuration, E> {
        text.parse().map_err(|e| {
            E::custom(format!(
                "{text:?} is not a valid duration ({e}); write 30s or 500ms"
            ))
        })
    }
}

/// The most compute threads.
const MAX_THREADS: usize = 1024;

/// Reads a number of compute threads.
pub(crate) fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok();
    let number = number.filter(|number: &NonZeroUsize| number.get() <= MAX_THREADS);
    number.ok_or_else(|| format!("write a number from 1 to {MAX_THREADS}"))
}

/// Reads the same from a file.
fn threads_of_file<'de, D>(deserializer: D) -> Result<Option<NonZeroUsize>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let number = toml::Value::deserialize(deserializer)?;
    let number = number.as_integer().unwrap_or_default();
    let read = thread_count(&number.to_string());
    read.map(Some).map_err(serde::de::Error::custom)
}

/// Reads the address to listen on.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an IP address and a port, such as 127.0.0.1:8080 or 0.0.0.0:8080".to_owned()
    })
}

/// The shortest lease, which still leaves time to renew it, and the longest.
const LEASE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// The least that can be set for pending requests: smaller ones are not counted.
const MAX_PENDING: ByteSize = ByteSize::kib(64);

/// A URL that may have a password in it, so that it is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// The URL, password included.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretUrl(…)")
    }
}

/// One source's values of the settings; `None` where it says nothing.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Layer {
    /// The model: `builtin`, a directory in the Hugging Face layout, or a hub id such as
    /// openai-community/gpt2, with @revision if need be [default: builtin]
    #[arg(
        long,
        env = "SKALD_MODEL",
        value_name = "MODEL",
        help_heading = "Model"
    )]
    pub model: Option<String>,
    /// The name clients call the model by [default: the model's own name]
    #[arg(
        long,
        env = "SKALD_SERVED_MODEL_NAME",
        value_name = "NAME",
        help_heading = "Model"
    )]
    pub served_model_name: Option<String>,
    /// Precision of the weights [default: auto]
    #[arg(long, env = "SKALD_DTYPE", value_enum, help_heading = "Model")]
    pub dtype: Option<Dtype>,
    /// Whether the model's `generation_config.json` fills in what requests leave out
    /// [default: auto]
    #[arg(
        long,
        env = "SKALD_GENERATION_CONFIG",
        value_enum,
        help_heading = "Model"
    )]
    pub generation_config: Option<GenerationDefaults>,
    /// How conversations become prompts: a file with a Jinja template, such a template itself, or
    /// `plain` for lines like `User: …` [default: the model's own, else plain]
    #[arg(
        long,
        env = "SKALD_CHAT_TEMPLATE",
        value_name = "TEMPLATE",
        help_heading = "Model"
    )]
    pub chat_template: Option<String>,
    /// Compute threads [default: all cores, within the CPU quota of the cgroup]
    #[arg(
        long,
        env = "SKALD_THREADS",
        value_name = "N",
        value_parser = thread_count,
        help_heading = "Engine"
    )]
    #[serde(deserialize_with = "threads_of_file")]
    pub threads: Option<NonZeroUsize>,
    /// Memory for the KV cache; taken from the system as it is used [default: 1GiB, or half of what
    /// the memory limit leaves beside the weights if that is less]
    #[arg(
        long,
        env = "SKALD_KV_MEMORY",
        value_name = "SIZE",
        help_heading = "Engine"
    )]
    pub kv_memory: Option<ByteSize>,
    /// How the KV cache holds keys and values: auto is f32 with f32 weights, bf16 with others
    /// [default: auto]
    #[arg(long, env = "SKALD_KV_DTYPE", value_enum, help_heading = "Engine")]
    pub kv_dtype: Option<KvPrecision>,
    /// Requests in a batch at most [default: 64]
    #[arg(
        long,
        env = "SKALD_MAX_BATCH",
        value_name = "N",
        help_heading = "Engine"
    )]
    pub max_batch: Option<usize>,
    /// Tokens in a step at most; long prompts are read in chunks of what is left of it
    /// [default: 512]
    #[arg(
        long,
        env = "SKALD_MAX_STEP_TOKENS",
        value_name = "N",
        help_heading = "Engine"
    )]
    pub max_step_tokens: Option<usize>,
    /// How long a step should take at most while requests wait for their next token; the chunks
    /// that prompts are read in are made to fit [default: 100ms]
    #[arg(
        long,
        env = "SKALD_STEP_TIME",
        value_name = "DURATION",
        help_heading = "Engine"
    )]
    pub step_time: Option<HumanDuration>,
    /// Guess tokens from a request's own text and verify several in one pass; the output is the
    /// same with or without [default: auto]
    #[arg(long, env = "SKALD_SPECULATION", value_enum, help_heading = "Engine")]
    pub speculation: Option<Speculation>,
    /// Requests that may wait for a place in the batch; more get a 429 [default: 256]
    #[arg(
        long,
        env = "SKALD_MAX_QUEUE",
        value_name = "N",
        help_heading = "Engine"
    )]
    pub max_queue: Option<usize>,
    /// Let tenants (API keys) share what the KV cache has of their prompts' beginnings; the time to
    /// the first token then tells what others have asked [default: false]
    #[arg(
        long,
        env = "SKALD_SHARE_PREFIX_CACHE",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Engine"
    )]
    pub share_prefix_cache: Option<bool>,
    /// Keep sessions in this PostgreSQL database, which servers on many machines may share:
    /// `postgres://USER@HOST/DATABASE`, with the password in PGPASSWORD, or all of it in
    /// `SKALD_SESSION_STORE`, so that it can't be seen in the list of processes [default: none]
    #[arg(
        long,
        env = "SKALD_SESSION_STORE",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Sessions"
    )]
    pub session_store: Option<SecretUrl>,
    /// How long a server may be silent before others may take over the sessions its turns hold in
    /// that database [default: 10s]
    #[arg(
        long,
        env = "SKALD_SESSION_LEASE",
        value_name = "DURATION",
        help_heading = "Sessions"
    )]
    pub session_lease: Option<HumanDuration>,
    /// Keep sessions in this directory, so that they outlive the server; several servers may share
    /// it. With a database, only KV blocks of sessions are there [default: in memory]
    #[arg(
        long,
        env = "SKALD_SESSION_DIR",
        value_name = "DIR",
        help_heading = "Sessions"
    )]
    pub session_dir: Option<PathBuf>,
    /// Disk for KV blocks of sessions in that directory, 0 for none [default: 4GiB]
    #[arg(
        long,
        env = "SKALD_SESSION_KV_SIZE",
        value_name = "SIZE",
        help_heading = "Sessions"
    )]
    pub session_kv_size: Option<ByteSize>,
    /// Delete sessions unused for this long [default: never]
    #[arg(
        long,
        env = "SKALD_SESSION_TTL",
        value_name = "DURATION",
        help_heading = "Sessions"
    )]
    pub session_ttl: Option<HumanDuration>,
    /// Sessions one API key may have [default: any number]
    #[arg(
        long,
        env = "SKALD_SESSION_LIMIT",
        value_name = "N",
        help_heading = "Sessions"
    )]
    pub session_limit: Option<usize>,
    /// Sessions kept in memory, where there is neither database nor directory for them; one of more than
    /// 2,048 tokens counts once for every 2,048. Beyond that the least recently used is forgotten, of the
    /// API key that has the most [default: 10000]
    #[arg(
        long,
        env = "SKALD_MAX_SESSIONS",
        value_name = "N",
        help_heading = "Sessions"
    )]
    pub max_sessions: Option<usize>,
    /// Maximum tokens of a session's history; a turn that could exceed it is refused
    /// [default: 262144]
    #[arg(
        long,
        env = "SKALD_MAX_SESSION_TOKENS",
        value_name = "N",
        help_heading = "Sessions"
    )]
    pub max_session_tokens: Option<usize>,
    /// The address to listen on; port 0 lets the system choose [default: 127.0.0.1:8080]
    #[arg(
        long,
        env = "SKALD_LISTEN",
        value_name = "ADDRESS:PORT",
        value_parser = address,
        help_heading = "HTTP"
    )]
    pub listen: Option<SocketAddr>,
    /// Hosts that requests may name besides this machine's addresses: names, `*.example.org`, or `*`
    /// for any; separated by commas, or given repeatedly [default: none]
    #[arg(
        long,
        env = "SKALD_ALLOWED_HOST",
        value_name = "HOST",
        value_delimiter = ',',
        help_heading = "HTTP"
    )]
    pub allowed_host: Option<Vec<AllowedHost>>,
    /// Origins whose web pages may call the server, such as `https://app.example.org`, or `*` for any;
    /// separated by commas, or given repeatedly [default: none]
    #[arg(
        long,
        env = "SKALD_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ',',
        help_heading = "HTTP"
    )]
    pub cors_origin: Option<Vec<CorsOrigin>>,
    /// A file with API keys, which `skald keys` makes: every request then needs one, even if the file has
    /// none. The file is read again when it changes or on SIGHUP [default: none]
    #[arg(long, env = "SKALD_KEYS", value_name = "FILE", help_heading = "HTTP")]
    pub keys: Option<PathBuf>,
    /// The server's certificate chain in PEM, its own certificate first: the server then speaks TLS,
    /// and reads file and key again when they change or on SIGHUP [default: none]
    #[arg(
        long,
        env = "SKALD_TLS_CERT",
        value_name = "FILE",
        help_heading = "HTTP"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM [default: none]
    #[arg(
        long,
        env = "SKALD_TLS_KEY",
        value_name = "FILE",
        help_heading = "HTTP"
    )]
    pub tls_key: Option<PathBuf>,
    /// Connections open at once [default: what the limit of open files leaves, up to 16384]
    #[arg(
        long,
        env = "SKALD_MAX_CONNECTIONS",
        value_name = "N",
        help_heading = "HTTP"
    )]
    pub max_connections: Option<usize>,
    /// How long requests are still accepted after SIGTERM or Ctrl-C, while /health and /readyz
    /// already say 503, so that routers send them elsewhere [default: 0s]
    #[arg(
        long,
        env = "SKALD_DRAIN_DELAY",
        value_name = "DURATION",
        help_heading = "HTTP"
    )]
    pub drain_delay: Option<HumanDuration>,
    /// How long streams in flight may go on after that [default: 30s]
    #[arg(
        long,
        env = "SKALD_DRAIN_TIMEOUT",
        value_name = "DURATION",
        help_heading = "HTTP"
    )]
    pub drain_timeout: Option<HumanDuration>,
    /// Interval of keep-alive comments in a stream without tokens, so that proxies keep it open
    /// [default: 15s]
    #[arg(
        long,
        env = "SKALD_KEEP_ALIVE",
        value_name = "DURATION",
        help_heading = "HTTP"
    )]
    pub keep_alive: Option<HumanDuration>,
    /// How long a request may wait for its place in the batch, and for its session: one that would wait
    /// longer for the batch gets a 429 at once, one that has waited this long a 503 [default: 30s]
    #[arg(
        long,
        env = "SKALD_QUEUE_TIMEOUT",
        value_name = "DURATION",
        help_heading = "Engine"
    )]
    pub queue_timeout: Option<HumanDuration>,
    /// How long a client may go without reading any of its response before the response is ended. A stream
    /// with 256 unread tokens gives up its place in the batch before that [default: 30s]
    #[arg(
        long,
        env = "SKALD_STALL_TIMEOUT",
        value_name = "DURATION",
        help_heading = "HTTP"
    )]
    pub stall_timeout: Option<HumanDuration>,
    /// How long the inference worker may have work and make no step before /livez and /readyz say 503;
    /// longer than any step takes [default: 30s]
    #[arg(
        long,
        env = "SKALD_WATCHDOG_TIMEOUT",
        value_name = "DURATION",
        help_heading = "HTTP"
    )]
    pub watchdog_timeout: Option<HumanDuration>,
    /// How long a client may take to send the head of a request; also how long a connection may stay
    /// open unused [default: 30s]
    #[arg(
        long,
        env = "SKALD_HEADER_TIMEOUT",
        value_name = "DURATION",
        help_heading = "HTTP"
    )]
    pub header_timeout: Option<HumanDuration>,
    /// How long a client may take to send the body of a request [default: 30s]
    #[arg(
        long,
        env = "SKALD_BODY_TIMEOUT",
        value_name = "DURATION",
        help_heading = "HTTP"
    )]
    pub body_timeout: Option<HumanDuration>,
    /// The largest body of a request [default: 2MiB]
    #[arg(
        long,
        env = "SKALD_MAX_BODY",
        value_name = "SIZE",
        help_heading = "HTTP"
    )]
    pub max_body: Option<ByteSize>,
    /// Bytes of requests of more than 64 KiB that may be parsed and tokenized, or wait for it; also bytes of
    /// bodies that have not arrived and of whole answers that their clients have not read. More get a 429.
    /// At least 64KiB [default: 64MiB]
    #[arg(
        long,
        env = "SKALD_MAX_PENDING",
        value_name = "SIZE",
        help_heading = "HTTP"
    )]
    pub max_pending: Option<ByteSize>,
    /// How log lines look [default: auto]
    #[arg(long, env = "SKALD_LOG_FORMAT", value_enum, help_heading = "Logs")]
    pub log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as
    /// `info,skald::engine=debug` [default: info]
    #[arg(long, env = "SKALD_LOG", value_name = "FILTER", help_heading = "Logs")]
    pub log: Option<String>,
    /// Log prompts and answers, and what errors quote of them [default: false]
    #[arg(
        long,
        env = "SKALD_LOG_PROMPTS",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Logs"
    )]
    pub log_prompts: Option<bool>,
    /// Send traces to this OpenTelemetry collector, such as `http://localhost:4318`, by OTLP over HTTP
    /// [default: none, or what `OTEL_EXPORTER_OTLP_ENDPOINT` says]
    #[arg(
        long,
        env = "SKALD_OTLP_ENDPOINT",
        value_name = "URL",
        help_heading = "Traces"
    )]
    pub otlp_endpoint: Option<SecretUrl>,
}

/// All settings, checked.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // each is documented in `Layer`
pub struct Settings {
    pub model: String,
    pub served_model_name: Option<String>,
    pub dtype: Dtype,
    pub generation_config: GenerationDefaults,
    pub chat_template: Option<String>,
    pub threads: Sourced<NonZeroUsize>,
    /// Chosen by [`resources::kv_memory`], once the weights are loaded, where nothing is set.
    pub kv_memory: Option<ByteSize>,
    pub kv_dtype: KvPrecision,
    pub max_batch: usize,
    pub max_step_tokens: usize,
    pub step_time: Duration,
    pub speculation: Speculation,
    pub max_queue: usize,
    pub share_prefix_cache: bool,
    pub session_store: Option<SecretUrl>,
    pub session_lease: Duration,
    pub session_dir: Option<PathBuf>,
    pub session_kv_size: ByteSize,
    pub session_ttl: Option<Duration>,
    pub session_limit: Option<usize>,
    pub max_sessions: usize,
    pub max_session_tokens: usize,
    pub listen: SocketAddr,
    pub allowed_host: Vec<AllowedHost>,
    pub cors_origin: Vec<CorsOrigin>,
    pub keys: Option<PathBuf>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// Chosen by [`resources::Connections::within`] where nothing is set.
    pub max_connections: Option<usize>,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
    pub keep_alive: Duration,
    pub queue_timeout: Duration,
    pub stall_timeout: Duration,
    pub watchdog_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub max_body: ByteSize,
    pub max_pending: ByteSize,
    pub log_format: LogFormat,
    pub log: String,
    pub log_prompts: bool,
    pub otlp_endpoint: Option<OtlpEndpoint>,
}

impl Layer {
    /// The names of all settings, as flags and file have them.
    #[must_use]
    pub fn names() -> Vec<String> {
        let command = Self::augment_args(clap::Command::new("settings"));
        let longs = command.get_arguments().filter_map(clap::Arg::get_long);
        longs.map(str::to_owned).collect()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn from_file(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Io {
            file: file.to_owned(),
            source,
        })?;
        Self::from_toml(file, &text)
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn from_toml(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let toml_error = |error: toml::de::Error| ConfigError::Toml {
            file: file.to_owned(),
            // The parser quotes the line, and this one may have a password in it.
            reason: if text.contains("session-store") {
                error.message().to_owned()
            } else {
                error.to_string().trim_end().to_owned()
            },
        };
        let table: toml::Table = text.parse().map_err(toml_error)?;
        let names = Self::names();
        if let Some(key) = table.keys().find(|key| !names.contains(key)) {
            let starts = |line: &str| {
                line.trim_start()
                    .trim_start_matches(['[', '"'])
                    .starts_with(key.as_str())
            };
            return Err(ConfigError::UnknownKey {
                file: file.to_owned(),
                line: 1 + text.lines().position(starts).unwrap_or(0),
                nearest: nearest(key, &names),
                key: key.clone(),
            });
        }
        toml::from_str(text).map_err(toml_error)
    }

    /// Fills in from `below` what this layer does not say.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            model: self.model.or(below.model),
            served_model_name: self.served_model_name.or(below.served_model_name),
            dtype: self.dtype.or(below.dtype),
            generation_config: self.generation_config.or(below.generation_config),
            chat_template: self.chat_template.or(below.chat_template),
            threads: self.threads.or(below.threads),
            kv_memory: self.kv_memory.or(below.kv_memory),
            kv_dtype: self.kv_dtype.or(below.kv_dtype),
            max_batch: self.max_batch.or(below.max_batch),
            max_step_tokens: self.max_step_tokens.or(below.max_step_tokens),
            step_time: self.step_time.or(below.step_time),
            speculation: self.speculation.or(below.speculation),
            max_queue: self.max_queue.or(below.max_queue),
            share_prefix_cache: self.share_prefix_cache.or(below.share_prefix_cache),
            session_store: self.session_store.or(below.session_store),
            session_lease: self.session_lease.or(below.session_lease),
            session_dir: self.session_dir.or(below.session_dir),
            session_kv_size: self.session_kv_size.or(below.session_kv_size),
            session_ttl: self.session_ttl.or(below.session_ttl),
            session_limit: self.session_limit.or(below.session_limit),
            max_sessions: self.max_sessions.or(below.max_sessions),
            max_session_tokens: self.max_session_tokens.or(below.max_session_tokens),
            listen: self.listen.or(below.listen),
            allowed_host: self.allowed_host.or(below.allowed_host),
            cors_origin: self.cors_origin.or(below.cors_origin),
            keys: self.keys.or(below.keys),
            tls_cert: self.tls_cert.or(below.tls_cert),
            tls_key: self.tls_key.or(below.tls_key),
            max_connections: self.max_connections.or(below.max_connections),
            drain_delay: self.drain_delay.or(below.drain_delay),
            drain_timeout: self.drain_timeout.or(below.drain_timeout),
            keep_alive: self.keep_alive.or(below.keep_alive),
            queue_timeout: self.queue_timeout.or(below.queue_timeout),
            stall_timeout: self.stall_timeout.or(below.stall_timeout),
            watchdog_timeout: self.watchdog_timeout.or(below.watchdog_timeout),
            header_timeout: self.header_timeout.or(below.header_timeout),
            body_timeout: self.body_timeout.or(below.body_timeout),
            max_body: self.max_body.or(below.max_body),
            max_pending: self.max_pending.or(below.max_pending),
            log_format: self.log_format.or(below.log_format),
            log: self.log.or(below.log),
            log_prompts: self.log_prompts.or(below.log_prompts),
            otlp_endpoint: self.otlp_endpoint.or(below.otlp_endpoint),
        }
    }

    /// Fills in the defaults and checks all values.
    ///
    /// # Errors
    /// [`ConfigError::Range`] naming setting, value and what would do.
    pub fn settle(self) -> Result<Settings, ConfigError> {
        let seconds = |duration: Option<HumanDuration>, default| {
            duration.map_or(Duration::from_secs(default), |d| d.0)
        };
        let settings = Settings {
            model: self.model.unwrap_or_else(|| "builtin".to_owned()),
            served_model_name: self.served_model_name,
            dtype: self.dtype.unwrap_or(Dtype::Auto),
            generation_config: self.generation_config.unwrap_or(GenerationDefaults::Auto),
            chat_template: self.chat_template,
            threads: resources::threads(self.threads),
            kv_memory: self.kv_memory,
            kv_dtype: self.kv_dtype.unwrap_or(KvPrecision::Auto),
            max_batch: self.max_batch.unwrap_or(64),
            max_step_tokens: self.max_step_tokens.unwrap_or(512),
            step_time: self.step_time.map_or(Duration::from_millis(100), |d| d.0),
            speculation: self.speculation.unwrap_or(Speculation::Auto),
            max_queue: self.max_queue.unwrap_or(256),
            share_prefix_cache: self.share_prefix_cache.unwrap_or(false),
            session_store: self.session_store,
            session_lease: seconds(self.session_lease, 10),
            session_dir: self.session_dir,
            session_kv_size: self.session_kv_size.unwrap_or(ByteSize::gib(4)),
            session_ttl: self.session_ttl.map(|ttl| ttl.0),
            session_limit: self.session_limit,
            max_sessions: self.max_sessions.unwrap_or(10_000),
            max_session_tokens: self.max_session_tokens.unwrap_or(1 << 18),
            listen: self
                .listen
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080))),
            allowed_host: self.allowed_host.unwrap_or_default(),
            cors_origin: self.cors_origin.unwrap_or_default(),
            keys: self.keys,
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            max_connections: self.max_connections,
            drain_delay: seconds(self.drain_delay, 0),
            drain_timeout: seconds(self.drain_timeout, 30),
            keep_alive: seconds(self.keep_alive, 15),
            queue_timeout: seconds(self.queue_timeout, 30),
            stall_timeout: seconds(self.stall_timeout, 30),
            watchdog_timeout: seconds(self.watchdog_timeout, 30),
            header_timeout: seconds(self.header_timeout, 30),
            body_timeout: seconds(self.body_timeout, 30),
            max_body: self.max_body.unwrap_or(ByteSize::mib(2)),
            max_pending: self.max_pending.unwrap_or(ByteSize::mib(64)),
            log_format: self.log_format.unwrap_or(LogFormat::Auto),
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_prompts: self.log_prompts.unwrap_or(false),
            otlp_endpoint: self
                .otlp_endpoint
                .map(|url| url.expose().parse())
                .transpose()?,
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Settings {
    fn check(&self) -> Result<(), ConfigError> {
        let between = |setting, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(ConfigError::Range {
                setting,
                value: value.to_string(),
                expected: format!("it must be {least} to {most}"),
            })
        };
        between("threads", self.threads.value.get(), 1, MAX_THREADS)?;
        between("max-batch", self.max_batch, 1, 4096)?;
        between("max-step-tokens", self.max_step_tokens, 1, 1 << 16)?;
        if self.max_batch > self.max_step_tokens {
            return Err(ConfigError::Range {
                setting: "max-batch",
                value: self.max_batch.to_string(),
                expected: format!(
                    "it must not exceed `max-step-tokens` ({}): lower the one or raise the other",
                    self.max_step_tokens
                ),
            });
        }
        between("max-queue", self.max_queue, 1, 1 << 20)?;
        between("max-sessions", self.max_sessions, 1, 1 << 30)?;
        between("max-session-tokens", self.max_session_tokens, 1, 1 << 30)?;
        if let Some(limit) = self.session_limit {
            between("session-limit", limit, 1, 1 << 30)?;
        }
        if let Some(connections) = self.max_connections {
            between("max-connections", connections, 1, 1 << 20)?;
        }
        self.check_tls()?;
        let (least, most) = LEASE;
        if !(least..=most).contains(&self.session_lease) {
            return Err(ConfigError::Range {
                setting: "session-lease",
                value: HumanDuration(self.session_lease).to_string(),
                expected: format!(
                    "it must be {} to {}",
                    HumanDuration(least),
                    HumanDuration(most)
                ),
            });
        }
        if self.served_model_name.as_deref() == Some("") {
            return Err(ConfigError::Range {
                setting: "served-model-name",
                value: "empty".to_owned(),
                expected: "it must be a name".to_owned(),
            });
        }
        let ttl = self.session_ttl.unwrap_or(Duration::MAX);
        for (setting, duration) in [
            ("session-ttl", ttl),
            ("keep-alive", self.keep_alive),
            ("queue-timeout", self.queue_timeout),
            ("watchdog-timeout", self.watchdog_timeout),
            ("stall-timeout", self.stall_timeout),
            ("header-timeout", self.header_timeout),
            ("body-timeout", self.body_timeout),
        ] {
            if duration.is_zero() {
                return Err(ConfigError::Range {
                    setting,
                    value: "0s".to_owned(),
                    expected: "it must be longer than 0s".to_owned(),
                });
            }
        }
        if self.max_pending < MAX_PENDING {
            return Err(ConfigError::Range {
                setting: "max-pending",
                value: self.max_pending.to_string(),
                expected: "it must be at least 64 KiB".to_owned(),
            });
        }
        if self.max_body < ByteSize::kib(1) || self.max_body > ByteSize::gib(1) {
            return Err(ConfigError::Range {
                setting: "max-body",
                value: self.max_body.to_string(),
                expected: "it must be 1 KiB to 1 GiB".to_owned(),
            });
        }
        Ok(())
    }
}

impl Settings {
    /// Checks that certificate and key are both given, or neither.
    fn check_tls(&self) -> Result<(), ConfigError> {
        let (given, missing) = match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => ("tls-cert", "tls-key"),
            (None, Some(_)) => ("tls-key", "tls-cert"),
            (Some(_), Some(_)) | (None, None) => return Ok(()),
        };
        Err(ConfigError::Incomplete { given, missing })
    }
}

/// The name that is nearest to a misspelt one, if any is near.
#[must_use]
pub fn nearest(name: &str, names: &[String]) -> Option<String> {
    let near = names.iter().map(|n| (strsim::jaro_winkler(name, n), n));
    let best = near.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then(|| best.1.clone())
}

/// `SKALD_*` variables that set nothing, each with the variable whose name is nearest.
#[must_use]
pub fn unknown_variables(variables: impl Iterator<Item = String>) -> Vec<(String, Option<String>)> {
    let mut known: Vec<String> = Layer::names()
        .iter()
        .map(|name| format!("SKALD_{}", name.replace('-', "_").to_uppercase()))
        .collect();
    known.push("SKALD_CONFIG".to_owned());
    // Of `skald bench`, which may share an environment with the server.
    known.push("SKALD_BENCH_API_KEY".to_owned());
    variables
        .filter(|name| name.starts_with("SKALD_") && !name.starts_with("SKALD_TEST_"))
        .filter(|name| !known.contains(name))
        .map(|name| (name.clone(), nearest(&name, &known)))
        .collect()
}
