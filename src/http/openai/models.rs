//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::reply::unix_seconds;
use super::shared::adapter;
use crate::http::app::App;
use crate::http::documented_errors::OpenAiLookupErrors;
use crate::http::error::ApiError;
use crate::http::path_name::PathName;
use crate::model::adapter::Adapter;
use crate::serving::Serving;

/// The models served: the model, and its adapters by name.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"object": "list", "data": [{"id": "fairy-tales", "object": "model", "created": 1_764_000_000, "owned_by": "skald", "max_model_len": 1024}]}))]
pub(in crate::http) struct ModelList {
    /// Always `list`.
    object: &'static str,
    /// The models.
    data: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Model {
    /// The name to use as `model`.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// When it was made available, in seconds since 1970.
    created: u64,
    /// Always `skald`.
    owned_by: &'static str,
    /// Its context, in tokens.
    max_model_len: usize,
    /// Of an adapter: where it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    /// Of an adapter: the model it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
}

impl Model {
    fn of(serving: &Serving) -> Self {
        Self {
            id: serving.info.id.clone(),
            object: "model",
            created: unix_seconds(serving.info.created),
            owned_by: "skald",
            max_model_len: serving.limits.context_length,
            root: None,
            parent: None,
        }
    }

    fn adapted(serving: &Serving, adapter: &Adapter) -> Self {
        Self {
            id: adapter.name.clone(),
            root: Some(adapter.source.clone()),
            parent: Some(serving.info.id.clone()),
            ..Self::of(serving)
        }
    }
}

/// List the models
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "list_models",
    tag = "openai",
    responses((status = 200, description = "The models this server serves", body = ModelList), OpenAiLookupErrors),
)]
pub(in crate::http) async fn list(State(app): State<App>) -> Result<Json<ModelList>, ApiError> {
    let serving = app.serving()?;
    let adapters = serving.adapters.all();
    let adapted = adapters
        .iter()
        .map(|adapter| Model::adapted(&serving, adapter));
    Ok(Json(ModelList {
        object: "list",
        data: std::iter::once(Model::of(&serving))
            .chain(adapted)
            .collect(),
    }))
}

/// Describe a model
///
/// The id may contain slashes.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    operation_id = "get_model",
    tag = "openai",
    params(("id" = String, Path, description = "The model's name")),
    responses((status = 200, description = "The model", body = Model), OpenAiLookupErrors),
)]
pub(in crate::http) async fn get(
    State(app): State<App>,
    PathName(id): PathName,
) -> Result<Json<Model>, ApiError> {
    let serving = app.serving()?;
    let model = match adapter(Some(&id), &serving)? {
        None => Model::of(&serving),
        Some(adapter) => Model::adapted(&serving, &adapter),
    };
    Ok(Json(model))
}
