//! `GET /metrics`: formats, names, outcomes of requests, and consistent totals.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::support::load::{begun, endless, slow, streamed};
use crate::support::metrics::Metrics;
use crate::support::{Setup, TestServer, client, serving};
use serde_json::{Value, json};
use skald::engine::EngineConfig;
use skald::http::HttpConfig;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Series that dashboards, routers and alert rules rely on; counters as the text format names them.
const GAUGES: [&str; 20] = [
    "skald_connections",
    "skald_build_info",
    "skald_start_time_seconds",
    "skald_up",
    "skald_requests_running",
    "skald_requests_waiting",
    "skald_requests_stalled",
    "skald_tenants_waiting",
    "skald_step_silence_seconds",
    "skald_kv_blocks",
    "skald_kv_blocks_used",
    "skald_kv_blocks_cached",
    "skald_kv_block_bytes",
    "skald_sessions",
    "skald_sessions_waiting",
    "skald_kv_disk_blocks",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
];
const COUNTERS: [&str; 22] = [
    "skald_log_lines_lost_total",
    "skald_connections_evicted_total",
    "skald_connections_refused_total",
    "skald_requests_total",
    "skald_steps_total",
    "skald_prompt_tokens_total",
    "skald_generated_tokens_total",
    "skald_prefix_cache_query_tokens_total",
    "skald_prefix_cache_hit_tokens_total",
    "skald_draft_tokens_total",
    "skald_accepted_tokens_total",
    "skald_preemptions_total",
    "skald_yields_total",
    "skald_kv_evicted_blocks_total",
    "skald_kv_lost_blocks_total",
    "skald_kv_disk_restored_blocks_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:request_success_total",
];
const HISTOGRAMS: [&str; 14] = [
    "skald_queue_time_seconds",
    "skald_time_to_first_token_seconds",
    "skald_inter_token_latency_seconds",
    "skald_request_duration_seconds",
    "skald_request_prompt_tokens",
    "skald_request_generated_tokens",
    "skald_step_tokens",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:iteration_tokens_total",
];

/// Scrapes with an `Accept` header. Returns content type and text.
async fn accepting(server: &TestServer, accept: &str) -> (String, String) {
    let request = client()
        .get(server.url("/metrics"))
        .header("accept", accept);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["vary"], "accept");
    let kind = answer.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    (kind, answer.text().await.unwrap())
}

fn completion(max_tokens: usize) -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": true, "seed": 7})
}

/// Waits until an endpoint has exactly these outcomes.
async fn until_outcomes(server: &TestServer, endpoint: &str, wanted: &[(&str, f64)]) {
    let wanted: BTreeMap<String, f64> = wanted
        .iter()
        .map(|&(name, count)| (name.to_owned(), count))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let outcomes = Metrics::of(server).await.outcomes(endpoint);
        if outcomes == wanted {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{endpoint}: {outcomes:?}, not {wanted:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_text_format_of_prometheus_is_the_default() {
    for accept in ["*/*", "text/plain;version=0.0.4", "application/json"] {
        let (kind, text) = accepting(&SERVER, accept).await;
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{accept}");
        assert!(!text.contains("# EOF"));
        assert!(text.contains("\n# TYPE skald_steps_total counter\n"));
        assert!(text.contains("\n# TYPE skald_build_info gauge\n"));
    }
    let bare = client().get(SERVER.url("/metrics")).send().await.unwrap();
    assert!(
        bare.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
}

#[tokio::test]
async fn open_metrics_is_sent_where_accept_asks_for_it() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for accept in ["application/openmetrics-text", prometheus] {
        let (kind, text) = accepting(&SERVER, accept).await;
        assert_eq!(kind, OPEN_METRICS, "{accept}");
        assert!(text.ends_with("\n# EOF\n"));
        assert!(text.contains("\n# TYPE skald_steps counter\nskald_steps_total "));
        assert!(text.contains("\n# TYPE skald_build info\nskald_build_info{"));
    }
    let refused = "application/openmetrics-text;q=0.4, text/plain;q=0.5";
    let (kind, _) = accepting(&SERVER, refused).await;
    assert!(kind.starts_with("text/plain"), "{kind}");
}

#[tokio::test]
async fn every_name_is_there_with_its_type_and_samples() {
    SERVER.post("/v1/completions", completion(2)).await.ok();
    let metrics = Metrics::of(&SERVER).await;
    let families = metrics.families();
    for (names, kind) in [
        (&GAUGES[..], "gauge"),
        (&COUNTERS[..], "counter"),
        (&HISTOGRAMS[..], "histogram"),
    ] {
        for name in names {
            assert!(families.contains(&(name, kind)), "no {kind} {name}");
            let labelled = if name.starts_with("vllm:") {
                format!("\n{name}{{model_name=\"fairy-tales\"")
            } else {
                format!("\n{name}")
            };
            let labelled = match kind {
                "histogram" => labelled.replace(name, &format!("{name}_bucket")),
                _ => labelled,
            };
            assert!(metrics.text.contains(&labelled), "no sample {labelled:?}");
        }
    }
    let count = GAUGES.len() + COUNTERS.len() + HISTOGRAMS.len();
    assert_eq!(families.len(), count, "a family this test does not know");
    let version = env!("CARGO_PKG_VERSION");
    let isa = skald::kernels::Isa::detect().name();
    metrics.get(&format!(
        "skald_build_info{{version=\"{version}\",isa=\"{isa}\",dtype=\"f32\",model=\"fairy-tales\"}}"
    ));
    assert_eq!(metrics.get("skald_up"), 1.0);
    let blocks = metrics.get("skald_kv_blocks");
    let config = format!(
        "vllm:cache_config_info{{model_name=\"fairy-tales\",block_size=\"16\",num_gpu_blocks=\"{blocks}\"}}"
    );
    assert_eq!(metrics.get(&config), 1.0);
}

#[tokio::test]
async fn a_model_name_may_have_any_characters() {
    let server = TestServer::with(Setup {
        load: false,
        ..Setup::default()
    });
    let mut odd = serving(&Setup::default());
    odd.info.id = "a \"tale\"\nof C:\\temp".to_owned();
    server.app.ready(odd);
    let escaped = r#"model_name="a \"tale\"\nof C:\\temp""#;
    let metrics = Metrics::of(&server).await;
    metrics.get(&format!("vllm:num_requests_running{{{escaped}}}"));
    let (_, text) = accepting(&server, OPEN_METRICS).await;
    let line = format!("\nvllm:num_requests_running{{{escaped}}} 0\n");
    assert!(text.contains(&line), "{text}");
    check_with_promtool(&metrics.text);
}

#[tokio::test]
async fn without_a_model_the_server_still_answers() {
    let server = TestServer::with(Setup {
        load: false,
        ..Setup::default()
    });
    let refused = server.post("/v1/completions", completion(1)).await;
    assert_eq!(refused.status, 503);
    let loading = Metrics::of(&server).await;
    assert_eq!(loading.get("skald_up"), 0.0);
    assert_eq!(loading.outcomes("/v1/completions")["unavailable"], 1.0);
    assert_eq!(loading.get("skald_request_duration_seconds_count"), 0.0);
    assert_eq!(loading.find("skald_requests_running"), None);
    assert!(!loading.text.contains("vllm:"));
    check_with_promtool(&loading.text);
    let (kind, text) = accepting(&server, OPEN_METRICS).await;
    assert!(kind == OPEN_METRICS && text.ends_with("# EOF\n"));
    server.app.fail("disk on fire".to_owned());
    assert_eq!(Metrics::of(&server).await.get("skald_up"), 0.0);
}

#[tokio::test]
async fn a_worker_that_is_gone_is_not_up() {
    let server = TestServer::start();
    server.post("/v1/completions", completion(3)).await.ok();
    server.engine().stop();
    server.until("stopped", |status| !status.alive).await;
    let metrics = Metrics::of(&server).await;
    assert_eq!(metrics.get("skald_up"), 0.0);
    assert!(metrics.get("skald_steps_total") >= 1.0);
}

#[tokio::test]
async fn figures_survive_until_a_drain_is_over() {
    let server = slow(Duration::from_millis(10), |_| {});
    server.post("/v1/completions", completion(3)).await.ok();
    let stream = begun(&server, completion(60)).await;
    server.stop();
    while server.get("/readyz").await.status == 200 {}
    let refused = server.post("/v1/completions", completion(1)).await;
    assert_eq!(refused.status, 503);
    let metrics = Metrics::of(&server).await;
    assert_eq!(metrics.get("skald_up"), 1.0);
    assert_eq!(metrics.get("skald_requests_running"), 1.0);
    let outcomes = metrics.outcomes("/v1/completions");
    assert_eq!((outcomes["success"], outcomes["unavailable"]), (1.0, 1.0));
    assert_eq!(metrics.get("skald_request_generated_tokens_sum"), 3.0);
    drop(stream);
}

#[tokio::test]
async fn answers_that_are_sent_whole_are_successes() {
    let server = TestServer::start();
    server.post("/v1/completions", completion(2)).await.ok();
    server
        .stream("/v1/completions", streamed(completion(2)))
        .await;
    server.post("/generate", json!({"inputs": "A"})).await.ok();
    server
        .stream("/generate_stream", json!({"inputs": "A"}))
        .await;
    server.get("/v1/models").await.ok();
    server.get("/v1/models/fairy-tales").await.ok();
    let head = client()
        .head(server.url("/v1/models"))
        .send()
        .await
        .unwrap();
    assert_eq!(head.status(), 200);
    // Probes and scrapes are not counted.
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        server.get(path).await;
    }
    let metrics = Metrics::of(&server).await;
    for (endpoint, count) in [
        ("/v1/completions", 2.0),
        ("/generate", 1.0),
        ("/generate_stream", 1.0),
        ("/v1/models", 2.0),
        ("/v1/models/{id}", 1.0),
    ] {
        let outcomes = metrics.outcomes(endpoint);
        assert_eq!(
            outcomes,
            BTreeMap::from([("success".to_owned(), count)]),
            "{endpoint}"
        );
    }
    for path in ["/livez", "/readyz", "/health", "/metrics", "other"] {
        assert_eq!(metrics.outcomes(path), BTreeMap::new(), "{path}");
    }
    // The other outcomes exist too, so that the first one is visible as an increase.
    let none = "skald_requests_total{endpoint=\"/generate\",outcome=\"server_error\"}";
    assert_eq!(metrics.get(none), 0.0);
}

#[tokio::test]
async fn refused_requests_are_client_errors() {
    let server = TestServer::with(Setup {
        http: HttpConfig {
            max_body: bytesize::ByteSize::kib(1),
            ..HttpConfig::default()
        },
        ..Setup::default()
    });
    let post = |body: &str| server.post_text("/v1/completions", body.to_owned());
    assert_eq!(post("{").await.status, 400);
    assert_eq!(post(r#"{"prompt": "a", "top_p": 2}"#).await.status, 400);
    assert_eq!(post(&"x".repeat(2000)).await.status, 413);
    assert_eq!(server.get("/v1/completions").await.status, 405);
    let invalid = json!({"inputs": "a", "parameters": {"top_p": 2}});
    assert_eq!(server.post("/generate", invalid).await.status, 422);
    assert_eq!(server.get("/v1/sessions/no-such").await.status, 404);
    for path in ["/nothing", "/v1/nothing", "/%ff"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    let metrics = Metrics::of(&server).await;
    for (endpoint, count) in [
        ("/v1/completions", 4.0),
        ("/generate", 1.0),
        ("/v1/sessions/{id}", 1.0),
        ("other", 3.0),
    ] {
        let outcomes = metrics.outcomes(endpoint);
        let wanted = BTreeMap::from([("client_error".to_owned(), count)]);
        assert_eq!(outcomes, wanted, "{endpoint}");
    }
}

#[tokio::test]
async fn a_full_queue_is_an_overload_and_a_client_that_leaves_a_cancellation() {
    let server = slow(Duration::from_millis(10), |setup| {
        setup.engine.max_batch = 1;
        setup.engine.queue_limit = 1;
    });
    let running = begun(&server, endless()).await;
    let request = client().post(server.url("/generate"));
    let waiting = json!({"inputs": "A", "parameters": {"max_new_tokens": 100}});
    let waiting = tokio::spawn(request.body(waiting.to_string()).send());
    server.until("waiting", |status| status.waiting == 1).await;
    // Two steps later the worker has accepted the request.
    let steps = server.engine().status().steps;
    server
        .until("accepted", |status| status.steps >= steps + 2)
        .await;
    let metrics = Metrics::of(&server).await;
    assert_eq!(metrics.get("skald_requests_running"), 1.0);
    let waits = metrics.get("vllm:num_requests_waiting{model_name=\"fairy-tales\"}");
    assert_eq!(waits, 1.0);
    let refused = server.post(
        "/v1/chat/completions",
        json!({"messages": [{"role": "user", "content": "a"}]}),
    );
    assert_eq!(refused.await.status, 429);
    until_outcomes(&server, "/v1/chat/completions", &[("overloaded", 1.0)]).await;
    // Cancel one request in the middle of a stream, and one before its answer begins.
    drop(running);
    waiting.abort();
    until_outcomes(&server, "/v1/completions", &[("cancelled", 1.0)]).await;
    until_outcomes(&server, "/generate", &[("cancelled", 1.0)]).await;
    server
        .until("free", |status| status.running + status.waiting == 0)
        .await;
    let aborted =
        "vllm:request_success_total{model_name=\"fairy-tales\",finished_reason=\"abort\"}";
    assert_eq!(Metrics::of(&server).await.get(aborted), 2.0);
}

#[tokio::test]
async fn failed_generations_are_server_errors_also_after_a_200() {
    let panics = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&panics);
    let server = TestServer::with(Setup {
        engine: EngineConfig {
            step_hook: Some(Arc::new(move |_| {
                assert!(!hook.swap(false, Ordering::SeqCst), "injected");
            })),
            ..Setup::default().engine
        },
        ..Setup::default()
    });
    panics.store(true, Ordering::SeqCst);
    assert_eq!(
        server.post("/v1/completions", completion(3)).await.status,
        500
    );
    panics.store(true, Ordering::SeqCst);
    // Status 424 in this dialect, but a fault of the server.
    assert_eq!(
        server
            .post("/generate", json!({"inputs": "A"}))
            .await
            .status,
        424
    );
    let stream = begun(&server, endless()).await;
    panics.store(true, Ordering::SeqCst);
    let text = stream.text().await.unwrap();
    assert!(text.contains("server_error"), "{text}");
    until_outcomes(&server, "/v1/completions", &[("server_error", 2.0)]).await;
    until_outcomes(&server, "/generate", &[("server_error", 1.0)]).await;
    let failed = "vllm:request_success_total{model_name=\"fairy-tales\",finished_reason=\"error\"}";
    assert_eq!(Metrics::of(&server).await.get(failed), 3.0);
}

#[tokio::test]
async fn histograms_add_up_to_requests_and_tokens_to_usage() {
    let server = TestServer::with(Setup {
        engine: EngineConfig {
            // One token per step.
            speculative_rows: 0,
            ..Setup::default().engine
        },
        ..Setup::default()
    });
    let usage = |answer: &Value, field: &str| answer["usage"][field].as_f64().unwrap();
    let one = server.post("/v1/completions", completion(9)).await.ok();
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "seed": 1, "ignore_eos": true});
    let chat = server.post("/v1/chat/completions", chat).await.ok();
    let mut two = completion(4);
    two["n"] = json!(2);
    let two = server.post("/v1/completions", two).await.ok();
    let beams =
        json!({"prompt": "Once upon a time", "use_beam_search": true, "n": 3, "max_tokens": 6});
    let beams = server.post("/v1/completions", beams).await.ok();
    let vectors = json!({"input": ["The fox", "The bear and the wolf"]});
    let vectors = server.post("/v1/embeddings", vectors).await.ok();
    let native = json!({"inputs": "Once", "parameters": {"max_new_tokens": 1}});
    server.post("/generate", native).await.ok();

    let metrics = Metrics::of(&server).await;
    let prompts = usage(&one, "prompt_tokens")
        + usage(&chat, "prompt_tokens")
        + 2.0 * usage(&two, "prompt_tokens")
        + usage(&vectors, "prompt_tokens")
        + server.ids("Once").len() as f64;
    let beam_prompt = usage(&beams, "prompt_tokens");
    let generated = usage(&one, "completion_tokens")
        + usage(&chat, "completion_tokens")
        + usage(&two, "completion_tokens")
        + usage(&beams, "completion_tokens")
        + 1.0;
    let texts = 1.0 + 1.0 + 2.0 + 3.0 + 1.0;
    let generations = texts + 2.0;
    for (series, wanted) in [
        ("skald_queue_time_seconds_count", generations),
        ("skald_request_duration_seconds_count", generations),
        ("skald_request_prompt_tokens_count", generations),
        ("skald_request_generated_tokens_count", texts),
        ("skald_time_to_first_token_seconds_count", texts),
        // Beams are returned whole, at the end.
        (
            "skald_inter_token_latency_seconds_count",
            generated - usage(&beams, "completion_tokens") - (texts - 3.0),
        ),
        ("skald_request_generated_tokens_sum", generated),
        ("skald_generated_tokens_total", generated),
        // Three generations with a single prompt in the engine.
        (
            "skald_request_prompt_tokens_sum",
            prompts + 3.0 * beam_prompt,
        ),
        ("skald_prompt_tokens_total", prompts + beam_prompt),
        (
            "skald_prefix_cache_query_tokens_total",
            prompts + beam_prompt - usage(&vectors, "prompt_tokens"),
        ),
        ("skald_step_tokens_count", metrics.get("skald_steps_total")),
    ] {
        assert_eq!(metrics.get(series), wanted, "{series}");
    }
    let finished = ["stop", "length", "abort", "error"].map(|reason| {
        metrics.get(&format!(
            "vllm:request_success_total{{model_name=\"fairy-tales\",finished_reason=\"{reason}\"}}"
        ))
    });
    assert_eq!(finished.iter().sum::<f64>(), generations, "{finished:?}");
    assert!(
        finished[1] >= 4.0 && finished[2] + finished[3] == 0.0,
        "{finished:?}"
    );
    aliases_agree(&metrics);
    buckets_are_cumulative(&metrics);
}

/// Asserts that series with the same meaning have the same values.
fn aliases_agree(metrics: &Metrics) {
    for (skald, vllm) in [
        ("skald_prompt_tokens_total", "prompt_tokens_total"),
        ("skald_generated_tokens_total", "generation_tokens_total"),
        (
            "skald_prefix_cache_hit_tokens_total",
            "prefix_cache_hits_total",
        ),
        (
            "skald_queue_time_seconds_sum",
            "request_queue_time_seconds_sum",
        ),
        (
            "skald_request_duration_seconds_sum",
            "e2e_request_latency_seconds_sum",
        ),
        ("skald_step_tokens_sum", "iteration_tokens_total_sum"),
    ] {
        let alias = format!("vllm:{vllm}{{model_name=\"fairy-tales\"}}");
        assert_eq!(metrics.get(skald), metrics.get(&alias), "{skald}");
    }
}

/// Asserts that each bucket holds at least as many as the one before, and the last holds all.
fn buckets_are_cumulative(metrics: &Metrics) {
    for name in HISTOGRAMS {
        let start = format!("{name}_bucket");
        let buckets = metrics.text.lines().filter(|line| line.starts_with(&start));
        let counts: Vec<f64> = buckets
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
            .collect();
        assert!(
            counts.len() > 10 && counts.is_sorted(),
            "{name}: {counts:?}"
        );
        let labels = if name.starts_with("vllm:") {
            "{model_name=\"fairy-tales\"}"
        } else {
            ""
        };
        let count = metrics.get(&format!("{name}_count{labels}"));
        assert_eq!(counts.last(), Some(&count), "{name}");
    }
}

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    SERVER.post("/v1/completions", completion(4)).await.ok();
    SERVER.get("/nothing").await;
    check_with_promtool(&Metrics::of(&SERVER).await.text);
}

/// Checks a scrape with `promtool check metrics` (Debian's package `prometheus`). Skipped if the program is
/// missing, unless `SKALD_TEST_PROMTOOL=1` requires it.
///
/// vLLM's names break two rules of its linter (no colons, `_total` for counters only). Dashboards and routers
/// need these names unchanged, so these two complaints are ignored for them.
fn check_with_promtool(text: &str) {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let required = std::env::var("SKALD_TEST_PROMTOOL").is_ok_and(|set| set == "1");
            assert!(!required, "promtool cannot be started: {error}");
            eprintln!("skipped: promtool cannot be started: {error}");
            return;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| {
            let of_vllm = line
                .strip_prefix("vllm:")
                .and_then(|line| line.split_once(' '));
            !matches!(
                of_vllm,
                Some((
                    _,
                    "metric names should not contain ':'"
                        | "non-counter metrics should not have \"_total\" suffix"
                ))
            )
        })
        .collect();
    assert_eq!(complaints, [""; 0], "{text}");
    // 3: the linter has complaints, which were checked above.
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {said}");
}
