//! Traces, from the start of the server to its stop: where they go, in whose name, what is sampled.
//!
//! Without an endpoint there is nothing: no thread, no client, no span. With one, what the collector
//! does must not hold up the server: it may be away at the start, and has [`FLUSH`] at the stop.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::endpoint::{InvalidEndpoint, OtlpEndpoint};
use super::export::{Bounded, ExportError, Losses, Reporting};

/// How long the last spans may take to reach the collector when the server stops.
const FLUSH: Duration = Duration::from_secs(3);
/// How long the collector may take to answer, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const ANSWER: Duration = Duration::from_secs(10);

/// Why traces can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// An environment variable is not what it should be.
    #[error("{variable}: {source}")]
    Endpoint {
        /// The variable.
        variable: &'static str,
        /// What is wrong.
        source: InvalidEndpoint,
    },
    /// The exporter can't be set up.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// The export of traces of one process.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    losses: Arc<Losses>,
}

impl Traces {
    /// Starts the export to `endpoint`, or else to the one that the standard variables name; `None`
    /// without any, or where these say that there shall be no traces.
    ///
    /// # Errors
    /// If a variable has a malformed endpoint, or there can't be an HTTP client.
    pub fn start(endpoint: Option<OtlpEndpoint>) -> Result<Option<Self>, TracesError> {
        let endpoint = match endpoint {
            Some(endpoint) => Some(endpoint),
            None => standard_endpoint()?,
        };
        let Some(endpoint) = endpoint else {
            return Ok(None);
        };
        if let Some(variable) = switched_off_by() {
            tracing::info!(variable, "traces are switched off");
            return Ok(None);
        }
        for variable in [
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ] {
            if let Some(protocol) = set(variable).filter(|protocol| protocol != "http/protobuf") {
                tracing::warn!(variable, %protocol, "unsupported protocol: traces go out as http/protobuf");
            }
        }
        let losses = Arc::new(Losses::new(endpoint.clone()));
        let exporter = Reporting::new(Arc::clone(&losses), answer_timeout())?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(Bounded::start(exporter))
            .build();
        tracing::info!(%endpoint, "traces are exported");
        Ok(Some(Self { provider, losses }))
    }

    /// What spans are made with.
    #[must_use]
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("skald")
    }

    /// Sends what is left and ends the export. Blocks for 3 seconds at most.
    pub fn stop(self) {
        let outcome = self.provider.shutdown_with_timeout(FLUSH);
        let lost = self.losses.total();
        match outcome {
            Err(error) => tracing::warn!(%error, lost, "last trace spans not delivered"),
            Ok(()) if lost > 0 => tracing::warn!(lost, "trace spans lost in all"),
            Ok(()) => (),
        }
    }
}

/// A variable that says something.
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

/// The standard variable that forbids traces, if one does.
fn switched_off_by() -> Option<&'static str> {
    [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ]
    .into_iter()
    .find(|(variable, off)| set(variable).is_some_and(|value| value.eq_ignore_ascii_case(off)))
    .map(|(variable, _)| variable)
}

fn answer_timeout() -> Duration {
    [
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
    ]
    .into_iter()
    .find_map(|variable| set(variable)?.parse().ok())
    .map_or(ANSWER, Duration::from_millis)
}

/// Who sends the spans: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, else `skald`.
fn resource() -> Resource {
    let detected = Resource::builder().build();
    let has = |key: &'static str| detected.get(&Key::new(key)).map(|value| value.to_string());
    let name = set("OTEL_SERVICE_NAME").or_else(|| {
        // The SDK's own name for a service that has none is `unknown_service:…`.
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
