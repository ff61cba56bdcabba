//! `/v1/sessions`: what the server remembers of each conversation, and forgetting it.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::app::App;
use super::error::ApiError;
use super::openai::reply::unix_seconds;
use super::openapi::OpenAiLookupErrors;
use crate::engine::SessionInfo;
use crate::request::SessionId;

/// All sessions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionList {
    /// Always `list`.
    object: &'static str,
    /// The last used first.
    data: Vec<SessionSummary>,
}

/// A session in short.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": "bedtime-1", "object": "session", "token_count": 120, "cached_tokens": 112, "created": 1_764_000_000, "last_used": 1_764_000_060, "busy": false}))]
pub(super) struct SessionSummary {
    /// Its name.
    id: String,
    /// Always `session`.
    object: &'static str,
    /// Tokens of its history.
    token_count: usize,
    /// How many of them a continuation would find in the KV cache now.
    cached_tokens: usize,
    /// When its first request arrived, in seconds since 1970.
    created: u64,
    /// When it was last used, in seconds since 1970.
    last_used: u64,
    /// A generation is running on it.
    busy: bool,
}

/// A session with its history.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Session {
    /// In short.
    #[serde(flatten)]
    summary: SessionSummary,
    /// Its history as text.
    text: String,
    /// Its history as token ids.
    tokens: Vec<u32>,
}

/// A session that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeletedSession {
    /// Its name.
    id: String,
    /// Always `session.deleted`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

impl From<&SessionInfo> for SessionSummary {
    fn from(info: &SessionInfo) -> Self {
        Self {
            id: info.id.to_string(),
            object: "session",
            token_count: info.tokens.len(),
            cached_tokens: info.cached_tokens,
            created: unix_seconds(info.created),
            last_used: unix_seconds(info.last_used),
            busy: info.busy,
        }
    }
}

/// List the sessions
#[utoipa::path(
    get,
    path = "/v1/sessions",
    tag = "sessions",
    responses((status = 200, description = "All sessions in memory", body = SessionList), OpenAiLookupErrors),
)]
pub(super) async fn list(State(app): State<App>) -> Result<Json<SessionList>, ApiError> {
    let sessions = app.serving()?.engine.sessions().await?;
    Ok(Json(SessionList {
        object: "list",
        data: sessions.iter().map(SessionSummary::from).collect(),
    }))
}

/// Show a session
#[utoipa::path(
    get,
    path = "/v1/sessions/{id}",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's name", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses((status = 200, description = "The session with its history", body = Session), OpenAiLookupErrors),
)]
pub(super) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Session>, ApiError> {
    let serving = app.serving()?;
    let id = SessionId::parse(&id)?;
    let info = serving
        .engine
        .session(id.clone())
        .await?
        .ok_or_else(|| no_such_session(&id))?;
    Ok(Json(Session {
        summary: SessionSummary::from(&info),
        text: serving.tokenizer.decode(&info.tokens),
        tokens: info.tokens,
    }))
}

/// Forget a session
///
/// A generation that runs on it goes on, but what it makes is not kept.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{id}",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's name", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses((status = 200, description = "The session is forgotten", body = DeletedSession), OpenAiLookupErrors),
)]
pub(super) async fn delete(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<DeletedSession>, ApiError> {
    let serving = app.serving()?;
    let id = SessionId::parse(&id)?;
    if !serving.engine.delete_session(id.clone()).await? {
        return Err(no_such_session(&id));
    }
    Ok(Json(DeletedSession {
        id: id.to_string(),
        object: "session.deleted",
        deleted: true,
    }))
}

fn no_such_session(id: &SessionId) -> ApiError {
    ApiError::not_found(format!("there is no session {:?}", id.as_str()))
}
