//! `skald bench`: puts load on a server, and tells how fast it answers.
//!
//! | module | what it is for |
//! |---|---|
//! | `lengths`, `workload` | what is asked: lengths, prompts |
//! | `load`, `run`, `progress` | when: closed loop, open loop; a whole load, and how far it is |
//! | `dialect`, `client`, `sse` | one request and its answer |
//! | `retry` | a request that is sent again after a failure |
//! | `timeline`, `failure` | what came of it |
//! | `stats`, `report` | what came of all, as a table and as JSON |
//!
//! What the figures mean:
//!
//! - The clock of a request starts just before it is sent, with its body made; a connection that
//!   has to be opened first is part of it (warm-up requests leave some open). In an open loop it
//!   starts when the request was *scheduled* to arrive: see `load`.
//! - Events that arrive in one piece have the same time. Time to first token ends with the first
//!   event that has content, not with the headers.
//! - Tokens are those the server reports at the end of a stream. Where it sent several in one
//!   event, each has its share of the gap.
//! - Every request counts: with `--duration` those in flight at its end are waited for. Only
//!   Ctrl-C cancels, which the report tells of.
//! - Prompts differ from their first words on, so a prefix cache does not help, except with
//!   `--shared-prefix`. Runs differ too, unless they are given the same `--seed`.
//!
//! Where it differs from its like: vLLM's `bench serve` has Poisson arrivals and a cap too, but
//! counts latencies from when a request was really sent, leaves gaps whole whatever an event holds,
//! and has one seed by default, so a second run meets the first one's prefix cache. TGI's benchmark
//! talks to the model server below HTTP, with batches of one size; here the way of a user's request
//! is measured.

mod client;
mod dialect;
mod failure;
mod lengths;
mod load;
mod progress;
mod report;
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
use self::workload::{Number, Workload};
use super::{CommandError, http_url, runtime, write_out};

/// Measure how fast a server answers under load
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
    /// The model to ask for [default: the first the server lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Sent as a bearer token
    #[arg(
        long,
        env = "SKALD_BENCH_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// Requests in flight; with --rate, at most so many [default: 1; with --rate any number]
    #[arg(short, long, value_name = "N", value_parser = concurrency, help_heading = "Load")]
    concurrency: Option<NonZeroUsize>,
    /// Requests that arrive each second, on average
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
    /// Send requests for so long; those in flight then are waited for
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Load")]
    duration: Option<Duration>,
    /// Requests before that, not counted
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
    /// Retry a failed request up to N times where that may help: no connection, a stream that broke off,
    /// 408, 409, 429 and 5xx; latencies count from its first attempt
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Load")]
    retries: u32,
    /// Lengths of prompts, in words that are a token each to most models
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
    /// Outputs go on past the end-of-text token, to the length asked for (openai only)
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
    /// 0 always takes the most likely token
    #[arg(
        long,
        value_name = "T",
        value_parser = temperature,
        default_value = "0",
        help_heading = "Requests"
    )]
    temperature: f64,
    /// The same seed gives the same prompts, lengths and arrivals; a server that has seen them
    /// before may have them cached [default: a new one]
    #[arg(long, help_heading = "Requests")]
    seed: Option<u64>,
    /// One JSON object instead of a table
    #[arg(long, help_heading = "Report")]
    json: bool,
    /// Write the JSON object to this file too
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    output: Option<PathBuf>,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), CommandError> {
        let target = self.target().map_err(CommandError::Unusable)?;
        // Before the run: to find out after it would be too late.
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
            None => anyhow!("ended before anything was measured"),
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
        // Short enough to be typed again.
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
            // A closed loop in any case: what is not counted need not arrive at random.
            let pace = Pace::Closed(self.concurrency.unwrap_or(NonZeroUsize::MIN));
            let extent = Extent::Requests(self.warmup);
            if run.load(pace, extent, Number::Warmup).await.interrupted {
                let nothing = Measured {
                    interrupted: true,
                    ..Measured::default()
                };
                return Ok((setup, nothing));
            }
        }
        let measured = run.load(self.pace(), self.extent(), Number::Measured);
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

/// An address without a password.
fn server(text: &str) -> Result<Url, String> {
    let url = http_url(text)?;
    // It is shown in reports.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("use --api-key and not a password in the address".to_owned());
    }
    Ok(url)
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; such as 30s or 5m")),
    }
}

/// A connection each: there are no more ports.
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
        Err(format!("must be {} to {}", range.start(), range.end()))
    }
}
