//! What routers and platforms ask a server about itself, in the words of those they were made for:
//! SGLang's `/model_info`, `/server_info` (by their older names too) and `/get_load`, and `/ping`.
//!
//! Only facts of this server; fields of SGLang that have no meaning here are left out.

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

/// The served model, as SGLang describes its own.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"model_path": "openai-community/gpt2", "tokenizer_path": "openai-community/gpt2", "is_generation": true, "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))]
pub(super) struct ModelDescription {
    /// What `--model` names: `builtin`, a directory or a hub id.
    model_path: String,
    /// Where its tokenizer comes from: the same.
    tokenizer_path: String,
    /// Always true: the model generates text.
    is_generation: bool,
    /// `model_type` of its configuration.
    model_type: &'static str,
    /// `architectures` of its configuration.
    architectures: Vec<&'static str>,
}

impl ModelDescription {
    fn of(serving: &Serving) -> Self {
        let info = &serving.info;
        Self {
            model_path: info.source.clone(),
            tokenizer_path: info.source.clone(),
            is_generation: true,
            model_type: "gpt2",
            architectures: vec!["GPT2LMHeadModel"],
        }
    }
}

/// The server, as SGLang describes its own.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"version": "0.1.0", "model_path": "openai-community/gpt2", "tokenizer_path": "openai-community/gpt2", "served_model_name": "gpt2", "dtype": "f32", "context_length": 1024, "max_running_requests": 64, "max_queued_requests": 256, "max_prefill_tokens": 512, "max_total_num_tokens": 65536, "page_size": 16, "dp_size": 1, "tp_size": 1}))]
pub(super) struct ServerDescription {
    /// The version of Skald.
    version: &'static str,
    /// What `--model` names.
    model_path: String,
    /// The same.
    tokenizer_path: String,
    /// The name to use as `model`.
    served_model_name: String,
    /// How the weights are held: `f32`, `bf16` or `q8`.
    dtype: String,
    /// The model's context, in tokens.
    context_length: usize,
    /// Requests in the batch, at most.
    max_running_requests: usize,
    /// Requests that may wait for a place in it; more get a 429.
    max_queued_requests: usize,
    /// Tokens in one step, at most.
    max_prefill_tokens: usize,
    /// Tokens whose keys and values the KV cache has room for.
    max_total_num_tokens: usize,
    /// Tokens in a KV block.
    page_size: usize,
    /// Always 1: a server has one engine.
    dp_size: usize,
    /// Always 1: a model is on one machine.
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

/// What an engine has to do at this moment.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"dp_rank": 0, "num_reqs": 3, "num_waiting_reqs": 1, "num_tokens": 208}))]
pub(super) struct EngineLoad {
    /// Always 0: there is one engine.
    dp_rank: usize,
    /// Requests that run or wait.
    num_reqs: usize,
    /// Requests that wait, also for their sessions.
    num_waiting_reqs: usize,
    /// Tokens in the KV blocks that running requests hold, in whole blocks.
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

/// What is the model? As SGLang is asked
#[utoipa::path(
    get,
    path = "/model_info",
    tag = "server",
    responses((status = 200, description = "The model", body = ModelDescription), NativeLookupErrors),
)]
pub(super) async fn model_info(State(app): State<App>) -> Result<Json<ModelDescription>, ApiError> {
    Ok(Json(ModelDescription::of(&*app.serving()?)))
}

/// The older name of `/model_info`
#[utoipa::path(
    get,
    path = "/get_model_info",
    tag = "server",
    responses((status = 200, description = "The model", body = ModelDescription), NativeLookupErrors),
)]
pub(super) async fn get_model_info(state: State<App>) -> Result<Json<ModelDescription>, ApiError> {
    model_info(state).await
}

/// What is the server? As SGLang is asked
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

/// The older name of `/server_info`
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
    responses((status = 200, description = "The load of the one engine", body = Vec<EngineLoad>), NativeLookupErrors),
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
