//! The export of finished spans to the collector, and the count of lost spans.
//!
//! ```text
//! request ends ──► BoundedProcessor ──queue──► export thread ──► CountingExporter ──► OTLP exporter ──► collector
//!                     └─ full: lost                                 └─ failed: lost
//! ```
//!
//! The SDK's batch processor owns the queue and the thread. A request either queues a span or drops
//! it, and must never wait here. Losses are counted, and logged at most once a minute.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use prost::Message as _;

use super::endpoint::OtlpEndpoint;

/// Maximum spans that are queued or being sent: about 1000 requests, 10 MB.
const QUEUE: usize = 4096;
/// Minimum time between two warnings about lost spans.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

/// Counts the spans that are queued or being sent, and those that were lost.
#[derive(Debug)]
pub(super) struct SpanCounts {
    endpoint: OtlpEndpoint,
    pending: AtomicUsize,
    lost: AtomicUsize,
    /// Whether the last log line about the collector reported a failure.
    failing: AtomicBool,
    last_warning: Mutex<Option<Instant>>,
}

impl SpanCounts {
    pub(super) fn new(endpoint: OtlpEndpoint) -> Self {
        Self {
            endpoint,
            pending: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
            last_warning: Mutex::new(None),
        }
    }

    /// Counts a span as pending. Returns false, and counts it as lost, if the queue is full.
    fn admit(&self) -> bool {
        if self.pending.fetch_add(1, Ordering::Relaxed) < QUEUE {
            return true;
        }
        self.pending.fetch_sub(1, Ordering::Relaxed);
        self.lose(1, "the span queue is full");
        false
    }

    fn delivered(&self, spans: usize) {
        self.pending.fetch_sub(spans, Ordering::Relaxed);
        if self.failing.swap(false, Ordering::Relaxed) {
            let lost = self.lost.load(Ordering::Relaxed);
            tracing::info!(endpoint = %self.endpoint, lost, "trace export recovered");
        }
    }

    /// Counts `spans` as no longer pending, and `lost` of them as lost.
    fn failed(&self, spans: usize, lost: usize, reason: &str) {
        self.pending.fetch_sub(spans, Ordering::Relaxed);
        self.lose(lost, reason);
    }

    fn lose(&self, spans: usize, reason: &str) {
        let lost = spans + self.lost.fetch_add(spans, Ordering::Relaxed);
        let mut warned = self
            .last_warning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if warned.is_some_and(|at| at.elapsed() < BETWEEN_WARNINGS) {
            return;
        }
        *warned = Some(Instant::now());
        drop(warned);
        self.failing.store(true, Ordering::Relaxed);
        tracing::warn!(endpoint = %self.endpoint, reason, lost, "trace export failing");
    }

    /// Returns the number of spans that never reached the collector, once no more are sent.
    pub(super) fn total(&self) -> usize {
        self.lost.load(Ordering::Relaxed) + self.pending.load(Ordering::Relaxed)
    }
}

/// The batch processor with a bound on pending spans that counts the dropped ones.
#[derive(Debug)]
pub(super) struct BoundedProcessor {
    batches: BatchSpanProcessor,
    counts: Arc<SpanCounts>,
}

impl BoundedProcessor {
    /// Starts the export thread, which sends every `OTEL_BSP_SCHEDULE_DELAY` (5 s by default).
    pub(super) fn start(exporter: CountingExporter) -> Self {
        let counts = Arc::clone(&exporter.counts);
        // The SDK's queue never fills up: it is as long as this bound, which includes spans being sent.
        let config = BatchConfigBuilder::default().with_max_queue_size(QUEUE);
        Self {
            batches: BatchSpanProcessor::new(exporter, config.build()),
            counts,
        }
    }
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.counts.admit() {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// The OTLP exporter, with its failures counted.
#[derive(Debug)]
pub(super) struct CountingExporter {
    otlp: OtlpExporter,
    response: Arc<Mutex<CollectorResponse>>,
    counts: Arc<SpanCounts>,
}

/// The collector's last response, which the exporter does not expose.
#[derive(Debug, Clone, Default)]
struct CollectorResponse {
    /// Why there was no response.
    failure: Option<String>,
    /// Number of rejected spans of an accepted batch, and the reason (OTLP's partial success).
    rejected: Option<(usize, String)>,
}

impl CollectorResponse {
    fn of(response: &Result<Response<Bytes>, HttpError>) -> Self {
        let rejected = |response: &Response<Bytes>| {
            let response = ExportTraceServiceResponse::decode(response.body().clone()).ok()?;
            let partial = response.partial_success?;
            let spans = usize::try_from(partial.rejected_spans).ok()?;
            let reason = format!("spans rejected by the collector: {}", partial.error_message);
            (spans > 0).then_some((spans, reason))
        };
        Self {
            failure: response.as_ref().err().map(|error| causes(error.as_ref())),
            rejected: response.as_ref().ok().and_then(rejected),
        }
    }
}

impl CountingExporter {
    /// Creates an exporter to the endpoint of `counts` with a time limit for responses. Headers come from
    /// `OTEL_EXPORTER_OTLP_HEADERS`.
    ///
    /// # Errors
    /// If the HTTP client can't be set up.
    pub(super) fn new(counts: Arc<SpanCounts>, timeout: Duration) -> Result<Self, ExportError> {
        let response = Arc::<Mutex<CollectorResponse>>::default();
        crate::tls::install_provider();
        let client = reqwest::blocking::Client::builder()
            .timeout(timeout)
            // A redirect would send the keys in the headers elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let otlp = OtlpExporter::builder()
            .with_http()
            .with_http_client(Collector {
                client,
                last: Arc::clone(&response),
            })
            .with_endpoint(counts.endpoint.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(timeout)
            .build()?;
        Ok(Self {
            otlp,
            response,
            counts,
        })
    }

    fn last_response(&self) -> CollectorResponse {
        let response = self.response.lock().unwrap_or_else(PoisonError::into_inner);
        response.clone()
    }

    /// Sends spans, and returns the number of those that were lost, with the reason.
    async fn send(&self, spans: Vec<SpanData>) -> Option<(usize, String)> {
        let count = spans.len();
        let sent = self.otlp.export(spans).await;
        let response = self.last_response();
        match sent {
            Ok(()) => response.rejected,
            Err(error) => Some((count, response.failure.unwrap_or_else(|| error.to_string()))),
        }
    }
}

/// Why the exporter can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The HTTP client can't be set up.
    #[error("the HTTP client for traces could not be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// The OTLP exporter can't be set up.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

impl SpanExporter for CountingExporter {
    /// Always succeeds: failures are counted and logged here, not by the SDK.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        match self.send(batch).await {
            None => self.counts.delivered(spans),
            Some((lost, reason)) => self.counts.failed(spans, lost, &reason),
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    /// Sets the resource, and tests the connection with an empty export. The SDK calls this once, on the
    /// export thread and before any span.
    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
        // The future is ready immediately: the blocking client blocks the thread instead.
        let _ = self.send(Vec::new()).now_or_never();
        if let Some(reason) = self.last_response().failure {
            self.counts.failed(0, 0, &reason);
        }
    }
}

/// An HTTP client that records the response: the exporter itself reports only "network error", and not the
/// rejected spans.
#[derive(Debug)]
struct Collector {
    client: reqwest::blocking::Client,
    last: Arc<Mutex<CollectorResponse>>,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.client.send_bytes(request).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = CollectorResponse::of(&response);
        response
    }
}

/// Joins the messages of an error and its sources.
fn causes(error: &(dyn Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    let messages: Vec<String> = chain.map(ToString::to_string).collect();
    messages.join(": ")
}
