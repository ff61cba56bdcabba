//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, as vLLM has them.
//!
//! They open paths and ids that a client names, so only keys with the scope `admin` may call them, and a server
//! without keys refuses them.

use axum::extract::State;
use serde::Deserialize;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::app::App;
use super::body::JsonBody;
use super::documented_errors::OpenAiErrors;
use super::error::ApiError;
use crate::serving::adapters::LoadAdapterError;

/// The adapter to load.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"lora_name": "pirate", "lora_path": "/models/pirate"}))]
pub(super) struct LoadAdapter {
    /// Its name for clients: 1 to 128 bytes, without spaces, `=` or control characters.
    lora_name: String,
    /// A directory on the server, or a hub id: `org/name`, `org/name@revision`.
    lora_path: String,
}

/// The adapter to unload.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"lora_name": "pirate"}))]
pub(super) struct UnloadAdapter {
    /// Its name for clients.
    lora_name: String,
}

/// Load a LoRA adapter
///
/// Loads an adapter while the server runs. Requires a key with the scope `admin`.
#[utoipa::path(
    post,
    path = "/v1/load_lora_adapter",
    tag = "adapters",
    request_body = LoadAdapter,
    responses((status = 200, description = "The adapter is served", body = String), OpenAiErrors),
)]
pub(super) async fn load(
    State(app): State<App>,
    JsonBody(body): JsonBody<LoadAdapter>,
) -> Result<String, ApiError> {
    check_keys(&app)?;
    let serving = app.serving()?;
    let LoadAdapter {
        lora_name,
        lora_path,
    } = body;
    let name = lora_name.clone();
    let loaded = spawn_blocking(move || serving.adapters.load(&name, &lora_path)).await;
    let loaded = loaded.map_err(|_| ApiError::internal("loading the adapter failed"))?;
    let adapter = loaded.map_err(|error| refused(&error))?;
    tracing::info!(
        adapter = adapter.name,
        source = adapter.source,
        bytes = adapter.bytes(),
        "adapter loaded"
    );
    Ok(format!(
        "Success: LoRA adapter '{lora_name}' added successfully."
    ))
}

/// Unload a LoRA adapter
///
/// New requests for it are refused; those that run with it continue. Requires a key with the scope `admin`.
#[utoipa::path(
    post,
    path = "/v1/unload_lora_adapter",
    tag = "adapters",
    request_body = UnloadAdapter,
    responses((status = 200, description = "The adapter is no longer served", body = String), OpenAiErrors),
)]
pub(super) async fn unload(
    State(app): State<App>,
    JsonBody(body): JsonBody<UnloadAdapter>,
) -> Result<String, ApiError> {
    check_keys(&app)?;
    let serving = app.serving()?;
    let name = body.lora_name;
    match serving.adapters.unload(&name) {
        Some(_) => {
            tracing::info!(adapter = name, "adapter unloaded");
            Ok(format!(
                "Success: LoRA adapter '{name}' removed successfully."
            ))
        }
        None if serving.info.is_called(&name) => Err(ApiError::invalid(
            "lora_name",
            format!("`lora_name`: `{name}` is the model itself, not an adapter"),
        )),
        None => Err(ApiError::model_not_found(
            "lora_name",
            &name,
            &serving.served(),
        )),
    }
}

fn check_keys(app: &App) -> Result<(), ApiError> {
    match app.access().keys {
        Some(_) => Ok(()),
        None => Err(ApiError::needs_keys("changing adapters")),
    }
}

fn refused(error: &LoadAdapterError) -> ApiError {
    let field = match error {
        LoadAdapterError::Name { .. }
        | LoadAdapterError::Reserved { .. }
        | LoadAdapterError::Taken { .. } => "lora_name",
        LoadAdapterError::Files(_) => "lora_path",
    };
    ApiError::invalid(field, format!("`{field}`: {error}"))
}
