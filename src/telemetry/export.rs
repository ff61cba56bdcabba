//! The way of finished spans to the collector, and the count of those that are lost.
//!
//! ```text
//! request ends ──► Bounded ──queue──► export thread ──► Reporting ──► OTLP exporter ──► Collector
//!                     └─ full: lost                        └─ failed: lost
//! ```
//!
//! The SDK's batch processor owns the queue and the thread. A request only ever puts a span into the
//! queue or drops it; it must never wait here. A loss is counted, and logged once a minute at most.

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

/// Spans that may wait for the collector, those being sent included: some 1000 requests, 10 MB.
const QUEUE: usize = 4096;
/// Shortest time between two warnings of lost spans.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

/// The account of spans that are on their way and of those that were lost.
#[derive(Debug)]
pub(super) struct Losses {
    endpoint: OtlpEndpoint,
    on_their_way: AtomicUsize,
    lost: AtomicUsize,
    /// The last thing said of the collector is that it does not take spans.
    failing: AtomicBool,
    last_warning: Mutex<Option<Instant>>,
}

impl Losses {
    pub(super) fn new(endpoint: OtlpEndpoint) -> Self {
        Self {
            endpoint,
            on_their_way: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
            last_warning: Mutex::new(None),
        }
    }

    /// Counts a span that is to be sent; whether there is room for it.
    fn admit(&self) -> bool {
        if self.on_their_way.fetch_add(1, Ordering::Relaxed) < QUEUE {
            return true;
        }
        self.on_their_way.fetch_sub(1, Ordering::Relaxed);
        self.lose(1, "the queue is full");
        false
    }

    fn delivered(&self, spans: usize) {
        self.on_their_way.fetch_sub(spans, Ordering::Relaxed);
        if self.failing.swap(false, Ordering::Relaxed) {
            let lost = self.lost.load(Ordering::Relaxed);
            tracing::info!(endpoint = %self.endpoint, lost, "trace collector takes spans again");
        }
    }

    /// Counts a batch as sent, and `lost` of its spans as lost.
    fn failed(&self, spans: usize, lost: usize, reason: &str) {
        self.on_their_way.fetch_sub(spans, Ordering::Relaxed);
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

    /// Spans that never reached the collector, when nothing more will be sent.
    pub(super) fn total(&self) -> usize {
        self.lost.load(Ordering::Relaxed) + self.on_their_way.load(Ordering::Relaxed)
    }
}

/// The batch processor behind a bound that counts.
#[derive(Debug)]
pub(super) struct Bounded {
    batches: BatchSpanProcessor,
    losses: Arc<Losses>,
}

impl Bounded {
    /// Starts the export thread. How often it sends is `OTEL_BSP_SCHEDULE_DELAY`, 5 s by default.
    pub(super) fn start(exporter: Reporting) -> Self {
        let losses = Arc::clone(&exporter.losses);
        // Its own queue never fills up: ours is as long, and counts what is being sent too.
        let config = BatchConfigBuilder::default().with_max_queue_size(QUEUE);
        Self {
            batches: BatchSpanProcessor::new(exporter, config.build()),
            losses,
        }
    }
}

impl SpanProcessor for Bounded {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.losses.admit() {
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

/// The OTLP exporter, whose failures are counted.
#[derive(Debug)]
pub(super) struct Reporting {
    otlp: OtlpExporter,
    answer: Arc<Mutex<Answer>>,
    losses: Arc<Losses>,
}

/// What the collector said last, of which the exporter tells nothing.
#[derive(Debug, Clone, Default)]
struct Answer {
    /// Why there was none.
    failure: Option<String>,
    /// Spans that it did not take out of a batch that it did, and why (OTLP's partial success).
    rejected: Option<(usize, String)>,
}

impl Answer {
    fn of(answer: &Result<Response<Bytes>, HttpError>) -> Self {
        let rejected = |answer: &Response<Bytes>| {
            let answer = ExportTraceServiceResponse::decode(answer.body().clone()).ok()?;
            let partial = answer.partial_success?;
            let spans = usize::try_from(partial.rejected_spans).ok()?;
            let reason = format!("spans rejected by the collector: {}", partial.error_message);
            (spans > 0).then_some((spans, reason))
        };
        Self {
            failure: answer.as_ref().err().map(|error| causes(error.as_ref())),
            rejected: answer.as_ref().ok().and_then(rejected),
        }
    }
}

impl Reporting {
    /// An exporter to the endpoint of `losses`, which waits for an answer for as long as `timeout`.
    /// Headers come from `OTEL_EXPORTER_OTLP_HEADERS`.
    ///
    /// # Errors
    /// If the HTTP client can't be set up.
    pub(super) fn new(losses: Arc<Losses>, timeout: Duration) -> Result<Self, ExportError> {
        let answer = Arc::<Mutex<Answer>>::default();
        crate::tls::install_provider();
        let client = reqwest::blocking::Client::builder()
            .timeout(timeout)
            // A redirect would carry the headers' keys elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let otlp = OtlpExporter::builder()
            .with_http()
            .with_http_client(Collector {
                client,
                last: Arc::clone(&answer),
            })
            .with_endpoint(losses.endpoint.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(timeout)
            .build()?;
        Ok(Self {
            otlp,
            answer,
            losses,
        })
    }

    fn last_answer(&self) -> Answer {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        answer.clone()
    }

    /// Sends spans; gives those that the collector did not take, with the reason.
    async fn send(&self, spans: Vec<SpanData>) -> Option<(usize, String)> {
        let count = spans.len();
        let sent = self.otlp.export(spans).await;
        let answer = self.last_answer();
        match sent {
            Ok(()) => answer.rejected,
            Err(error) => Some((count, answer.failure.unwrap_or_else(|| error.to_string()))),
        }
    }
}

/// Why there is no exporter.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The HTTP client.
    #[error("the HTTP client for traces could not be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// The exporter.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

impl SpanExporter for Reporting {
    /// Succeeds always: what fails is counted and logged here, not by the SDK.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        match self.send(batch).await {
            None => self.losses.delivered(spans),
            Some((lost, reason)) => self.losses.failed(spans, lost, &reason),
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    /// The SDK calls this once, on the export thread and before any span. So it is here that an
    /// empty export shows whether there is a collector, rather than the first request's spans.
    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
        // Ready at once: the blocking client makes the thread wait, not the future.
        let _ = self.send(Vec::new()).now_or_never();
        if let Some(reason) = self.last_answer().failure {
            self.losses.failed(0, 0, &reason);
        }
    }
}

/// The HTTP client, which remembers the answer: the exporter only says "network error", and nothing of
/// rejected spans.
#[derive(Debug)]
struct Collector {
    client: reqwest::blocking::Client,
    last: Arc<Mutex<Answer>>,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.client.send_bytes(request).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Answer::of(&answer);
        answer
    }
}

/// The message of an error and of all that caused it.
fn causes(error: &(dyn Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    let messages: Vec<String> = chain.map(ToString::to_string).collect();
    messages.join(": ")
}
