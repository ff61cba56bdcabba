//! Every metric: its name, its type, its help, and vLLM's name for it where it has one.
//!
//! Skald's own names begin with `skald_`. Metrics that mean the same in vLLM appear a second time as
//! `vllm:…`, with the label `model_name`, which dashboards, routers and autoscalers look for. Unknown
//! values (no model yet, session store unreachable) are left out.

use std::fmt;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::format::Format;
use super::keys;
use super::observations::{ConnectionCounts, Observations};
use crate::engine::blocks::BLOCK_SIZE;
use crate::engine::status::{EngineStatus, StepTokens};
use crate::keys::Keys;
use crate::serving::{ModelInfo, Serving};
use crate::session::snapshots::Snapshots;
use crate::telemetry;

/// Sources of the values of a scrape.
pub(super) struct Scrape<'a> {
    /// Counts and histograms of the front end.
    pub observations: &'a Observations,
    /// The API keys, if the server checks them.
    pub keys: Option<&'a Keys>,
    /// The model, once it is loaded.
    pub serving: Option<&'a Serving>,
    /// Number of stored sessions, if known.
    pub sessions: Option<usize>,
}

impl Scrape<'_> {
    /// Returns all metrics in a format.
    ///
    /// # Errors
    /// Only if the encoder fails.
    pub(super) fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        let families = self.families();
        let mut text = String::new();
        match format {
            Format::Prometheus => {
                prometheus_text::encode(&mut text, &families.skald)?;
                prometheus_text::encode(&mut text, &families.vllm)?;
            }
            Format::OpenMetrics => {
                encode_registry(&mut text, &families.skald)?;
                encode_registry(&mut text, &families.vllm)?;
                encode_eof(&mut text)?;
            }
        }
        Ok(text)
    }

    fn families(&self) -> Families {
        let model = self.serving.map(|serving| &serving.info);
        let mut families = Families::new(model.map(|info| info.id.clone()));
        families.build(model);
        let status = self.serving.map(|serving| serving.engine.status());
        let alive = status.is_some_and(|status| status.alive);
        let help = "Whether the model is loaded and the inference worker runs";
        families.skald("up", help, Reading::Gauge(alive.into()));
        if let (Some(serving), Some(status)) = (self.serving, status) {
            families.engine(&status);
            families.vllm_only(&status);
            families.sessions(serving, self.sessions);
        }
        families.observations(self.observations);
        if let Some(keys) = self.keys {
            let refusals = &self.observations.key_refusals;
            let help = "Requests refused because of their API key or its limits";
            families.skald("key_refusals", help, refusals.clone());
            for (name, help, counted) in keys::counters(keys) {
                families.skald(name, help, counted);
            }
        }
        let help = "Log lines lost because standard error failed or was not read";
        let lost = telemetry::lost_log_lines();
        families.skald("log_lines_lost", help, Reading::Counter(lost));
        families
    }
}

/// A value read at the time of the scrape.
#[derive(Debug, Clone, Copy)]
enum Reading {
    Gauge(usize),
    Real(f64),
    Counter(usize),
    Histogram(StepTokens),
}

impl EncodeMetric for Reading {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        match self {
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::Real(value) => encoder.encode_gauge(value),
            Self::Counter(value) => encoder.encode_counter::<NoLabelSet, _, f64>(value, None),
            Self::Histogram(steps) => {
                let bounds = StepTokens::BOUNDS.iter().map(|&bound| bound as f64);
                let bounds = bounds.chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(steps.counts().iter().copied()).collect();
                let count = steps.counts().iter().sum();
                encoder.encode_histogram::<NoLabelSet>(steps.sum() as f64, count, &buckets, None)
            }
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Self::Gauge(_) | Self::Real(_) => MetricType::Gauge,
            Self::Counter(_) => MetricType::Counter,
            Self::Histogram(_) => MetricType::Histogram,
        }
    }
}

/// The families of one scrape.
struct Families {
    skald: Registry,
    /// Empty until the model is loaded, because its label needs the model's name.
    vllm: Registry,
    has_model: bool,
}

impl Families {
    fn new(model: Option<String>) -> Self {
        let has_model = model.is_some();
        let label = model.map(|name| ("model_name".into(), name.into()));
        Self {
            skald: Registry::with_prefix("skald"),
            vllm: Registry::with_labels(label.into_iter()),
            has_model,
        }
    }

    /// Adds a metric under Skald's name.
    fn skald(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.skald.register(name, help, metric);
    }

    /// Adds a metric under vLLM's name.
    fn vllm(&mut self, name: &str, help: &str, metric: impl Metric) {
        if self.has_model {
            self.vllm.register(format!("vllm:{name}"), help, metric);
        }
    }

    /// Adds a metric under both Skald's and vLLM's name.
    fn both(&mut self, name: &str, vllm: &str, help: &str, metric: impl Metric + Clone) {
        self.skald(name, help, metric.clone());
        self.vllm(vllm, help, metric);
    }

    fn build(&mut self, model: Option<&ModelInfo>) {
        let of = |label: fn(&ModelInfo) -> &String| model.map(label).cloned().unwrap_or_default();
        let labels = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("isa", of(|info| &info.isa)),
            ("dtype", of(|info| &info.dtype)),
            ("model", of(|info| &info.id)),
        ];
        let help = "Version, instruction set, weight type and model";
        self.skald("build", help, Info::new(labels.to_vec()));
    }

    fn engine(&mut self, status: &EngineStatus) {
        use Reading::{Counter, Gauge};
        // Destructured completely, so that a new field cannot be forgotten.
        let EngineStatus {
            alive: _,
            silence,
            running,
            waiting,
            stalled,
            kv_blocks_used: _,
            kv_blocks_cached: _,
            kv_blocks: _,
            kv_block_bytes: _,
            kv_slots_used: _,
            kv_slots_cached: _,
            kv_slots: _,
            kv_slot_bytes: _,
            steps,
            step_tokens,
            drafted,
            accepted,
            prompt_tokens,
            cache_queried_tokens,
            cached_tokens,
            generated_tokens,
            preemptions,
            yields: _,
            tenants_waiting: _,
            evicted_blocks: _,
            lost_blocks: _,
            begun_per_second: _,
            prefill_seconds_per_token: _,
        } = *status;
        let help = "Sequences in the batch";
        self.both(
            "requests_running",
            "num_requests_running",
            help,
            Gauge(running),
        );
        let help = "Queued and preempted requests";
        self.both(
            "requests_waiting",
            "num_requests_waiting",
            help,
            Gauge(waiting),
        );
        let help = "Requests suspended because their clients do not read";
        self.skald("requests_stalled", help, Gauge(stalled));
        let help = "Time since the last forward pass, 0 while idle";
        let silence = Reading::Real(silence.as_secs_f64());
        self.skald("step_silence_seconds", help, silence);
        self.skald("steps", "Forward passes", Counter(steps));
        let help = "Tokens per forward pass";
        self.both(
            "step_tokens",
            "iteration_tokens_total",
            help,
            Reading::Histogram(step_tokens),
        );
        let help = "Prompt tokens of started requests, cached tokens included";
        self.both(
            "prompt_tokens",
            "prompt_tokens",
            help,
            Counter(prompt_tokens),
        );
        let help = "Generated tokens";
        self.both(
            "generated_tokens",
            "generation_tokens",
            help,
            Counter(generated_tokens),
        );
        let (help, value) = (
            "Prompt tokens looked up in the prefix cache",
            cache_queried_tokens,
        );
        self.both(
            "prefix_cache_query_tokens",
            "prefix_cache_queries",
            help,
            Counter(value),
        );
        let (help, value) = ("Prompt tokens found in the prefix cache", cached_tokens);
        self.both(
            "prefix_cache_hit_tokens",
            "prefix_cache_hits",
            help,
            Counter(value),
        );
        self.skald("draft_tokens", "Draft tokens proposed", Counter(drafted));
        self.skald(
            "accepted_tokens",
            "Draft tokens accepted",
            Counter(accepted),
        );
        let help = "Running requests preempted for lack of KV blocks";
        self.both("preemptions", "num_preemptions", help, Counter(preemptions));
        self.shares(status);
        self.kv_blocks(status);
    }

    fn shares(&mut self, status: &EngineStatus) {
        use Reading::{Counter, Gauge};
        let help = "Running requests preempted to share a full batch between tenants";
        self.skald("yields", help, Counter(status.yields));
        self.skald(
            "tenants_waiting",
            "Tenants with requests in the queue",
            Gauge(status.tenants_waiting),
        );
    }

    fn kv_blocks(&mut self, status: &EngineStatus) {
        use Reading::{Counter, Gauge};
        self.skald("kv_blocks", "KV blocks in total", Gauge(status.kv_blocks));
        self.skald(
            "kv_block_bytes",
            "Size of a KV block",
            Gauge(status.kv_block_bytes),
        );
        let help = "KV blocks held by running requests";
        self.skald("kv_blocks_used", help, Gauge(status.kv_blocks_used));
        let help = "KV blocks with reusable content not held by any request";
        self.skald("kv_blocks_cached", help, Gauge(status.kv_blocks_cached));
        if status.kv_slots > 0 {
            self.kv_window_slots(status);
        }
        let help = "Evicted KV blocks of sessions passed to the store";
        self.skald("kv_evicted_blocks", help, Counter(status.evicted_blocks));
        let help = "Evicted KV blocks of sessions dropped because the store was behind";
        self.skald("kv_lost_blocks", help, Counter(status.lost_blocks));
    }

    /// Adds the metrics of the slots of sliding layers.
    fn kv_window_slots(&mut self, status: &EngineStatus) {
        use Reading::Gauge;
        let help = "Window slots in total: memory of the sliding layers for one KV block each";
        self.skald("kv_window_slots", help, Gauge(status.kv_slots));
        let help = "Size of a window slot";
        self.skald("kv_window_slot_bytes", help, Gauge(status.kv_slot_bytes));
        let help = "Window slots held by running requests";
        self.skald("kv_window_slots_used", help, Gauge(status.kv_slots_used));
        let help = "Window slots with reusable content not held by any request";
        self.skald(
            "kv_window_slots_cached",
            help,
            Gauge(status.kv_slots_cached),
        );
    }

    /// Adds the engine metrics that vLLM expresses differently from Skald.
    fn vllm_only(&mut self, status: &EngineStatus) {
        let blocks = status.kv_blocks_used as f64 / status.kv_blocks.max(1) as f64;
        let slots = status.kv_slots_used as f64 / status.kv_slots.max(1) as f64;
        let usage = blocks.max(slots);
        let help = "Fraction of the KV blocks held by running requests, or of the window slots if that is larger, from 0 to 1";
        self.vllm("kv_cache_usage_perc", help, Reading::Real(usage));
        let labels = [
            ("block_size", BLOCK_SIZE),
            ("num_gpu_blocks", status.kv_blocks),
        ];
        let help = "Tokens per KV block, and KV blocks in total";
        self.vllm("cache_config", help, Info::new(labels.to_vec()));
    }

    fn sessions(&mut self, serving: &Serving, sessions: Option<usize>) {
        use Reading::{Counter, Gauge};
        if let Some(sessions) = sessions {
            self.skald("sessions", "Stored sessions", Gauge(sessions));
        }
        let waiting = serving.sessions.waiting();
        let help = "Requests waiting for a session";
        self.skald("sessions_waiting", help, Gauge(waiting));
        let snapshots = serving.sessions.snapshots();
        let stored = snapshots.map_or(0, Snapshots::len);
        self.skald("kv_disk_blocks", "KV blocks on disk", Gauge(stored));
        let restored = snapshots.map_or(0, Snapshots::restored);
        let help = "KV blocks restored from disk";
        self.skald("kv_disk_restored_blocks", help, Counter(restored));
    }

    fn connections(&mut self, counts: &ConnectionCounts) {
        let ConnectionCounts {
            open,
            evicted,
            refused,
        } = counts.clone();
        self.skald("connections", "Open connections", open);
        let help = "Waiting connections closed to make room for new ones";
        self.skald("connections_evicted", help, evicted);
        let help = "Requests refused because all connections were in use";
        self.skald("connections_refused", help, refused);
    }

    fn observations(&mut self, observations: &Observations) {
        // Destructured completely, so that a new field cannot be forgotten.
        let Observations {
            connections,
            start_time,
            requests,
            key_refusals: _,
            generations,
            queue_time,
            time_to_first_token,
            inter_token_latency,
            duration,
            prompt_tokens,
            generated_tokens,
        } = observations;
        let help = "Start time of the process in Unix time";
        self.skald("start_time_seconds", help, Reading::Real(*start_time));
        self.connections(connections);
        let help = "HTTP requests by route and outcome";
        self.skald("requests", help, requests.clone());
        let help = "Finished generations by finish reason";
        self.vllm("request_success", help, generations.clone());
        let mut histogram = |name, vllm, help, histogram: &Histogram| {
            self.both(name, vllm, help, histogram.clone());
        };
        let (skald, vllm) = ("queue_time_seconds", "request_queue_time_seconds");
        let help = "Time from submission to the first step";
        histogram(skald, vllm, help, queue_time);
        let name = "time_to_first_token_seconds";
        let help = "Time from submission to the first token";
        histogram(name, name, help, time_to_first_token);
        let name = "inter_token_latency_seconds";
        let help = "Time between the steps that gave a generation tokens";
        histogram(name, name, help, inter_token_latency);
        let (skald, vllm) = ("request_duration_seconds", "e2e_request_latency_seconds");
        let help = "Time from submission to the end of a generation";
        histogram(skald, vllm, help, duration);
        let name = "request_prompt_tokens";
        let help = "Prompt tokens per generation, session history included";
        histogram(name, name, help, prompt_tokens);
        let (skald, vllm) = ("request_generated_tokens", "request_generation_tokens");
        let help = "Generated tokens per generation";
        histogram(skald, vllm, help, generated_tokens);
    }
}
