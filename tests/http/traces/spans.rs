//! The spans of a request: their parents, times and attributes.

use serde_json::{Value, json};

use super::collector::{Collector, Span};
use super::{answer, post, traced};
use crate::support::process::Process;
use crate::support::sse::Live;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const UNSET: i32 = 0;
const ERROR: i32 = 2;

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

/// Asserts that the stages follow each other and lie within the request.
#[track_caller]
fn are_ordered(request: &Span, stages: &[Span]) {
    assert!(request.start <= request.end, "{request:#?}");
    let mut before = request.start;
    for stage in stages {
        assert_eq!(stage.trace, request.trace);
        assert_eq!(stage.kind, INTERNAL);
        assert!(before <= stage.start, "{stage:#?} begins before {before}");
        assert!(stage.start <= stage.end, "{stage:#?}");
        assert!(stage.end <= request.end, "{stage:#?} beyond {request:#?}");
        before = stage.end;
    }
}

/// Returns the trace that a request's log line names.
#[track_caller]
fn trace_in_log(server: &Process, id: &str, message: &str) -> Value {
    let line = server.until_logged_where(message, |line| line["span"]["id"] == id);
    line["span"]["trace_id"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_with_its_stages_below_it() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({
        "prompt": "Once upon a time there was a dwarf", "max_tokens": 5, "temperature": 0.7, "ignore_eos": true,
    });
    let (status, text) = answer(post(&server, "whole", "/v1/completions", &body)).await;
    assert_eq!(status, 200, "{text}");
    let told: Value = serde_json::from_str(&text).expect("JSON");

    let (request, stages) = collector.request("whole");
    assert_eq!(request.name, "POST /v1/completions");
    assert_eq!(
        (request.kind, request.status, request.parent.as_str()),
        (SERVER, UNSET, "")
    );
    assert_eq!(names(&stages), ["queue", "prefill", "decode"]);
    are_ordered(&request, &stages);
    assert_eq!(stages[0].end, stages[1].start);
    assert_eq!(stages[1].end, stages[2].start);

    let prompt_tokens = &told["usage"]["prompt_tokens"];
    for (key, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/completions")),
        ("http.response.status_code", json!(200)),
        ("url.path", json!("/v1/completions")),
        ("url.scheme", json!("http")),
        ("client.address", json!("127.0.0.1")),
        ("network.protocol.version", json!("1.1")),
        ("gen_ai.operation.name", json!("text_completion")),
        ("gen_ai.request.model", told["model"].clone()),
        ("gen_ai.request.max_tokens", json!(5)),
        ("gen_ai.request.temperature", json!(0.7)),
        ("gen_ai.request.choice.count", json!(1)),
        ("gen_ai.usage.input_tokens", prompt_tokens.clone()),
        ("gen_ai.usage.output_tokens", json!(5)),
        ("gen_ai.response.finish_reasons", json!(["length"])),
        ("skald.outcome", json!("success")),
        ("error.type", Value::Null),
    ] {
        assert_eq!(request.attribute(key), &value, "{key}");
    }
    let seconds = |key| request.attribute(key).as_f64().expect(key);
    let in_queue = seconds("gen_ai.latency.time_in_queue");
    assert!(0.0 <= in_queue && in_queue <= seconds("gen_ai.latency.time_to_first_token"));
    for stage in &stages {
        assert_eq!(stage.attribute("skald.generation.id"), "whole/0");
    }
    assert_eq!(
        stages[1].attribute("gen_ai.usage.input_tokens"),
        prompt_tokens
    );
    let cached = stages[1].attribute("gen_ai.usage.cache_read.input_tokens");
    assert_eq!(cached, 0);
    assert_eq!(stages[2].attribute("gen_ai.usage.output_tokens"), 5);

    assert_eq!(request.resource["service.name"], "skald");
    assert_eq!(
        request.resource["service.version"],
        env!("CARGO_PKG_VERSION")
    );
    // Neither prompt nor answer is exported. The first line shows that the check can find text.
    assert!(collector.has_seen("whole/0"));
    assert!(!collector.has_seen("dwarf"));
    let said = told["choices"][0]["text"].as_str().expect("a text");
    assert!(!collector.has_seen(said), "{said}");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_part_of_the_callers_trace() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({"inputs": "Once", "parameters": {"max_new_tokens": 2}});
    let request = post(&server, "child", "/generate", &body)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .header("tracestate", "vendor=value");
    assert_eq!(answer(request).await.0, 200);
    let (request, stages) = collector.request("child");
    assert_eq!((&*request.trace, &*request.parent), (TRACE, CALLER));
    assert_eq!(request.state, "vendor=value");
    assert_eq!(names(&stages), ["queue", "prefill", "decode"]);
    are_ordered(&request, &stages);
    let logged = trace_in_log(&server, "child", "generation finished");
    assert_eq!(logged, TRACE);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_caller_is_as_good_as_none() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({"inputs": "Once", "parameters": {"max_new_tokens": 1}});
    for (id, traceparent) in [
        ("short", "00-1-1-01".to_owned()),
        ("upper", format!("00-{}-{CALLER}-01", TRACE.to_uppercase())),
        ("zero", format!("00-{}-{CALLER}-01", "0".repeat(32))),
    ] {
        let request = post(&server, id, "/generate", &body).header("traceparent", traceparent);
        assert_eq!(answer(request).await.0, 200, "{id}");
        let (request, stages) = collector.request(id);
        assert_eq!(request.parent, "", "{id}");
        assert_ne!(request.trace, TRACE, "{id}");
        assert_eq!(stages.len(), 3, "{id}");
        let logged = trace_in_log(&server, id, "generation finished");
        assert_eq!(logged, *request.trace);
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_does_not_sample_is_not_exported() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({"inputs": "Once", "parameters": {"max_new_tokens": 1}});
    let request = post(&server, "unsampled", "/generate", &body)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-00"));
    assert_eq!(answer(request).await.0, 200);
    assert_eq!(
        answer(post(&server, "sampled", "/generate", &body)).await.0,
        200
    );
    collector.request("sampled");
    let logged = trace_in_log(&server, "unsampled", "generation finished");
    assert_eq!(logged, TRACE);
    server.stop();
    let spans = collector.spans();
    assert_eq!(spans.len(), 4, "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace != TRACE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_its_span_with_its_last_event() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({
        "messages": [{"role": "user", "content": "Tell me a tale"}],
        "max_tokens": 8, "stream": true, "ignore_eos": true,
    });
    let (status, text) = answer(post(&server, "stream", "/v1/chat/completions", &body)).await;
    assert_eq!(status, 200);
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let (request, stages) = collector.request("stream");
    assert_eq!(names(&stages), ["queue", "prefill", "decode"]);
    are_ordered(&request, &stages);
    assert_eq!(request.attribute("gen_ai.operation.name"), "chat");
    assert_eq!(request.attribute("gen_ai.usage.output_tokens"), 8);
    assert_eq!(request.attribute("skald.outcome"), "success");
    assert_eq!(request.status, UNSET);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_client_goes_away_is_cancelled() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({"prompt": "Once", "max_tokens": 100_000, "stream": true, "overflow": "slide", "ignore_eos": true});
    let request = post(&server, "left", "/v1/completions", &body)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let mut stream = Live::new(request.send().await.expect("an answer"));
    stream.next().await.expect("an event");
    drop(stream);
    let (request, stages) = collector.request("left");
    assert_eq!(names(&stages), ["queue", "prefill", "decode"]);
    are_ordered(&request, &stages);
    assert_eq!(request.attribute("skald.outcome"), "cancelled");
    assert_eq!(
        request.attribute("gen_ai.response.finish_reasons"),
        &json!(["cancelled"])
    );
    assert_eq!((request.status, stages[2].status), (UNSET, UNSET));
    // The line is written when the stream is dropped, outside of any poll.
    let logged = trace_in_log(&server, "left", "generation finished");
    assert_eq!(logged, TRACE);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_generation_of_a_request_has_its_stages() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({
        "prompt": ["Once upon a time", "The wolf"], "n": 2, "max_tokens": 3, "ignore_eos": true,
    });
    let (status, text) = answer(post(&server, "four", "/v1/completions", &body)).await;
    assert_eq!(status, 200, "{text}");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    let (request, stages) = collector.request("four");
    assert_eq!(stages.len(), 12, "{stages:#?}");
    for (index, stages) in stages.chunks(3).enumerate() {
        assert_eq!(names(stages), ["queue", "prefill", "decode"]);
        are_ordered(&request, stages);
        for stage in stages {
            let id = stage.attribute("skald.generation.id");
            assert_eq!(id, &format!("four/{index}"));
        }
    }
    let usage = &told["usage"];
    let input = request.attribute("gen_ai.usage.input_tokens");
    assert_eq!(input, &usage["prompt_tokens"], "a prompt is counted once");
    let output = request.attribute("gen_ai.usage.output_tokens");
    assert_eq!(output, &usage["completion_tokens"]);
    let reasons = request.attribute("gen_ai.response.finish_reasons");
    assert_eq!(reasons, &json!(["length", "length", "length", "length"]));
    assert_eq!(request.attribute("gen_ai.request.choice.count"), 2);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_one_span_however_many_there_are() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({"input": ["Once", "upon a time"]});
    let (status, text) = answer(post(&server, "vectors", "/v1/embeddings", &body)).await;
    assert_eq!(status, 200, "{text}");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    let (request, stages) = collector.request("vectors");
    assert_eq!(names(&stages), Vec::<&str>::new());
    assert_eq!(request.attribute("gen_ai.operation.name"), "embeddings");
    let input = request.attribute("gen_ai.usage.input_tokens");
    assert_eq!(input, &told["usage"]["prompt_tokens"]);
    assert_eq!(
        request.attribute("gen_ai.usage.output_tokens"),
        &Value::Null
    );
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_not_an_error_of_the_server() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    let body = json!({"prompt": "Once", "temperature": -1});
    assert_eq!(
        answer(post(&server, "refused", "/v1/completions", &body))
            .await
            .0,
        400
    );
    let (request, stages) = collector.request("refused");
    assert_eq!(names(&stages), Vec::<&str>::new());
    assert_eq!(request.status, UNSET);
    assert_eq!(request.attribute("http.response.status_code"), 400);
    assert_eq!(request.attribute("skald.outcome"), "client_error");
    assert_eq!(
        request.attribute("gen_ai.response.finish_reasons"),
        &Value::Null
    );

    assert_eq!(
        answer(post(&server, "lost", "/nowhere", &json!({})))
            .await
            .0,
        404
    );
    let (request, _) = collector.request("lost");
    assert_eq!(request.name, "POST", "paths that are no routes are endless");
    assert_eq!(request.attribute("http.route"), &Value::Null);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_is_ended_by_the_server_is_an_error_and_is_still_exported() {
    let collector = Collector::start();
    // Only warnings are logged, and they still have the ids of their requests.
    let flags = ["--drain-timeout", "300ms", "--log", "warn,skald::cli=info"];
    let mut server = traced(&collector, &flags);
    let body = json!({"prompt": "Once", "max_tokens": 100_000, "stream": true, "overflow": "slide", "ignore_eos": true});
    let request = post(&server, "ended", "/v1/completions", &body)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let mut stream = Live::new(request.send().await.expect("an answer"));
    stream.next().await.expect("an event");
    server.terminate();
    while let Ok(Some(_)) = stream.next().await {}
    server.ended();
    let (request, stages) = collector.request("ended");
    assert_eq!(names(&stages), ["queue", "prefill", "decode"]);
    are_ordered(&request, &stages);
    assert_eq!((request.status, stages[2].status), (ERROR, ERROR));
    assert_eq!((stages[0].status, stages[1].status), (UNSET, UNSET));
    assert_eq!(request.status_message, "");
    assert_eq!(request.attribute("http.response.status_code"), 200);
    for span in [&request, &stages[2]] {
        assert_eq!(span.attribute("error.type"), "generation_failed");
    }
    assert_eq!(
        request.attribute("gen_ai.response.finish_reasons"),
        &json!(["error"])
    );
    let logged = trace_in_log(&server, "ended", "generation failed");
    assert_eq!(logged, TRACE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_the_servers_fault_is_an_error() {
    let collector = Collector::start();
    let server = traced(&collector, &["--drain-timeout", "60s"]);
    let endless = json!({"prompt": "Once", "max_tokens": 100_000, "stream": true, "overflow": "slide", "ignore_eos": true});
    let stream = post(&server, "holds-the-drain", "/v1/completions", &endless);
    let mut stream = Live::new(stream.send().await.expect("an answer"));
    stream.next().await.expect("an event");
    server.terminate();
    // Requests are accepted until the signal has arrived.
    let body = json!({"prompt": "Once", "max_tokens": 1});
    let mut tries = 0..10_000;
    let id = loop {
        let id = format!("try-{}", tries.next().expect("it drains by now"));
        if answer(post(&server, &id, "/v1/completions", &body)).await.0 == 503 {
            break id;
        }
    };
    let (request, stages) = collector.request(&id);
    assert_eq!(request.status, ERROR);
    assert_eq!(request.attribute("error.type"), "503");
    assert_eq!(request.attribute("skald.outcome"), "unavailable");
    assert_eq!(names(&stages), Vec::<&str>::new());
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_scrapes_have_no_spans() {
    let collector = Collector::start();
    let server = traced(&collector, &[]);
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        assert_eq!(server.caller().get(path).await.status, 200, "{path}");
    }
    let body = json!({"inputs": "Once", "parameters": {"max_new_tokens": 1}});
    answer(post(&server, "last", "/generate", &body)).await;
    server.stop();
    let spans = collector.spans();
    assert_eq!(spans.len(), 4, "{spans:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_the_callers_trace_is_in_the_log() {
    let server = Process::start(&[]);
    let body = json!({"inputs": "Once", "parameters": {"max_new_tokens": 1}});
    let request = post(&server, "with", "/generate", &body)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    assert_eq!(answer(request).await.0, 200);
    assert_eq!(
        answer(post(&server, "without", "/generate", &body)).await.0,
        200
    );
    let logged = |id| trace_in_log(&server, id, "generation finished");
    assert_eq!(logged("with"), TRACE);
    assert_eq!(logged("without"), Value::Null);
    // The id of a request is in its lines once: a field of their own names the generation.
    for line in server.logged("generation finished") {
        assert_eq!(line["generation"], 0);
        assert_eq!(line["id"], Value::Null);
    }
    server.stop();
}
