//! The trace of a request: a span from its head to the last byte of its answer, with children for
//! the queue, the prefill and the decode of each of its generations.
//!
//! ```text
//! POST /v1/completions ─────────────────────────────────┐
//!   └ queue ──┐└ prefill ──┐└ decode ─────────────────┐
//! ```
//!
//! The children are created when a generation has ended, from the times in its
//! [`Timeline`](super::timeline::Timeline): the worker creates no spans. Attributes follow OpenTelemetry's
//! semantic conventions for HTTP and generative AI. They must never contain prompts and answers. Without
//! a collector, and for requests that are not sampled, no spans are created.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::{Method, StatusCode, Version, header};
use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceContextExt, TraceId, Tracer};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use super::access::Listening;
use super::outcome::{Outcome, PROBES};
use super::timeline::{Ending, Stage, Timeline, TimelineTrace};
use super::trace_context;
use crate::request::{GenerateRequest, Output, RequestId};

const CACHED: &str = "gen_ai.usage.cache_read.input_tokens";
/// Maximum characters of a client's text in an attribute.
const MAX_TEXT: usize = 256;

/// The trace of a request; cheap to clone. Its span ends with the last clone.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestTrace {
    trace_id: Option<TraceId>,
    span: Option<Arc<RequestSpan>>,
}

/// The trace of a generation.
#[derive(Debug, Clone, Default)]
pub(super) struct GenerationTrace {
    request: RequestTrace,
    /// Index of the generation in its request, from 0.
    pub index: usize,
}

#[derive(Debug)]
struct RequestSpan {
    tracer: SdkTracer,
    /// Context that owns the span.
    context: Context,
    /// The same moment by two clocks: spans have the time of day, but their durations must not depend on a
    /// clock that can be set.
    began: Instant,
    began_at: SystemTime,
    totals: Mutex<Totals>,
}

/// Totals over all generations of the request.
#[derive(Debug, Default)]
struct Totals {
    status: Option<StatusCode>,
    outcome: Option<Outcome>,
    error: Option<&'static str>,
    /// Whether the engine accepted the request.
    ran: bool,
    input_tokens: usize,
    output_tokens: usize,
    /// Finish reasons with the indices of their generations.
    finish_reasons: Vec<(usize, &'static str)>,
    /// Time in the queue of the first generation to start.
    in_queue: Option<Duration>,
    first_token: Option<Duration>,
}

impl RequestTrace {
    /// Begins the trace of a request whose head has arrived, with a span from `tracer` that is a child of the
    /// caller's.
    pub(super) fn begin(tracer: Option<&SdkTracer>, request: &Request, id: &RequestId) -> Self {
        let caller = trace_context::caller(request.headers());
        let trace_id = caller.as_ref().map(SpanContext::trace_id);
        let path = request.uri().path();
        let Some(tracer) = tracer.filter(|_| !PROBES.contains(&path)) else {
            return Self {
                trace_id,
                span: None,
            };
        };
        let (began, began_at) = (Instant::now(), SystemTime::now());
        let parent = caller.map_or_else(Context::new, |caller| {
            Context::new().with_remote_span_context(caller)
        });
        let builder = tracer
            .span_builder(name(request))
            .with_kind(SpanKind::Server)
            .with_start_time(began_at)
            .with_attributes(attributes(request, id));
        let context = parent.with_span(tracer.build_with_context(builder, &parent));
        let span = context.span();
        let trace_id = Some(span.span_context().trace_id());
        let is_recording = span.is_recording();
        Self {
            trace_id,
            span: is_recording.then(|| {
                Arc::new(RequestSpan {
                    tracer: tracer.clone(),
                    context,
                    began,
                    began_at,
                    totals: Mutex::default(),
                })
            }),
        }
    }

    /// Returns the id of the request's trace, if it has one.
    pub(super) fn id(&self) -> Option<TraceId> {
        self.trace_id
    }

    /// Records the parameters of the requests to the engine. Each prompt is shared by `per_prompt` of
    /// `requests` and counted once.
    pub(super) fn asks(&self, model: &str, requests: &[GenerateRequest], per_prompt: usize) {
        let (Some(span), [first, ..]) = (&self.span, requests) else {
            return;
        };
        let prompts = requests.iter().step_by(per_prompt.max(1));
        let tokens = prompts.map(|request| request.history.len() + request.prompt.len());
        span.totals().input_tokens = tokens.sum();
        let span = span.context.span();
        span.set_attributes([
            KeyValue::new("gen_ai.request.model", model.to_owned()),
            KeyValue::new("gen_ai.response.model", model.to_owned()),
        ]);
        if first.output == Output::Embedding {
            return;
        }
        span.set_attributes([
            count("gen_ai.request.choice.count", per_prompt),
            count("gen_ai.request.max_tokens", first.stop.max_tokens),
            number("gen_ai.request.temperature", first.sampling.temperature),
            number("gen_ai.request.top_p", first.sampling.top_p),
        ]);
    }

    /// Returns the trace of the generation with this index.
    pub(super) fn generation(&self, index: usize) -> GenerationTrace {
        GenerationTrace {
            request: self.clone(),
            index,
        }
    }

    /// Records the status of the answer.
    pub(super) fn answered(&self, status: StatusCode) {
        if let Some(span) = &self.span {
            span.totals().status = Some(status);
        }
    }

    /// Records the outcome of the request. Its span ends when the last clone is dropped.
    pub(super) fn ended(&self, outcome: Outcome) {
        if let Some(span) = &self.span {
            span.totals().outcome = Some(outcome);
        }
    }
}

impl TimelineTrace for GenerationTrace {
    fn index(&self) -> usize {
        self.index
    }

    /// Creates the spans of the stages that a finished generation has reached.
    fn ended(&self, timeline: &Timeline) {
        let Some(span) = &self.request.span else {
            return;
        };
        span.totals().add(timeline);
        // A request can have 2048 embeddings.
        if *timeline.output() == Output::Embedding {
            return;
        }
        let stages = timeline.stages();
        let last = stages.last().map(|(stage, ..)| *stage);
        for (stage, from, to) in stages {
            let builder = span
                .tracer
                .span_builder(stage_name(stage))
                .with_kind(SpanKind::Internal)
                .with_start_time(span.time(from))
                .with_attributes(stage_attributes(stage, timeline));
            let child = span.tracer.build_with_context(builder, &span.context);
            let child = Context::new().with_span(child);
            let failure = failure(timeline.ending()).filter(|_| Some(stage) == last);
            if let Some(error) = failure {
                fail(&child, error);
            }
            child.span().end_with_timestamp(span.time(to.max(from)));
        }
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Queue => "queue",
        Stage::Prefill => "prefill",
        Stage::Decode => "decode",
    }
}

fn stage_attributes(stage: Stage, timeline: &Timeline) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("skald.generation.id", timeline.id().to_string()),
        count("skald.generation.index", timeline.index()),
    ];
    match stage {
        Stage::Queue => (),
        Stage::Prefill => attributes.extend([
            count("gen_ai.usage.input_tokens", timeline.prompt_tokens()),
            count(CACHED, timeline.cached_tokens()),
        ]),
        Stage::Decode => attributes.extend([
            count("gen_ai.usage.output_tokens", timeline.generated()),
            reasons(vec![finish_reason(timeline.ending())]),
        ]),
    }
    attributes
}

impl RequestSpan {
    fn time(&self, at: Instant) -> SystemTime {
        self.began_at + at.saturating_duration_since(self.began)
    }

    fn totals(&self) -> std::sync::MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        let ended = self.time(Instant::now());
        let totals = self
            .totals
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let span = self.context.span();
        span.set_attributes(totals.attributes());
        if let Some(error) = totals.failure() {
            fail(&self.context, error);
        }
        span.end_with_timestamp(ended);
    }
}

impl Totals {
    fn add(&mut self, timeline: &Timeline) {
        let sooner = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
        self.in_queue = sooner(self.in_queue, timeline.queue_time());
        self.first_token = sooner(self.first_token, timeline.first_token_time());
        self.error = self.error.or(failure(timeline.ending()));
        self.ran = true;
        if *timeline.output() == Output::Text {
            self.output_tokens += timeline.generated();
            let finish = finish_reason(timeline.ending());
            self.finish_reasons.push((timeline.index(), finish));
        }
    }

    fn attributes(&mut self) -> Vec<KeyValue> {
        let mut attributes = Vec::new();
        if let Some(status) = self.status {
            let status = i64::from(status.as_u16());
            attributes.push(KeyValue::new("http.response.status_code", status));
        }
        if let Some(outcome) = self.outcome {
            attributes.push(KeyValue::new("skald.outcome", outcome.as_str()));
        }
        if self.ran {
            attributes.push(count("gen_ai.usage.input_tokens", self.input_tokens));
        }
        if !self.finish_reasons.is_empty() {
            self.finish_reasons.sort_by_key(|(index, _)| *index);
            let finish_reasons = self.finish_reasons.iter().map(|(_, reason)| *reason);
            attributes.extend([
                count("gen_ai.usage.output_tokens", self.output_tokens),
                reasons(finish_reasons.collect()),
            ]);
        }
        // vLLM's names.
        let latencies = [
            ("gen_ai.latency.time_in_queue", self.in_queue),
            ("gen_ai.latency.time_to_first_token", self.first_token),
        ];
        let known = latencies
            .into_iter()
            .filter_map(|(key, time)| Some(KeyValue::new(key, time?.as_secs_f64())));
        attributes.extend(known);
        attributes
    }

    /// Returns the reason of a failure that is the server's fault.
    fn failure(&self) -> Option<Cow<'static, str>> {
        let status = self.status.filter(StatusCode::is_server_error);
        let status = status.map(|status| Cow::Owned(status.as_str().to_owned()));
        let failed = self.outcome == Some(Outcome::ServerError);
        let generation = self.error.map(Cow::Borrowed);
        let unknown = failed.then_some(Cow::Borrowed("server_error"));
        generation.or(status).or(unknown)
    }
}

/// Returns the name of a request's span: method and route, so that the number of names is small.
fn name(request: &Request) -> String {
    let method = known_method(request.method());
    let method = if method == OTHER { "HTTP" } else { method };
    match request.extensions().get::<MatchedPath>() {
        Some(route) => format!("{method} {}", route.as_str()),
        None => method.to_owned(),
    }
}

/// Returns the attributes of a request head.
fn attributes(request: &Request, id: &RequestId) -> Vec<KeyValue> {
    let method = known_method(request.method());
    let listening = request.extensions().get::<Listening>();
    let scheme = match listening {
        Some(listening) if listening.tls => "https",
        _ => request.uri().scheme_str().unwrap_or("http"),
    };
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.path", short(request.uri().path())),
        KeyValue::new("url.scheme", short(scheme)),
        KeyValue::new("gen_ai.request.id", id.to_string()),
    ];
    let mut add = |key: &'static str, value: Option<String>| {
        attributes.extend(value.map(|value| KeyValue::new(key, value)));
    };
    let other = (method == OTHER).then(|| short(request.method().as_str()));
    add("http.request.method_original", other);
    let route = request.extensions().get::<MatchedPath>();
    add("http.route", route.map(|route| route.as_str().to_owned()));
    let operation = route.and_then(|route| operation(route.as_str()));
    add("gen_ai.operation.name", operation.map(str::to_owned));
    let version = match request.version() {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    add("network.protocol.version", Some(version.to_owned()));
    let text = |name| request.headers().get(name)?.to_str().ok();
    let host = request.uri().host().or_else(|| text(header::HOST));
    add("server.address", host.map(short));
    add("user_agent.original", text(header::USER_AGENT).map(short));
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>();
    add(
        "client.address",
        client.map(|client| client.0.ip().to_string()),
    );
    attributes
}

/// The semantic conventions' name for an unknown method.
const OTHER: &str = "_OTHER";

fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => OTHER,
    }
}

/// Returns the operation of a route, by the names of the semantic conventions.
fn operation(route: &str) -> Option<&'static str> {
    match route {
        "/v1/chat/completions" => Some("chat"),
        "/v1/completions" | "/generate" | "/generate_stream" | "/" => Some("text_completion"),
        "/v1/embeddings" => Some("embeddings"),
        _ => None,
    }
}

fn finish_reason(ending: Ending) -> &'static str {
    use crate::engine::FinishReason::{Complete, EndOfText, Length, Stop};
    match ending {
        Ending::Finished(Length) => "length",
        Ending::Finished(EndOfText | Stop | Complete) => "stop",
        Ending::Cancelled => "cancelled",
        Ending::TimedOut => "timeout",
        Ending::Failed | Ending::NotStored => "error",
    }
}

/// Returns the `error.type` of a generation that failed.
fn failure(ending: Ending) -> Option<&'static str> {
    match ending {
        Ending::Failed => Some("generation_failed"),
        Ending::NotStored => Some("session_not_stored"),
        Ending::TimedOut => Some("timeout"),
        Ending::Finished(_) | Ending::Cancelled => None,
    }
}

fn fail(context: &Context, error: impl Into<Cow<'static, str>>) {
    let span = context.span();
    let error: Cow<'static, str> = error.into();
    span.set_attribute(KeyValue::new("error.type", error));
    // No description, because errors can quote the client's input.
    span.set_status(Status::error(""));
}

fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

fn count(key: &'static str, value: usize) -> KeyValue {
    KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX))
}

/// Returns the attribute with the number as the client wrote it: 0.7, not 0.699999988.
fn number(key: &'static str, value: f32) -> KeyValue {
    let written = value.to_string().parse();
    KeyValue::new(key, written.unwrap_or_else(|_| f64::from(value)))
}

fn reasons(finish_reasons: Vec<&'static str>) -> KeyValue {
    let reasons = finish_reasons.into_iter().map(StringValue::from).collect();
    let reasons = Value::Array(Array::String(reasons));
    KeyValue::new("gen_ai.response.finish_reasons", reasons)
}
