//! Endpoints by which routers and platforms query a server: SGLang's `/model_info`, `/server_info` (also
//! by their older names) and `/get_load`, and SageMaker's `/ping`.
//!
//! SGLang's fields without a meaning here are left out.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::app::App;
use super::documented_errors::NativeLookupErrors;
use super::error::ApiError;
use super::health;
use crate::engine::blocks::BLOCK_SIZE;
use crate::serving::Serving;

/// The served model, in SGLang's format.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"model_path": "openai-community/gpt2", "tokenizer_path": "openai-community/gpt2", "is_generation": true, "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))]
pub(super) struct ModelDescription {
    /// Value of `--model`: `builtin`, a directory, a GGUF file or a hub id.
    model_path: String,
    /// Source of the tokenizer, always the same as `model_path`.
    tokenizer_path: String,
    /// Whether the model generates text, always true.
    is_generation: bool,
    /// Name of the architecture, as in `/info`.
    model_type: &'static str,
    /// The class of the model in transformers.
    architectures: Vec<&'static str>,
}

impl ModelDescription {
    fn of(serving: &Serving) -> Self {
        let info = &serving.info;
        Self {
            model_path: info.source.clone(),
            tokenizer_path: info.source.clone(),
            is_generation: true,
            model_type: info.spec.architecture,
            architectures: vec![info.spec.class_name()],
        }
    }
}

/// The server, in SGLang's format.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"version": "0.1.0", "model_path": "openai-community/gpt2", "tokenizer_path": "openai-community/gpt2", "served_model_name": "gpt2", "dtype": "f32", "context_length": 1024, "max_running_requests": 64, "max_queued_requests": 256, "max_prefill_tokens": 512, "max_total_num_tokens": 65536, "page_size": 16, "dp_size": 1, "tp_size": 1}))]
pub(super) struct ServerDescription {
    /// Version of Skald.
    version: &'static str,
    /// Value of `--model`.
    model_path: String,
    /// Source of the tokenizer, always the same as `model_path`.
    tokenizer_path: String,
    /// Name of the model in requests.
    served_model_name: String,
    /// Precision of the weights: `f32`, `bf16` or `q8`.
    dtype: String,
    /// Context length in tokens.
    context_length: usize,
    /// Maximum requests in the batch.
    max_running_requests: usize,
    /// Maximum requests waiting for the batch; more are answered with 429.
    max_queued_requests: usize,
    /// Maximum tokens in one step.
    max_prefill_tokens: usize,
    /// Capacity of the KV cache in tokens.
    max_total_num_tokens: usize,
    /// Tokens per KV block.
    page_size: usize,
    /// Number of engines, always 1.
    dp_size: usize,
    /// Number of machines that share the model, always 1.
    tp_size: usize,
}

impl ServerDescription {
    fn of(serving: &Serving) -> Self {
        let info = &serving.info;
        let limits = serving.engine.limits();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            model_path: info.source.clone(),
            tokenizer_path: info.source.clone(),
            served_model_name: info.id.clone(),
            dtype: info.dtype.clone(),
            context_length: info.spec.context_length,
            max_running_requests: limits.max_batch,
            max_queued_requests: limits.max_queue,
            max_prefill_tokens: limits.max_step_tokens,
            max_total_num_tokens: serving.engine.status().kv_blocks * BLOCK_SIZE,
            page_size: BLOCK_SIZE,
            dp_size: 1,
            tp_size: 1,
        }
    }
}

/// Current load of an engine.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"dp_rank": 0, "num_reqs": 3, "num_waiting_reqs": 1, "num_tokens": 208}))]
pub(super) struct EngineLoad {
    /// Index of the engine, always 0.
    dp_rank: usize,
    /// Running and waiting requests.
    num_reqs: usize,
    /// Waiting requests, including those waiting for a session.
    num_waiting_reqs: usize,
    /// Capacity in tokens of the KV blocks held by running requests.
    num_tokens: usize,
}

impl EngineLoad {
    fn of(serving: &Serving) -> Self {
        let status = serving.engine.status();
        let waiting = status.waiting + serving.sessions.waiting();
        Self {
            dp_rank: 0,
            num_reqs: status.running + waiting,
            num_waiting_reqs: waiting,
            num_tokens: status.kv_blocks_used * BLOCK_SIZE,
        }
    }
}

/// Model information (SGLang)
#[utoipa::path(
    get,
    path = "/model_info",
    tag = "server",
    responses((status = 200, description = "The model", body = ModelDescription), NativeLookupErrors),
)]
pub(super) async fn model_info(State(app): State<App>) -> Result<Json<ModelDescription>, ApiError> {
    Ok(Json(ModelDescription::of(&*app.serving()?)))
}

/// Model information (SGLang's older path)
#[utoipa::path(
    get,
    path = "/get_model_info",
    tag = "server",
    responses((status = 200, description = "The model", body = ModelDescription), NativeLookupErrors),
)]
pub(super) async fn get_model_info(state: State<App>) -> Result<Json<ModelDescription>, ApiError> {
    model_info(state).await
}

/// Server information (SGLang)
#[utoipa::path(
    get,
    path = "/server_info",
    tag = "server",
    responses((status = 200, description = "The server", body = ServerDescription), NativeLookupErrors),
)]
pub(super) async fn server_info(
    State(app): State<App>,
) -> Result<Json<ServerDescription>, ApiError> {
    Ok(Json(ServerDescription::of(&*app.serving()?)))
}

/// Server information (SGLang's older path)
#[utoipa::path(
    get,
    path = "/get_server_info",
    tag = "server",
    responses((status = 200, description = "The server", body = ServerDescription), NativeLookupErrors),
)]
pub(super) async fn get_server_info(
    state: State<App>,
) -> Result<Json<ServerDescription>, ApiError> {
    server_info(state).await
}

/// Current load (SGLang)
#[utoipa::path(
    get,
    path = "/get_load",
    tag = "server",
    responses((status = 200, description = "The load of the engine", body = Vec<EngineLoad>), NativeLookupErrors),
)]
pub(super) async fn get_load(State(app): State<App>) -> Result<Json<Vec<EngineLoad>>, ApiError> {
    Ok(Json(vec![EngineLoad::of(&*app.serving()?)]))
}

/// Readiness (SageMaker's path)
#[utoipa::path(
    get,
    path = "/ping",
    tag = "server",
    responses(
        (status = 200, description = "Ready", body = health::Health),
        (status = 503, description = "Loading, draining, failed, or without a working worker", body = health::Health),
    ),
)]
pub(super) async fn ping(state: State<App>) -> Response {
    health::readyz(state).await
}
