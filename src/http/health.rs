//! `/livez`, `/readyz`, `/health` and `/info`: for orchestrators, load balancers and users.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::app::{App, State as Stage};
use super::documented_errors::NativeLookupErrors;
use super::error::ApiError;
use super::openai::reply::unix_seconds;
use crate::engine::EngineLimits;
use crate::request::{Limits, SamplingOverrides, SessionId};
use crate::serving::Serving;

/// State of the server.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"status": "ok"}))]
pub(super) struct Health {
    /// `ok`, `loading`, `draining`, `failed`, `worker stopped`, or `worker stalled`.
    status: &'static str,
    /// Reason why the server can't serve requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Statuses that only a restart can change.
const BROKEN: [&str; 2] = ["worker stopped", "worker stalled"];

fn health_of(app: &App) -> Health {
    let stage = app.state();
    let (status, error) = match &stage {
        Stage::Ready(_) => ("ok", None),
        Stage::Loading => ("loading", None),
        Stage::Leaving(_) | Stage::Draining(_) => ("draining", None),
        Stage::Failed(why) => ("failed", Some(why.clone())),
    };
    let (Stage::Ready(serving) | Stage::Leaving(serving) | Stage::Draining(Some(serving))) = &stage
    else {
        return Health { status, error };
    };
    match app.check_worker(serving) {
        Ok(()) => Health { status, error },
        // A server that is stopping ends its worker itself.
        Err(_) if status == "draining" && !serving.engine.status().alive => {
            Health { status, error }
        }
        Err(broken) => Health {
            status: if serving.engine.status().alive {
                "worker stalled"
            } else {
                "worker stopped"
            },
            error: Some(broken.to_string()),
        },
    }
}

fn answer(health: Health, good: bool) -> Response {
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = (status, Json(health)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Liveness
///
/// Returns 200 while the model is loading and while the server drains, too. Returns 503 if the inference
/// worker has stopped, or has work but has made no step for `--watchdog-timeout`: the server must then
/// be restarted.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "server",
    responses(
        (status = 200, description = "Alive", body = Health),
        (status = 503, description = "The server must be restarted", body = Health),
    ),
)]
pub(super) async fn livez(State(app): State<App>) -> Response {
    let health = health_of(&app);
    let alive = !BROKEN.contains(&health.status);
    if !alive {
        tracing::error!(
            status = health.status,
            error = health.error.as_deref(),
            "not alive"
        );
    }
    answer(health, alive)
}

/// Readiness
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "server",
    responses(
        (status = 200, description = "Ready", body = Health),
        (status = 503, description = "Loading, draining, failed, or without a working worker", body = Health),
    ),
)]
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let health = health_of(&app);
    let ready = health.status == "ok";
    answer(health, ready)
}

/// Readiness (llama.cpp's and TGI's path)
#[utoipa::path(
    get,
    path = "/health",
    tag = "server",
    responses(
        (status = 200, description = "Ready", body = Health),
        (status = 503, description = "Loading, draining, failed, or without a working worker", body = Health),
    ),
)]
pub(super) async fn health(State(app): State<App>) -> Response {
    readyz(State(app)).await
}

/// Facts about the server, its model and its limits.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Info {
    /// TGI's field: name of the served model.
    model_id: String,
    /// TGI's field: precision of the weights.
    model_dtype: String,
    /// TGI's field: maximum tokens of a prompt.
    max_input_tokens: usize,
    /// TGI's field: maximum tokens of prompt and text together.
    max_total_tokens: usize,
    /// TGI's field: maximum running and waiting requests.
    max_concurrent_requests: usize,
    /// TGI's field: maximum `best_of`.
    max_best_of: usize,
    /// TGI's field: maximum stop strings of a request.
    max_stop_sequences: usize,
    /// TGI's field: task of the model, always `text-generation`.
    model_pipeline_tag: &'static str,
    /// Name of the program.
    server: &'static str,
    /// Version of the program.
    version: &'static str,
    /// The model.
    model: ModelFacts,
    /// Limits of requests.
    limits: LimitFacts,
    /// Defaults of sampling fields that a request leaves out.
    sampling_defaults: SamplingOverrides,
    /// Optional features of this build.
    features: Vec<&'static str>,
    /// Current state of the engine.
    engine: EngineFacts,
}

/// The model.
#[derive(Debug, Serialize, ToSchema)]
struct ModelFacts {
    /// Name of the model.
    id: String,
    /// Name of the architecture: `gpt2`, `gemma`, `gemma2`, `gemma3`, `llama`, `qwen2` or `qwen3`.
    architecture: &'static str,
    /// Number of weights.
    parameters: u64,
    /// Precision of the weights: `f32`, `bf16` or `q8`.
    dtype: String,
    /// Backend of the computation: `cpu` (Skald's kernels) or `candle` (candle's own operations).
    device: &'static str,
    /// Number of transformer blocks.
    n_layer: usize,
    /// Attention heads per block.
    n_head: usize,
    /// Heads of keys and values per block; several attention heads can share one.
    n_kv_head: usize,
    /// Width of an attention head.
    head_dim: usize,
    /// Width of the hidden states.
    n_embd: usize,
    /// Number of neurons in the feed-forward network of a block.
    n_inner: usize,
    /// Context length in tokens.
    n_positions: usize,
    /// Number of token ids.
    vocab_size: usize,
    /// Ids of the end-of-text tokens.
    end_of_text: Vec<u32>,
    /// Source of the chat template; `plain` if the model has none.
    chat_template: String,
    /// Fingerprint that changes whenever the same seed could give a different text.
    fingerprint: String,
    /// Time at which the model was loaded, in seconds since 1970.
    created: u64,
}

/// Limits of requests.
#[derive(Debug, Serialize, ToSchema)]
struct LimitFacts {
    /// Maximum tokens of prompt and text together.
    max_context_tokens: usize,
    /// Maximum tokens generated by a request with `overflow: "slide"`.
    max_tokens: usize,
    /// Maximum choices over all prompts of a request.
    max_choices: usize,
    /// Maximum choices generated per prompt to select the best from (`best_of`).
    max_best_of_choices: usize,
    /// Maximum stop strings of a request.
    max_stop_strings: usize,
    /// Maximum bytes of a stop string.
    max_stop_string_bytes: usize,
    /// Maximum of the most likely tokens reported per position.
    max_top_logprobs: usize,
    /// Maximum bytes of a schema, a regular expression or another grammar.
    max_grammar_bytes: usize,
    /// Maximum bytes of all regular expressions of a schema together, of one expression, or of a
    /// context-free grammar.
    max_expression_bytes: usize,
    /// Maximum `temperature` outside `/v1`, which has OpenAI's maximum of 2.
    max_temperature: f64,
    /// Maximum `repetition_penalty`.
    max_repetition_penalty: f64,
    /// Maximum inputs of a request for embeddings.
    max_embedding_inputs: usize,
    /// Maximum tokens of all inputs of a request for embeddings.
    max_embedding_tokens: usize,
    /// Maximum prompt tokens of a request, and maximum tokens to generate, each over all choices.
    max_request_tokens: usize,
    /// Maximum log-probabilities in an answer, including those of the most likely tokens per position.
    max_answer_logprobs: usize,
    /// Maximum bytes of text that an answer repeats or decodes from token ids.
    max_answer_text_bytes: usize,
    /// Maximum tokens of a session's history.
    max_session_tokens: usize,
    /// Maximum characters of a session name.
    max_session_id_characters: usize,
    /// Maximum requests in the batch.
    max_batch_requests: usize,
    /// Maximum requests waiting for the batch; more are answered with 429.
    max_queue_requests: usize,
    /// Maximum seconds a request waits for the batch; requests that would wait longer are answered
    /// with 429.
    queue_timeout_seconds: f64,
    /// Maximum tokens in one step; longer prompts are prefilled in chunks.
    max_step_tokens: usize,
    /// Maximum sessions in memory, each counted once per 2,048 tokens or part of it; beyond that the
    /// least recently used session is deleted. Null if sessions are on disk or in a database.
    max_sessions: Option<usize>,
    /// Maximum sessions per API key; null for no limit.
    max_sessions_per_key: Option<usize>,
    /// Seconds after which an unused session is deleted; null for never.
    session_ttl_seconds: Option<f64>,
    /// Maximum bytes of a request body.
    max_body_bytes: u64,
    /// Maximum seconds a client may read nothing of its response before the response is ended.
    stall_timeout_seconds: f64,
    /// Maximum bytes of large requests being parsed or tokenized, or waiting for it; more are answered
    /// with 429.
    max_pending_bytes: u64,
    /// Maximum seconds to send the head of a request.
    header_timeout_seconds: f64,
    /// Maximum seconds to send the body of a request.
    body_timeout_seconds: f64,
}

/// Current state of the engine.
#[derive(Debug, Serialize, ToSchema)]
struct EngineFacts {
    /// Whether the inference worker is running.
    alive: bool,
    /// Requests in the batch.
    running: usize,
    /// Waiting requests, including those waiting for a session.
    waiting: usize,
    /// KV blocks held by running requests.
    kv_blocks_used: usize,
    /// KV blocks with reusable content not held by any request.
    kv_blocks_cached: usize,
    /// KV blocks in total.
    kv_blocks: usize,
    /// Window slots held by running requests: memory of the sliding layers for one block each. 0 where
    /// sliding layers have no memory of their own.
    kv_window_slots_used: usize,
    /// Window slots with reusable content not held by any request.
    kv_window_slots_cached: usize,
    /// Window slots in total.
    kv_window_slots: usize,
    /// Stored sessions; null if the store does not answer.
    sessions: Option<usize>,
    /// Forward passes since the start.
    steps: usize,
    /// Draft tokens proposed since the start.
    drafted_tokens: usize,
    /// Draft tokens accepted since the start.
    accepted_tokens: usize,
}

impl Info {
    fn of(app: &App, serving: &Serving, sessions: Option<usize>) -> Self {
        let info = &serving.info;
        let context_length = serving.limits.context_length;
        let engine = serving.engine.limits();
        Self {
            model_id: info.id.clone(),
            model_dtype: info.dtype.clone(),
            max_input_tokens: context_length.saturating_sub(1),
            max_total_tokens: context_length,
            max_concurrent_requests: engine.max_batch + engine.max_queue,
            max_best_of: serving.limits.max_best_of,
            max_stop_sequences: serving.limits.max_stop_strings,
            model_pipeline_tag: "text-generation",
            server: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            model: ModelFacts {
                id: info.id.clone(),
                architecture: info.spec.architecture,
                parameters: info.spec.parameters,
                dtype: info.dtype.clone(),
                device: info.device,
                n_layer: info.spec.layers,
                n_head: info.spec.heads,
                n_kv_head: info.spec.kv_heads,
                head_dim: info.spec.head_width,
                n_embd: info.spec.hidden_width,
                n_inner: info.spec.inner_width,
                n_positions: info.spec.context_length,
                vocab_size: info.spec.vocab_size,
                end_of_text: serving.limits.end_of_text.clone(),
                chat_template: serving.chat.origin().to_owned(),
                fingerprint: info.fingerprint.clone(),
                created: unix_seconds(info.created),
            },
            limits: LimitFacts::of(app, serving),
            sampling_defaults: serving.limits.defaults,
            features: features(serving),
            engine: EngineFacts::of(serving, sessions),
        }
    }
}

/// Returns what this build can do, and whether its sessions outlive the process.
fn features(serving: &Serving) -> Vec<&'static str> {
    let durable = !serving.sessions.config().in_memory();
    let durable = durable.then_some("durable-sessions");
    FEATURES.iter().copied().chain(durable).collect()
}

/// Optional features of this build.
const FEATURES: &[&str] = &[
    "completions",
    "embeddings",
    "chat-completions",
    "generate",
    "streaming",
    "sessions",
    "prefix-cache",
    "logprobs",
    "overflow-slide",
    "structured-output",
    #[cfg(feature = "builtin-model")]
    "builtin-model",
];

impl LimitFacts {
    fn of(app: &App, serving: &Serving) -> Self {
        // Destructured completely, so that a new limit cannot be forgotten.
        let Limits {
            context_length,
            vocab_size: _,
            end_of_text: _,
            defaults: _,
            max_stop_strings,
            max_stop_string_bytes,
            max_top_logprobs,
            max_tokens,
            max_choices,
            max_grammar_bytes,
            max_expression_bytes,
            max_best_of,
            max_temperature,
            max_repetition_penalty,
            max_embedding_inputs,
            max_embedding_tokens,
            max_request_tokens,
            max_answer_logprobs,
            max_answer_text_bytes,
            max_session_tokens,
        } = serving.limits;
        let EngineLimits {
            context_length: _, // The limits have it.
            max_batch,
            max_step_tokens,
            max_queue,
            queue_timeout,
        } = serving.engine.limits();
        let config = app.config();
        let sessions = serving.sessions.config();
        Self {
            max_context_tokens: context_length,
            max_tokens,
            max_choices,
            max_best_of_choices: max_best_of,
            max_stop_strings,
            max_stop_string_bytes,
            max_top_logprobs,
            max_grammar_bytes,
            max_expression_bytes,
            max_temperature,
            max_repetition_penalty,
            max_embedding_inputs,
            max_embedding_tokens,
            max_request_tokens,
            max_answer_logprobs,
            max_answer_text_bytes,
            max_session_tokens,
            max_session_id_characters: SessionId::MAX_LENGTH,
            max_batch_requests: max_batch,
            max_queue_requests: max_queue,
            queue_timeout_seconds: queue_timeout.as_secs_f64(),
            max_step_tokens,
            max_sessions: sessions.in_memory().then_some(sessions.max_in_memory),
            max_sessions_per_key: sessions.per_tenant,
            session_ttl_seconds: sessions.ttl.map(|ttl| ttl.as_secs_f64()),
            max_body_bytes: config.max_body.as_u64(),
            stall_timeout_seconds: config.stall_timeout.as_secs_f64(),
            max_pending_bytes: config.max_pending.as_u64(),
            header_timeout_seconds: config.header_timeout.as_secs_f64(),
            body_timeout_seconds: config.body_timeout.as_secs_f64(),
        }
    }
}

impl EngineFacts {
    fn of(serving: &Serving, sessions: Option<usize>) -> Self {
        let status = serving.engine.status();
        Self {
            alive: status.alive,
            running: status.running,
            waiting: status.waiting + serving.sessions.waiting(),
            kv_blocks_used: status.kv_blocks_used,
            kv_blocks_cached: status.kv_blocks_cached,
            kv_blocks: status.kv_blocks,
            kv_window_slots_used: status.kv_slots_used,
            kv_window_slots_cached: status.kv_slots_cached,
            kv_window_slots: status.kv_slots,
            sessions,
            steps: status.steps,
            drafted_tokens: status.drafted,
            accepted_tokens: status.accepted,
        }
    }
}

/// Server information
#[utoipa::path(
    get,
    path = "/info",
    tag = "server",
    responses(
        (status = 200, description = "Model, limits, features, engine", body = Info),
        NativeLookupErrors,
    ),
)]
pub(super) async fn info(State(app): State<App>) -> Result<Json<Info>, ApiError> {
    let serving = app.serving()?;
    let sessions = app.session_count().read(&serving).await;
    Ok(Json(Info::of(&app, &serving, sessions)))
}
