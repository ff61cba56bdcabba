//! A stand-in for a collector: accepts OTLP over HTTP as a real one does, and keeps the spans.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as WireSpan;
use prost::Message;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Maximum time until spans arrive.
const ARRIVAL: Duration = Duration::from_secs(30);

/// A span as it arrived.
#[derive(Debug, Clone)]
pub struct Span {
    pub name: String,
    /// Trace id in hexadecimal.
    pub trace: String,
    pub id: String,
    /// Id of the parent; empty without one.
    pub parent: String,
    pub state: String,
    /// 1 internal, 2 server.
    pub kind: i32,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, Value>,
    /// 0 unset, 1 ok, 2 error.
    pub status: i32,
    pub status_message: String,
    pub resource: BTreeMap<String, Value>,
}

impl Span {
    pub fn attribute(&self, key: &str) -> &Value {
        self.attributes.get(key).unwrap_or(&Value::Null)
    }
}

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    /// Head of every export.
    heads: Vec<HeaderMap>,
    /// Bytes of every export.
    bytes: Vec<u8>,
    /// Spans of the next export to reject, by OTLP's partial success.
    rejects: i64,
}

/// A collector that listens until it is dropped.
pub struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
    _stop: DropGuard,
}

impl Collector {
    /// Listens on a free port.
    pub fn start() -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Listens at an address, on a thread of its own.
    pub fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        listener.set_nonblocking(true).expect("a socket option");
        let address = listener.local_addr().expect("an address");
        let received = Arc::<Mutex<Received>>::default();
        let router = Router::new()
            .route("/v1/traces", post(export))
            .with_state(Arc::clone(&received));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let served = axum::serve(listener, router).into_future();
                stopped.run_until_cancelled(served).await;
            });
        });
        Self {
            address,
            received,
            _stop: stop.drop_guard(),
        }
    }

    /// Returns the value for `--otlp-endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Rejects this many spans of the next export that is not empty.
    pub fn reject(&self, spans: i64) {
        self.received.lock().expect("no panic").rejects = spans;
    }

    /// Returns the received spans.
    pub fn spans(&self) -> Vec<Span> {
        self.received.lock().expect("no panic").spans.clone()
    }

    /// Returns the head of every received export.
    pub fn heads(&self) -> Vec<HeaderMap> {
        self.received.lock().expect("no panic").heads.clone()
    }

    /// Returns whether any export contained this text.
    pub fn has_seen(&self, text: &str) -> bool {
        let received = self.received.lock().expect("no panic");
        let mut windows = received.bytes.windows(text.len());
        windows.any(|window| window == text.as_bytes())
    }

    /// Waits for the span of a request, which is exported after its children. Returns it and the children.
    #[track_caller]
    pub fn request(&self, id: &str) -> (Span, Vec<Span>) {
        let deadline = Instant::now() + ARRIVAL;
        loop {
            let spans = self.spans();
            let of_request = |span: &&Span| span.attribute("gen_ai.request.id") == id;
            if let Some(root) = spans.iter().find(of_request) {
                let children = spans.iter().filter(|span| span.parent == root.id);
                let mut children: Vec<Span> = children.cloned().collect();
                children.sort_by_key(|span| (index(span), span.start, span.end));
                return (root.clone(), children);
            }
            assert!(Instant::now() < deadline, "no span of {id:?}: {spans:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn index(span: &Span) -> Option<i64> {
    span.attribute("skald.generation.index").as_i64()
}

async fn export(
    State(received): State<Arc<Mutex<Received>>>,
    head: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(head[header::CONTENT_TYPE], "application/x-protobuf");
    let Ok(request) = ExportTraceServiceRequest::decode(&body[..]) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut received = received.lock().expect("no panic");
    received.heads.push(head);
    received.bytes.extend_from_slice(&body);
    let mut answer = ExportTraceServiceResponse::default();
    if !request.resource_spans.is_empty() {
        answer.partial_success = Some(ExportTracePartialSuccess {
            rejected_spans: std::mem::take(&mut received.rejects),
            error_message: "over quota".to_owned(),
        });
    }
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap_or_default();
        let resource = attributes(&resource.attributes);
        let spans = of_resource.scope_spans.into_iter();
        let spans = spans.flat_map(|of_scope| of_scope.spans);
        received
            .spans
            .extend(spans.map(|span| read(span, &resource)));
    }
    let answer = answer.encode_to_vec();
    ([(header::CONTENT_TYPE, "application/x-protobuf")], answer).into_response()
}

fn read(span: WireSpan, resource: &BTreeMap<String, Value>) -> Span {
    let status = span.status.unwrap_or_default();
    Span {
        name: span.name,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        state: span.trace_state,
        kind: span.kind,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: attributes(&span.attributes),
        status: status.code,
        status_message: status.message,
        resource: resource.clone(),
    }
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, Value> {
    let mut attributes = BTreeMap::new();
    for pair in list {
        let value = pair.value.clone().map_or(Value::Null, json_of);
        let before = attributes.insert(pair.key.clone(), value);
        assert!(before.is_none(), "{} twice", pair.key);
    }
    attributes
}

fn json_of(value: AnyValue) -> Value {
    match value.value {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::BoolValue(value)) => json!(value),
        Some(Any::IntValue(value)) => json!(value),
        Some(Any::DoubleValue(value)) => json!(value),
        Some(Any::ArrayValue(array)) => array.values.into_iter().map(json_of).collect(),
        other => panic!("not among what Skald sends: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| {
            [byte >> 4, byte & 15]
                .map(|digit| char::from_digit(digit.into(), 16).expect("below 16"))
        })
        .collect()
}
