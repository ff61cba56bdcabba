//! The report of a run, as JSON and as a table.
//!
//! The JSON object has the fields of [`Report`] under their names. Times are in milliseconds unless
//! the name ends in `_s`. A distribution is an object with `mean`, `p50`, `p90`, `p95`, `p99` and
//! `max`, or null without samples.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::request_failure::FailureCounts;
use super::stats::Summary;
use super::timeline::{Answered, ms};

/// The parameters of a run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Setup {
    /// URL of the server.
    pub url: String,
    /// `openai` or `tgi`.
    pub api: &'static str,
    /// The requested model; null if none was named.
    pub model: Option<String>,
    /// The pace of requests.
    pub load: LoadSetup,
    /// Distribution of the lengths of prompts, as given.
    pub prompt_tokens: String,
    /// Distribution of the lengths of outputs, as given.
    pub output_tokens: String,
    /// Leading tokens shared by all prompts.
    pub shared_prefix: usize,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Seed of prompts, lengths and arrivals.
    pub seed: u64,
    /// Maximum attempts of a request after its first.
    pub max_retries: u32,
    /// Warm-up requests, which are not counted.
    pub warmup: u64,
}

/// The pace of requests.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum LoadSetup {
    /// `{"kind": "closed", "concurrency"}`
    Closed {
        /// Requests in flight at any time.
        concurrency: usize,
    },
    /// `{"kind": "open", "requests_per_s", "concurrency"}`
    Open {
        /// Mean arrivals per second.
        requests_per_s: f64,
        /// Maximum requests in flight; null is unlimited.
        concurrency: Option<usize>,
    },
}

/// The measurements of a run.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Number of requests that arrived.
    pub arrived: u64,
    /// Completed requests.
    pub answered: Vec<Answered>,
    /// Failed requests.
    pub failed: FailureCounts,
    /// Retries of all requests.
    pub retries: u64,
    /// Time from the start to the end of the last request.
    pub elapsed: Duration,
    /// Whether Ctrl-C ended the run early.
    pub interrupted: bool,
}

impl Measured {
    /// Returns the number of requests that have arrived and not ended.
    pub fn unfinished(&self) -> u64 {
        let ended = self.answered.len() + self.failed.total();
        self.arrived.saturating_sub(ended as u64)
    }
}

/// The report of a run: the schema of the JSON output.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// Parameters of the run.
    #[serde(flatten)]
    pub setup: Setup,
    /// Time from the start of the load to the end of the last request, in seconds.
    pub duration_s: f64,
    /// Whether Ctrl-C ended the run early.
    pub interrupted: bool,
    /// Outcomes of the requests.
    pub requests: Requests,
    /// Failures other than 429, most frequent first.
    pub errors: Vec<ErrorCount>,
    /// Tokens of the completed requests.
    pub tokens: Tokens,
    /// Completed requests and their tokens, over `duration_s`.
    pub throughput: Throughput,
    /// Time to first token: from sending (in an open loop: the scheduled arrival) to the first
    /// event with content.
    pub ttft_ms: Option<Summary>,
    /// Inter-token latency, over all gaps of all requests: between two events with content,
    /// divided by the request's tokens per event.
    pub itl_ms: Option<Summary>,
    /// Time per output token of a request: from the first to the last event with content, divided
    /// by the tokens after the first.
    pub tpot_ms: Option<Summary>,
    /// End-to-end latency: from sending (in an open loop: the scheduled arrival) to the last event.
    pub e2e_ms: Option<Summary>,
    /// In an open loop: from the scheduled arrival to sending; part of the latencies above. Null
    /// in a closed loop.
    pub wait_ms: Option<Summary>,
    /// Generated tokens per request.
    pub output_tokens_per_request: Option<Summary>,
}

/// Outcomes of the requests.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Requests {
    /// Requests with a complete response.
    pub completed: usize,
    /// Requests refused with 429.
    pub rejected: usize,
    /// Requests that failed in another way.
    pub failed: usize,
    /// Requests that were sent or waiting when the run was interrupted.
    pub cancelled: u64,
    /// Retries of all requests.
    pub retries: u64,
}

/// Failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ErrorCount {
    /// `HTTP` and the status, `connection`, `no event stream`, `error in the stream`,
    /// `stream broke off` or `timed out`.
    pub kind: String,
    /// Number of failures.
    pub count: usize,
    /// Message of the first failure.
    pub example: String,
}

/// Tokens of the completed requests.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Tokens {
    /// Prompt tokens.
    pub prompt: usize,
    /// Generated tokens.
    pub output: usize,
    /// Requested tokens.
    pub output_asked: usize,
    /// Whether the server reported all token counts. If not, words and events with content were counted
    /// instead for some requests.
    pub reported: bool,
    /// Mean tokens per event.
    pub per_event: f64,
}

/// Completed requests and their tokens per second.
#[derive(Debug, Clone, Copy, Serialize)]
#[expect(
    clippy::struct_field_names,
    reason = "JSON has units only in field names"
)]
pub(super) struct Throughput {
    /// Completed requests per second.
    pub requests_per_s: f64,
    /// Generated tokens per second.
    pub output_tokens_per_s: f64,
    /// Prompt tokens and generated tokens per second.
    pub total_tokens_per_s: f64,
}

impl Report {
    /// Computes the report.
    pub fn new(setup: Setup, measured: &Measured) -> Self {
        let answered = &measured.answered;
        let (failed, rejected) = (measured.failed.total(), measured.failed.rejected());
        let total = |tokens: fn(&Answered) -> usize| answered.iter().map(tokens).sum::<usize>();
        let (prompt, output) = (total(|a| a.prompt_tokens), total(|a| a.output_tokens));
        let seconds = measured.elapsed.as_secs_f64();
        let rate = |count: usize| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        let open = matches!(setup.load, LoadSetup::Open { .. });
        Self {
            duration_s: seconds,
            interrupted: measured.interrupted,
            requests: Requests {
                completed: answered.len(),
                rejected,
                failed: failed - rejected,
                cancelled: measured.unfinished(),
                retries: measured.retries,
            },
            errors: errors(&measured.failed),
            tokens: Tokens {
                prompt,
                output,
                output_asked: total(|a| a.asked_tokens),
                reported: answered.iter().all(|a| a.reported),
                per_event: output as f64 / total(Answered::events).max(1) as f64,
            },
            throughput: Throughput {
                requests_per_s: rate(answered.len()),
                output_tokens_per_s: rate(output),
                total_tokens_per_s: rate(prompt + output),
            },
            ttft_ms: Summary::of(answered.iter().filter_map(|a| a.first_token.map(ms))),
            itl_ms: Summary::of(answered.iter().flat_map(Answered::inter_token_ms)),
            tpot_ms: Summary::of(answered.iter().filter_map(Answered::per_token_ms)),
            e2e_ms: Summary::of(answered.iter().map(|a| ms(a.total))),
            wait_ms: Summary::of(answered.iter().filter(|_| open).map(|a| ms(a.wait))),
            output_tokens_per_request: Summary::of(answered.iter().map(|a| a.output_tokens as f64)),
            setup,
        }
    }
}

/// Returns the failures other than rejections, which are counted separately.
fn errors(failed: &FailureCounts) -> Vec<ErrorCount> {
    let kinds = failed.most_frequent().into_iter();
    let errors = kinds.filter(|(kind, ..)| !kind.is_rejection());
    errors
        .map(|(kind, count, example)| ErrorCount {
            kind: kind.to_string(),
            count,
            example: example.to_owned(),
        })
        .collect()
}

/// Writes the table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setup = &self.setup;
        let model = setup.model.as_deref().unwrap_or("no model named");
        writeln!(f, "{} ({}, {model})", setup.url, setup.api)?;
        writeln!(
            f,
            "{}; prompts of {} tokens, outputs of {}; seed {}",
            setup.load, setup.prompt_tokens, setup.output_tokens, setup.seed
        )?;
        let interrupted = if self.interrupted {
            ", interrupted"
        } else {
            ""
        };
        writeln!(f)?;
        let Requests {
            completed,
            rejected,
            failed,
            cancelled,
            retries,
        } = self.requests;
        write!(
            f,
            "Requests    {completed} completed, {failed} failed, {rejected} rejected (429)"
        )?;
        if cancelled > 0 {
            write!(f, ", {cancelled} cancelled")?;
        }
        if retries > 0 {
            write!(f, ", {retries} retries")?;
        }
        writeln!(f, " in {:.2} s{interrupted}", self.duration_s)?;
        let tokens = self.tokens;
        writeln!(
            f,
            "Tokens      {} prompt, {} output ({} requested){}",
            tokens.prompt,
            tokens.output,
            tokens.output_asked,
            if tokens.reported { "" } else { ", estimated" }
        )?;
        let throughput = self.throughput;
        writeln!(
            f,
            "Throughput  {:.2} requests/s, {:.1} output tokens/s, {:.1} total tokens/s",
            throughput.requests_per_s,
            throughput.output_tokens_per_s,
            throughput.total_tokens_per_s
        )?;
        for error in &self.errors {
            writeln!(
                f,
                "Error       {} x {}: {}",
                error.count, error.kind, error.example
            )?;
        }
        self.write_distributions(f)
    }
}

impl Report {
    fn write_distributions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("Time to first token, ms", self.ttft_ms),
            ("Inter-token latency, ms", self.itl_ms),
            ("Time per output token, ms", self.tpot_ms),
            ("End-to-end latency, ms", self.e2e_ms),
            ("Waiting to be sent, ms", self.wait_ms),
            ("Output tokens", self.output_tokens_per_request),
        ];
        if rows.iter().all(|(_, summary)| summary.is_none()) {
            return Ok(());
        }
        write!(f, "\n{:26}", "")?;
        for column in ["mean", "p50", "p90", "p95", "p99", "max"] {
            write!(f, "{column:>10}")?;
        }
        writeln!(f)?;
        for (name, summary) in rows {
            let Some(summary) = summary else { continue };
            let Summary {
                mean,
                p50,
                p90,
                p95,
                p99,
                max,
            } = summary;
            write!(f, "{name:26}")?;
            for value in [mean, p50, p90, p95, p99, max] {
                write!(f, "{value:>10.2}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for LoadSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency } => write!(f, "closed loop, {concurrency} in flight"),
            Self::Open {
                requests_per_s,
                concurrency,
            } => {
                write!(f, "open loop, {requests_per_s} requests/s")?;
                concurrency.map_or(Ok(()), |cap| write!(f, ", at most {cap} in flight"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::request_failure::{FailureKind, RequestFailure};
    use super::*;

    fn setup(load: LoadSetup) -> Setup {
        Setup {
            url: "http://server".to_owned(),
            api: "openai",
            model: Some("m".to_owned()),
            load,
            prompt_tokens: "64".to_owned(),
            output_tokens: "2..4".to_owned(),
            shared_prefix: 0,
            temperature: 0.0,
            seed: 1,
            warmup: 0,
            max_retries: 1,
        }
    }

    fn answered(output_tokens: usize) -> Answered {
        Answered {
            wait: Duration::from_millis(1),
            first_token: Some(Duration::from_millis(10)),
            total: Duration::from_millis(50),
            gaps: vec![Duration::from_millis(20); output_tokens - 1],
            prompt_tokens: 64,
            output_tokens,
            asked_tokens: 4,
            reported: true,
        }
    }

    fn measured() -> Measured {
        let mut failed = FailureCounts::default();
        for (status, message) in [(429, "busy"), (500, "oh"), (400, "too long"), (500, "ah")] {
            failed.add(RequestFailure::new(FailureKind::Status(status), message));
        }
        Measured {
            arrived: 8,
            answered: vec![answered(2), answered(4)],
            failed,
            retries: 5,
            elapsed: Duration::from_secs(2),
            interrupted: true,
        }
    }

    #[test]
    fn figures_are_computed_from_the_requests() {
        let load = LoadSetup::Closed { concurrency: 2 };
        let report = serde_json::to_value(Report::new(setup(load), &measured())).unwrap();
        assert_eq!(report["load"], json!({"kind": "closed", "concurrency": 2}));
        assert_eq!(
            report["requests"],
            json!({"completed": 2, "rejected": 1, "failed": 3, "cancelled": 2, "retries": 5})
        );
        assert_eq!(
            report["errors"],
            json!([
                {"kind": "HTTP 500", "count": 2, "example": "oh"},
                {"kind": "HTTP 400", "count": 1, "example": "too long"},
            ])
        );
        assert_eq!(
            report["tokens"],
            json!({
                "prompt": 128, "output": 6, "output_asked": 8, "reported": true, "per_event": 1.0,
            })
        );
        assert_eq!(
            report["throughput"],
            json!({
                "requests_per_s": 1.0, "output_tokens_per_s": 3.0, "total_tokens_per_s": 67.0,
            })
        );
        assert_eq!(report["ttft_ms"]["p99"], 10.0);
        assert_eq!(report["itl_ms"]["mean"], 20.0);
        assert_eq!(report["tpot_ms"]["max"], 20.0);
        assert_eq!(report["e2e_ms"]["p50"], 50.0);
        assert_eq!(report["output_tokens_per_request"]["mean"], 3.0);
        assert_eq!(report["wait_ms"], Value::Null);
    }

    #[test]
    fn waiting_is_shown_in_an_open_loop() {
        let load = LoadSetup::Open {
            requests_per_s: 2.5,
            concurrency: Some(4),
        };
        let report = Report::new(setup(load), &measured());
        assert_eq!(report.wait_ms.unwrap().max, 1.0);
        let table = report.to_string();
        for part in [
            "http://server (openai, m)",
            "open loop, 2.5 requests/s, at most 4 in flight",
            "2 completed, 3 failed, 1 rejected (429), 2 cancelled, 5 retries in 2.00 s, interrupted",
            "128 prompt, 6 output (8 requested)\n",
            "1.00 requests/s, 3.0 output tokens/s, 67.0 total tokens/s",
            "2 x HTTP 500: oh",
            "Waiting to be sent, ms          1.00",
        ] {
            assert!(table.contains(part), "{part:?} in {table}");
        }
    }

    #[test]
    fn a_run_without_completed_requests_has_no_distributions() {
        let load = LoadSetup::Closed { concurrency: 1 };
        let report = Report::new(setup(load), &Measured::default());
        assert_eq!(report.throughput.requests_per_s, 0.0);
        assert!(!report.to_string().contains("p99"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["ttft_ms"], Value::Null);
    }
}
