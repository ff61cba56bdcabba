//! What the front end counts as it happens: requests by outcome, and histograms of generations.
//!
//! A *request* is one of HTTP. A *generation* is one sequence that the engine accepted: a choice, a
//! returned beam, or an input of an embeddings request; the histograms have one observation for each,
//! as vLLM's do. Latencies begin when the request is submitted to the engine: before that it may
//! have waited for its session.
//!
//! An observation is a short uncontended lock or an atomic addition; nothing here may wait.

use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::engine::FinishReason;
use crate::http::outcome::Outcome;
use crate::http::timeline::Ending;
use crate::request::Output;

/// Bucket bounds of waits and whole requests, in seconds: 1-2.5-5 from a millisecond, since a short
/// prompt to the built-in model takes one, to five minutes, since a long text from a large model on
/// a slow machine takes some.
const DURATION: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];

/// Bucket bounds of the time between tokens, in seconds. Closer together where steps of GPT-2 class
/// models lie (1 to 100 ms, which is also the default of `--step-time`), so that a quantile is
/// within a third; wide above, where there are only stalls.
const INTER_TOKEN: [f64; 19] = [
    0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.025, 0.035, 0.05, 0.075, 0.1,
    0.15, 0.25, 0.5, 1.0, 5.0,
];

/// Bucket bounds of token counts: 1-2-5, as vLLM has them; a window has 1024 or more, a session's
/// history several.
const TOKENS: [f64; 14] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0,
];

/// Why a request is refused for its key, so that each is there from the start.
const REFUSALS: [&str; 6] = [
    "missing",
    "invalid",
    "scope",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
];

/// The labels of a counter of requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    endpoint: String,
    outcome: &'static str,
}

/// The label of a counter of refused keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusalLabels {
    reason: &'static str,
}

/// The label of a counter of generations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FinishLabels {
    finished_reason: &'static str,
}

/// A generation that is over.
#[derive(Debug)]
pub(in crate::http) struct GenerationReport {
    /// What it was for.
    pub output: Output,
    /// How it ended.
    pub ending: Ending,
    /// Tokens of its context, a session's history included.
    pub prompt_tokens: usize,
    /// Tokens it generated.
    pub generated_tokens: usize,
    /// Time since it was submitted.
    pub duration: Duration,
}

/// Connections, counted where they come and go. Cheap to clone: the counts are shared.
#[derive(Debug, Clone, Default)]
pub(in crate::http) struct ConnectionCounts {
    /// Those that are open.
    pub open: Gauge,
    /// Those that gave their place to a new one while they waited for a request.
    pub evicted: Counter,
    /// Requests refused because all places were taken.
    pub refused: Counter,
}

/// All that was counted since the start.
#[derive(Debug)]
pub struct Observations {
    /// When counting began, which is when the process did, in seconds of Unix time.
    pub(super) start_time: f64,
    pub(super) connections: ConnectionCounts,
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) key_refusals: Family<RefusalLabels, Counter>,
    pub(super) generations: Family<FinishLabels, Counter>,
    pub(super) queue_time: Histogram,
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    pub(super) duration: Histogram,
    pub(super) prompt_tokens: Histogram,
    pub(super) generated_tokens: Histogram,
}

impl Default for Observations {
    fn default() -> Self {
        let generations = Family::default();
        for finished_reason in ["stop", "length", "abort", "error"] {
            drop(generations.get_or_create(&FinishLabels { finished_reason }));
        }
        let key_refusals = Family::default();
        for reason in REFUSALS {
            drop(key_refusals.get_or_create(&RefusalLabels { reason }));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            start_time: now.unwrap_or_default().as_secs_f64(),
            connections: ConnectionCounts::default(),
            requests: Family::default(),
            key_refusals,
            generations,
            queue_time: Histogram::new(DURATION),
            time_to_first_token: Histogram::new(DURATION),
            inter_token_latency: Histogram::new(INTER_TOKEN),
            duration: Histogram::new(DURATION),
            prompt_tokens: Histogram::new(TOKENS),
            generated_tokens: Histogram::new(TOKENS),
        }
    }
}

impl Observations {
    /// Returns the counts of connections.
    pub(in crate::http) fn connections(&self) -> &ConnectionCounts {
        &self.connections
    }

    /// Counts a request to the route of this template. With the first one all outcomes of the
    /// endpoint appear, so that the first failure is an increase from 0.
    pub(in crate::http) fn request(&self, endpoint: &str, outcome: Outcome) {
        let labels = |outcome: Outcome| RequestLabels {
            endpoint: endpoint.to_owned(),
            outcome: outcome.as_str(),
        };
        if let Some(counter) = self.requests.get(&labels(outcome)) {
            counter.inc();
            return;
        }
        for outcome in Outcome::ALL {
            drop(self.requests.get_or_create(&labels(outcome)));
        }
        self.requests.get_or_create(&labels(outcome)).inc();
    }

    /// Counts a request that was refused for its key, or for a limit of it.
    pub(in crate::http) fn key_refused(&self, reason: &'static str) {
        let labels = RefusalLabels { reason };
        self.key_refusals.get_or_create(&labels).inc();
    }

    /// Observes the time from a generation's submission to its first step.
    pub(in crate::http) fn queue_time(&self, waited: Duration) {
        self.queue_time.observe(waited.as_secs_f64());
    }

    /// Observes the time from a generation's submission to its first token.
    pub(in crate::http) fn first_token(&self, waited: Duration) {
        self.time_to_first_token.observe(waited.as_secs_f64());
    }

    /// Observes the time between two steps that brought a generation tokens.
    pub fn inter_token(&self, waited: Duration) {
        self.inter_token_latency.observe(waited.as_secs_f64());
    }

    /// Observes a generation when it is over.
    pub(in crate::http) fn generation(&self, generated: &GenerationReport) {
        let finished_reason = match generated.ending {
            Ending::Finished(FinishReason::Length) => "length",
            Ending::Finished(
                FinishReason::EndOfText | FinishReason::Stop | FinishReason::Complete,
            ) => "stop",
            Ending::Cancelled | Ending::TimedOut => "abort",
            Ending::Failed | Ending::NotStored => "error",
        };
        let labels = FinishLabels { finished_reason };
        self.generations.get_or_create(&labels).inc();
        self.duration.observe(generated.duration.as_secs_f64());
        self.prompt_tokens.observe(generated.prompt_tokens as f64);
        if generated.output == Output::Text {
            let tokens = generated.generated_tokens as f64;
            self.generated_tokens.observe(tokens);
        }
    }
}
