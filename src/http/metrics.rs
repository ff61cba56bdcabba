//! `GET /metrics`: the engine's and the sessions' figures, for Prometheus.
//!
//! They are read when they are asked for; nothing is counted here.

use std::fmt;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::app::{App, Serving};
use super::error::ApiError;
use super::openapi::NativeLookupErrors;
use crate::engine::EngineStatus;

/// The figures, for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    responses(
        (
            status = 200,
            description = "All figures, in the text format of OpenMetrics",
            body = String,
            content_type = "application/openmetrics-text",
            example = json!("# HELP skald_prefix_cache_hit_tokens Tokens of prompts that were in the KV cache already.\n# TYPE skald_prefix_cache_hit_tokens counter\nskald_prefix_cache_hit_tokens_total 4096\n# EOF\n"),
        ),
        NativeLookupErrors,
    ),
)]
pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    let sessions = serving.sessions.count().await?;
    let text = write(&serving, sessions).map_err(|error| {
        ApiError::internal(format!("the metrics could not be written: {error}"))
    })?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

fn write(serving: &Serving, sessions: usize) -> Result<String, fmt::Error> {
    let mut figures = Figures(Registry::with_prefix("skald"));
    figures.engine(&serving.engine.status());
    figures.gauge("sessions", "Sessions there are", sessions);
    let waiting = serving.sessions.waiting();
    figures.gauge(
        "sessions_waiting",
        "Requests that wait for their sessions",
        waiting,
    );
    if let Some(snapshots) = serving.sessions.snapshots() {
        let (stored, restored) = (snapshots.len(), snapshots.restored());
        figures.gauge("kv_disk_blocks", "KV blocks on disk", stored);
        let help = "KV blocks that came back from disk";
        figures.counter("kv_disk_restored_blocks", help, restored);
    }
    let mut text = String::new();
    encode(&mut text, &figures.0)?;
    Ok(text)
}

struct Figures(Registry);

impl Figures {
    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.register(name, help, ConstGauge::new(value));
    }

    fn counter(&mut self, name: &str, help: &str, value: usize) {
        self.0.register(name, help, ConstCounter::new(value as u64));
    }

    fn engine(&mut self, status: &EngineStatus) {
        let EngineStatus {
            alive,
            running,
            waiting,
            kv_blocks_used,
            kv_blocks_cached,
            kv_blocks,
            kv_block_bytes,
            steps,
            drafted,
            accepted,
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            preemptions,
            evicted_blocks,
            lost_blocks,
            prefill_seconds_per_token: _,
        } = *status;
        let gauges = [
            ("up", "The inference worker is there", usize::from(alive)),
            ("requests_running", "Requests in the batch", running),
            ("requests_waiting", "Requests that wait to run", waiting),
            (
                "kv_blocks_used",
                "KV blocks that requests hold",
                kv_blocks_used,
            ),
            (
                "kv_blocks_cached",
                "KV blocks that no one holds and that can be used again",
                kv_blocks_cached,
            ),
            ("kv_blocks", "KV blocks in all", kv_blocks),
            ("kv_block_bytes", "Bytes of a KV block", kv_block_bytes),
        ];
        for (name, help, value) in gauges {
            self.gauge(name, help, value);
        }
        let counters = [
            ("steps", "Forward passes", steps),
            ("drafted_tokens", "Tokens guessed ahead", drafted),
            ("accepted_tokens", "Tokens guessed right", accepted),
            (
                "prefix_cache_query_tokens",
                "Tokens of prompts, histories included",
                prompt_tokens,
            ),
            (
                "prefix_cache_hit_tokens",
                "Tokens of prompts that were in the KV cache already",
                cached_tokens,
            ),
            ("generated_tokens", "Tokens generated", generated_tokens),
            (
                "preemptions",
                "Requests that had to give their KV blocks back",
                preemptions,
            ),
            (
                "kv_evicted_blocks",
                "KV blocks of sessions that left the cache for the disk",
                evicted_blocks,
            ),
            (
                "kv_lost_blocks",
                "KV blocks of sessions that the disk was too slow to take",
                lost_blocks,
            ),
        ];
        for (name, help, value) in counters {
            self.counter(name, help, value);
        }
    }
}
