//! `skald bench`: a load generator that measures throughput and latency over HTTP.
//!
//! | module | purpose |
//! |---|---|
//! | `lengths`, `workload` | prompts, and the lengths of prompts and outputs |
//! | `load`, `run`, `progress` | closed and open loops; a complete load and its progress |
//! | `dialect`, `client`, `sse` | one request and its response |
//! | `retry` | retries of failed requests |
//! | `timeline`, `request_failure` | the outcome of one request |
//! | `stats`, `report` | the outcome of a run, as a table and as JSON |
//!
//! How the figures are measured:
//!
//! - The clock of a request starts just before it is sent, with its body complete. It includes opening
//!   a connection, if necessary (warm-up requests leave some open). In an open loop it starts when the
//!   request was *scheduled* to arrive: see `load`.
//! - Events that arrive in one chunk have the same time. Time to first token ends with the first event
//!   that has content, not with the headers.
//! - Token counts are those that the server reports at the end of a stream. If it sends several tokens
//!   in one event, each gets its share of the gap.
//! - Every request counts: at the end of `--duration`, those in flight are waited for. Only Ctrl-C
//!   cancels requests, and the report shows their number.
//! - Prompts differ from their first words on, so a prefix cache does not help, except with
//!   `--shared-prefix`. Runs differ too, unless they have the same `--seed`.
//!
//! Differences from other tools: vLLM's `bench serve` has Poisson arrivals and a cap too, but measures
//! latencies from the actual sending of a request, does not divide gaps by the tokens per event, and
//! has a fixed default seed, so that a second run hits the prefix cache of the first. TGI's benchmark
//! bypasses HTTP and uses batches of one size; this one measures what a user of the API sees.

mod client;
mod dialect;
mod lengths;
mod load;
mod progress;
mod report;
mod request_failure;
mod retry;
mod run;
mod sse;
mod stats;
mod timeline;
mod workload;

use std::fs::File;
use std::io::Write;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{ArgAction, Args};
use reqwest::Url;
use uuid::Uuid;

use self::client::Target;
use self::dialect::{BodyOptions, Dialect};
use self::lengths::Lengths;
use self::load::{Extent, Pace};
use self::report::{LoadSetup, Measured, Report, Setup};
use self::run::Run;
use self::workload::{RequestNumber, Workload};
use super::{CommandError, http_url, runtime, write_out};

/// Measure the speed of a server under load
#[derive(Debug, Args)]
#[command(
    after_help = "DIST is a number of tokens (64), a range (32..128, both ends included), or \
        normal:MEAN,DEVIATION.\n\
        Without --rate a closed loop keeps --concurrency requests in flight. With --rate an open \
        loop sends at random moments whether or not the server keeps up, and latencies count \
        from the moment a request should have been sent.\n\n\
        Examples:\n  \
        skald bench\n  \
        skald bench --concurrency 16 --requests 200 --prompt-tokens 64 --output-tokens 128\n  \
        skald bench --rate 4 --duration 60s --output-tokens normal:64,16 --output run.json\n  \
        skald bench http://127.0.0.1:3000 --api tgi --json"
)]
pub struct Bench {
    /// The server
    #[arg(value_name = "URL", value_parser = server, default_value = "http://127.0.0.1:8080")]
    url: Url,
    /// API to use
    #[arg(long, value_enum, default_value = "openai")]
    api: Dialect,
    /// Model to request [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// API key, sent as a bearer token
    #[arg(
        long,
        env = "SKALD_BENCH_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// Requests in flight; with --rate, the maximum [default: 1; with --rate unlimited]
    #[arg(short, long, value_name = "N", value_parser = concurrency, help_heading = "Load")]
    concurrency: Option<NonZeroUsize>,
    /// Mean arrivals of requests per second
    #[arg(long, value_name = "R", value_parser = rate, help_heading = "Load")]
    rate: Option<f64>,
    /// Requests to send [default: 100]
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..),
        conflicts_with = "duration",
        help_heading = "Load"
    )]
    requests: Option<u64>,
    /// Send requests for this time, then wait for those in flight
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Load")]
    duration: Option<Duration>,
    /// Warm-up requests, which are not counted
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Load")]
    warmup: u64,
    /// Give up on a request after this time
    #[arg(
        long,
        value_name = "TIME",
        value_parser = duration,
        default_value = "10m",
        help_heading = "Load"
    )]
    timeout: Duration,
    /// Retry a failed request up to N times after a connection error, an interrupted stream, 408, 409, 429
    /// or 5xx; latencies count from the first attempt
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Load")]
    retries: u32,
    /// Lengths of prompts, in words that are one token each for most models
    #[arg(
        long,
        value_name = "DIST",
        default_value = "64",
        help_heading = "Requests"
    )]
    prompt_tokens: Lengths,
    /// Lengths of outputs
    #[arg(
        long,
        value_name = "DIST",
        default_value = "64",
        help_heading = "Requests"
    )]
    output_tokens: Lengths,
    /// Number of leading tokens shared by all prompts
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Requests")]
    shared_prefix: usize,
    /// Generate past the end-of-text token, up to the requested length (openai only)
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set,
        help_heading = "Requests"
    )]
    ignore_eos: bool,
    /// Sampling temperature; 0 is greedy
    #[arg(
        long,
        value_name = "T",
        value_parser = temperature,
        default_value = "0",
        help_heading = "Requests"
    )]
    temperature: f64,
    /// Seed for prompts, lengths and arrivals; a server that has seen the same prompts before may have
    /// them cached [default: random]
    #[arg(long, help_heading = "Requests")]
    seed: Option<u64>,
    /// Print a JSON object instead of a table
    #[arg(long, help_heading = "Report")]
    json: bool,
    /// Also write the JSON object to this file
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    output: Option<PathBuf>,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), CommandError> {
        let target = self.target().map_err(CommandError::Unusable)?;
        // Created before the run: a failure afterwards would lose the results.
        let file = self.create_output().map_err(CommandError::Unusable)?;
        let measured = runtime()?.block_on(self.measure(target));
        let (setup, measured) = measured.map_err(CommandError::Running)?;
        let report = Report::new(setup, &measured);
        self.publish(&report, file).map_err(CommandError::Running)?;
        if !measured.answered.is_empty() {
            return Ok(());
        }
        let error = match measured.failed.most_frequent().first() {
            Some((kind, _, example)) => anyhow!(
                "none of {} requests succeeded: {kind}: {example}",
                measured.failed.total()
            ),
            None => anyhow!("interrupted before any request was measured"),
        };
        Err(CommandError::Running(error))
    }

    fn target(&self) -> anyhow::Result<Target> {
        Target::new(&self.url, self.api, self.api_key.as_deref(), self.timeout)
            .context("--api-key can't be sent as a header")
    }

    fn create_output(&self) -> anyhow::Result<Option<File>> {
        let Some(path) = &self.output else {
            return Ok(None);
        };
        let file = File::create(path);
        let file = file.with_context(|| format!("--output {} can't be written", path.display()))?;
        Ok(Some(file))
    }

    fn publish(&self, report: &Report, file: Option<File>) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(report)?;
        if let Some(mut file) = file {
            writeln!(file, "{json}").context("--output can't be written")?;
        }
        if self.json {
            write_out(&format!("{json}\n"))
        } else {
            write_out(&report.to_string())
        }
    }

    async fn measure(&self, target: Target) -> anyhow::Result<(Setup, Measured)> {
        let listed = target.first_model().await;
        let listed = listed
            .map_err(|failure| anyhow!("can't connect to {}: {}", self.url, failure.message))?;
        let model = self.model.clone().or(listed);
        let model = model.filter(|_| self.api == Dialect::Openai);
        // Short enough to type.
        let seed = self
            .seed
            .unwrap_or_else(|| Uuid::new_v4().as_u128() as u64 % 1_000_000_000);
        let setup = self.setup(model.clone(), seed);
        let options = BodyOptions {
            model,
            temperature: self.temperature,
            ignore_eos: self.ignore_eos,
        };
        let workload = Workload {
            seed,
            prompt: self.prompt_tokens,
            output: self.output_tokens,
            shared_prefix: self.shared_prefix,
        };
        let run = Run::new(target, options, workload, self.retries);
        if self.warmup > 0 {
            // Always a closed loop: warm-up requests need not arrive at random.
            let pace = Pace::Closed(self.concurrency.unwrap_or(NonZeroUsize::MIN));
            let extent = Extent::Requests(self.warmup);
            let warmup = run.load(pace, extent, RequestNumber::Warmup);
            if warmup.await.interrupted {
                let nothing = Measured {
                    interrupted: true,
                    ..Measured::default()
                };
                return Ok((setup, nothing));
            }
        }
        let measured = run.load(self.pace(), self.extent(), RequestNumber::Measured);
        Ok((setup, measured.await))
    }

    fn pace(&self) -> Pace {
        match self.rate {
            Some(rate) => Pace::Open {
                rate,
                cap: self.concurrency,
            },
            None => Pace::Closed(self.concurrency.unwrap_or(NonZeroUsize::MIN)),
        }
    }

    fn extent(&self) -> Extent {
        match self.duration {
            Some(duration) => Extent::Duration(duration),
            None => Extent::Requests(self.requests.unwrap_or(100)),
        }
    }

    fn setup(&self, model: Option<String>, seed: u64) -> Setup {
        Setup {
            url: self.url.to_string(),
            api: self.api.name(),
            model,
            load: match self.pace() {
                Pace::Closed(concurrency) => LoadSetup::Closed {
                    concurrency: concurrency.get(),
                },
                Pace::Open { rate, cap } => LoadSetup::Open {
                    requests_per_s: rate,
                    concurrency: cap.map(NonZeroUsize::get),
                },
            },
            prompt_tokens: self.prompt_tokens.to_string(),
            output_tokens: self.output_tokens.to_string(),
            shared_prefix: self.shared_prefix,
            temperature: self.temperature,
            seed,
            warmup: self.warmup,
            max_retries: self.retries,
        }
    }
}

/// Parses a URL without user and password.
fn server(text: &str) -> Result<Url, String> {
    let url = http_url(text)?;
    // Reports show the URL.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL must not contain a user name or password; use --api-key".to_owned());
    }
    Ok(url)
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be greater than zero".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; use a duration such as 30s or 5m")),
    }
}

/// Parses a number of requests in flight. Each needs a connection, so the number of ports limits it.
fn concurrency(text: &str) -> Result<NonZeroUsize, String> {
    let number: NonZeroU16 = text
        .parse()
        .map_err(|_| format!("expected a number from 1 to {}", u16::MAX))?;
    Ok(number.into())
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 0.001..=1e6)
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text, 0.0..=100.0)
}

fn number(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if range.contains(&number) {
        Ok(number)
    } else {
        Err(format!("must be from {} to {}", range.start(), range.end()))
    }
}
