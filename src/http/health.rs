//! `/livez`, `/readyz`, `/health` and `/info`: for orchestrators, load balancers and people.

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

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"status": "ok"}))]
pub(super) struct Health {
    /// `ok`, `loading`, `draining`, `failed`, `worker stopped`, or `worker stalled`.
    status: &'static str,
    /// Why it can't serve requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Whether only a restart helps.
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
        // A server that stops ends its worker itself.
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

/// Is the process alive?
///
/// Also while the model is loaded and while the server drains. Not if the inference worker has
/// stopped, or has work and makes no step for `--watchdog-timeout`: then only a restart helps.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "server",
    responses(
        (status = 200, description = "Alive", body = Health),
        (status = 503, description = "To be restarted", body = Health),
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

/// What this server is, serves and accepts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Info {
    /// The served model's name, where TGI has it.
    model_id: String,
    /// How its weights are held, where TGI has it.
    model_dtype: String,
    /// The longest prompt, where TGI has it.
    max_input_tokens: usize,
    /// Prompt and text together, where TGI has it.
    max_total_tokens: usize,
    /// Requests that run or wait, where TGI has it.
    max_concurrent_requests: usize,
    /// `best_of`, where TGI has it.
    max_best_of: usize,
    /// Stop strings, where TGI has it.
    max_stop_sequences: usize,
    /// What the model is for, where TGI has it: always `text-generation`.
    model_pipeline_tag: &'static str,
    /// The program's name.
    server: &'static str,
    /// Its version.
    version: &'static str,
    /// The model.
    model: ModelFacts,
    /// What requests may ask for.
    limits: LimitFacts,
    /// What a request that leaves sampling fields out gets.
    sampling_defaults: SamplingOverrides,
    /// What this build can do.
    features: Vec<&'static str>,
    /// The engine at this moment.
    engine: EngineFacts,
}

/// The model.
#[derive(Debug, Serialize, ToSchema)]
struct ModelFacts {
    /// Its name.
    id: String,
    /// Always `gpt2`.
    architecture: &'static str,
    /// Number of weights.
    parameters: u64,
    /// How they are held: `f32`, `bf16` or `q8`.
    dtype: String,
    /// What computes the model: `cpu`, Skald's kernels, or `candle`, candle's own operations.
    device: &'static str,
    /// Transformer blocks.
    n_layer: usize,
    /// Attention heads per block.
    n_head: usize,
    /// Width.
    n_embd: usize,
    /// Positions of the context.
    n_positions: usize,
    /// Token ids are below this.
    vocab_size: usize,
    /// The end-of-text tokens.
    end_of_text: Vec<u32>,
    /// Where the chat template comes from; `plain` where the model has none.
    chat_template: String,
    /// Changes whenever the same seed could give another text.
    fingerprint: String,
    /// When it was made available, in seconds since 1970.
    created: u64,
}

/// What requests may ask for.
#[derive(Debug, Serialize, ToSchema)]
struct LimitFacts {
    /// Prompt and text together, in tokens.
    max_context_tokens: usize,
    /// Tokens one request can generate with `overflow: "slide"`.
    max_tokens: usize,
    /// Choices over all prompts of a request.
    max_choices: usize,
    /// Choices generated per prompt to return the best of (`best_of`).
    max_best_of_choices: usize,
    /// Stop strings.
    max_stop_strings: usize,
    /// Bytes in one of them.
    max_stop_string_bytes: usize,
    /// Most likely tokens reported in each place.
    max_top_logprobs: usize,
    /// Bytes in a schema, a regular expression or another grammar.
    max_grammar_bytes: usize,
    /// Bytes in all regular expressions of a schema together, in one expression, or in a
    /// context-free grammar.
    max_expression_bytes: usize,
    /// `temperature`, outside `/v1`, where OpenAI's limit of 2 holds.
    max_temperature: f64,
    /// `repetition_penalty`.
    max_repetition_penalty: f64,
    /// Inputs of a request for embeddings.
    max_embedding_inputs: usize,
    /// Tokens of all of them together.
    max_embedding_tokens: usize,
    /// Tokens of the prompts of one request, and tokens to generate, each over all choices.
    max_request_tokens: usize,
    /// Log-probabilities in one answer, those of the most likely tokens in each place included.
    max_answer_logprobs: usize,
    /// Bytes of text that one answer repeats or makes of token ids.
    max_answer_text_bytes: usize,
    /// Tokens of a session's history.
    max_session_tokens: usize,
    /// Characters in the name of a session.
    max_session_id_characters: usize,
    /// Requests in the batch.
    max_batch_requests: usize,
    /// Requests that may wait for a place in it; more get a 429.
    max_queue_requests: usize,
    /// Seconds a request may wait for a place; one that would wait longer gets a 429.
    queue_timeout_seconds: f64,
    /// Tokens in one step; longer prompts are read in chunks.
    max_step_tokens: usize,
    /// Sessions kept in memory, one of more than 2,048 tokens counting once for every 2,048; beyond that
    /// the least recently used is forgotten. Null where they are on disk or in a database.
    max_sessions: Option<usize>,
    /// Sessions one API key may have; null for no limit.
    max_sessions_per_key: Option<usize>,
    /// A session that is not used for so long is deleted; null for never.
    session_ttl_seconds: Option<f64>,
    /// Bytes in the body of a request.
    max_body_bytes: u64,
    /// Seconds a client may go without reading any of its response before the response is ended.
    stall_timeout_seconds: f64,
    /// Bytes of large requests that may be parsed and tokenized, or wait for it; more get a 429.
    max_pending_bytes: u64,
    /// Seconds a client may take to send the head of a request.
    header_timeout_seconds: f64,
    /// Seconds it may take to send the body.
    body_timeout_seconds: f64,
}

/// The engine at this moment.
#[derive(Debug, Serialize, ToSchema)]
struct EngineFacts {
    /// The worker is there.
    alive: bool,
    /// Requests in the batch.
    running: usize,
    /// Requests that wait, also for their sessions.
    waiting: usize,
    /// KV blocks that running requests hold.
    kv_blocks_used: usize,
    /// KV blocks whose content can be used again.
    kv_blocks_cached: usize,
    /// KV blocks in all.
    kv_blocks: usize,
    /// Stored sessions; null where the store does not answer.
    sessions: Option<usize>,
    /// Forward passes since the start.
    steps: usize,
    /// Tokens guessed from the requests' own texts since the start.
    drafted_tokens: usize,
    /// How many of them were right.
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
                n_embd: info.spec.hidden_width,
                n_positions: info.spec.context_length,
                vocab_size: info.spec.vocab_size,
                end_of_text: serving.limits.end_of_text.clone(),
                chat_template: serving.chat.origin().to_owned(),
                fingerprint: info.fingerprint.clone(),
                created: unix_seconds(info.created),
            },
            limits: LimitFacts::of(app, serving),
            sampling_defaults: serving.limits.defaults,
            features: FEATURES.to_vec(),
            engine: EngineFacts::of(serving, sessions),
        }
    }
}

/// What this build can do.
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
        // Taken apart whole, so that no limit is forgotten here.
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
