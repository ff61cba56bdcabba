//! Setup and shutdown of tracing: endpoint, resource attributes and sampling.
//!
//! Without an endpoint there is no thread, no client and no span. With one, the collector must not
//! delay the server: it may be unavailable at startup, and gets at most [`FLUSH`] at shutdown.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::endpoint::{InvalidEndpoint, OtlpEndpoint};
use super::export::{BoundedProcessor, CountingExporter, ExportError, SpanCounts};

/// Time limit for sending the last spans when the server stops.
const FLUSH: Duration = Duration::from_secs(3);
/// Default time limit for the collector's response; `OTEL_EXPORTER_OTLP_TIMEOUT` overrides it.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why traces can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// An environment variable has an invalid endpoint.
    #[error("{variable}: {source}")]
    Endpoint {
        /// Name of the variable.
        variable: &'static str,
        /// Why the endpoint is invalid.
        source: InvalidEndpoint,
    },
    /// The exporter can't be set up.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// The trace export of this process.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    counts: Arc<SpanCounts>,
}

impl Traces {
    /// Starts the export to `endpoint`, or to the endpoint in the standard variables. Returns `None` if
    /// there is neither, or if the standard variables disable traces.
    ///
    /// # Errors
    /// If a variable has a malformed endpoint, or the HTTP client can't be set up.
    pub fn start(endpoint: Option<OtlpEndpoint>) -> Result<Option<Self>, TracesError> {
        let endpoint = match endpoint {
            Some(endpoint) => Some(endpoint),
            None => standard_endpoint()?,
        };
        let Some(endpoint) = endpoint else {
            return Ok(None);
        };
        if let Some(variable) = switched_off_by() {
            tracing::info!(variable, "traces disabled");
            return Ok(None);
        }
        for variable in [
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ] {
            if let Some(protocol) = set(variable).filter(|protocol| protocol != "http/protobuf") {
                tracing::warn!(variable, %protocol, "unsupported trace protocol; using http/protobuf");
            }
        }
        let counts = Arc::new(SpanCounts::new(endpoint.clone()));
        let exporter = CountingExporter::new(Arc::clone(&counts), response_timeout())?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(BoundedProcessor::start(exporter))
            .build();
        tracing::info!(%endpoint, "trace export started");
        Ok(Some(Self { provider, counts }))
    }

    /// Returns the tracer that creates spans.
    #[must_use]
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("skald")
    }

    /// Sends the remaining spans and ends the export. Blocks for at most 3 seconds.
    pub fn stop(self) {
        let outcome = self.provider.shutdown_with_timeout(FLUSH);
        let lost = self.counts.total();
        match outcome {
            Err(error) => tracing::warn!(%error, lost, "last trace spans not delivered"),
            Ok(()) if lost > 0 => tracing::warn!(lost, "trace spans lost in total"),
            Ok(()) => (),
        }
    }
}

/// Returns the value of an environment variable; `None` if it is unset or empty.
fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

fn standard_endpoint() -> Result<Option<OtlpEndpoint>, TracesError> {
    type Parse = fn(&str) -> Result<OtlpEndpoint, InvalidEndpoint>;
    let variables: [(_, Parse); 2] = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", OtlpEndpoint::whole),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", str::parse),
    ];
    let endpoint = variables.into_iter().find_map(|(variable, parse)| {
        let endpoint = parse(&set(variable)?);
        Some(endpoint.map_err(|source| TracesError::Endpoint { variable, source }))
    });
    endpoint.transpose()
}

/// Returns the standard variable that disables traces, if any.
fn switched_off_by() -> Option<&'static str> {
    [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ]
    .into_iter()
    .find(|(variable, off)| set(variable).is_some_and(|value| value.eq_ignore_ascii_case(off)))
    .map(|(variable, _)| variable)
}

fn response_timeout() -> Duration {
    [
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
    ]
    .into_iter()
    .find_map(|variable| set(variable)?.parse().ok())
    .map_or(RESPONSE_TIMEOUT, Duration::from_millis)
}

/// Returns the source of the spans: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, by default
/// `skald`.
fn resource() -> Resource {
    let detected = Resource::builder().build();
    let has = |key: &'static str| detected.get(&Key::new(key)).map(|value| value.to_string());
    let name = set("OTEL_SERVICE_NAME").or_else(|| {
        // The SDK names an unnamed service `unknown_service:…`.
        has("service.name").filter(|name| !name.starts_with("unknown_service"))
    });
    let version = has("service.version").unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let instance = has("service.instance.id").unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    Resource::builder()
        .with_service_name(name.unwrap_or_else(|| "skald".to_owned()))
        .with_attributes([
            KeyValue::new("service.version", version),
            KeyValue::new("service.instance.id", instance),
        ])
        .build()
}
