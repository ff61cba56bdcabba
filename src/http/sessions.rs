//! `/v1/sessions`: lists, shows, forks, rewinds and deletes sessions.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::admission::TOKENIZE_INLINE;
use super::app::App;
use super::body::JsonBody;
use super::documented_errors::{OpenAiErrors, OpenAiLookupErrors, SessionErrors};
use super::error::{ApiError, shown};
use super::fields::{at_least, integer};
use super::layers::Scope;
use super::openai::reply::unix_seconds;
use super::path_name::PathName;
use super::wire::optional_word;
use crate::request::SessionId;
use crate::session::{IfBusy, SessionInfo, SessionKey};

/// Maximum and default number of sessions in one page of the list.
const PAGE: usize = 1000;

/// A page of the list of sessions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionList {
    /// Always `list`.
    object: &'static str,
    /// The sessions, most recently used first.
    data: Vec<SessionSummary>,
    /// Whether more sessions follow.
    has_more: bool,
}

/// Query parameters of the list of sessions.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Maximum number of sessions to return.
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    limit: Option<i64>,
    /// Name of the session after which the page begins.
    after: Option<String>,
}

impl Page {
    /// Creates it from the parameters of a query; ignores unknown parameters.
    fn of(given: &[(String, String)]) -> Result<Self, ApiError> {
        let only = |name| {
            let mut values = given.iter().filter(|(given, _)| given == name);
            let value = values.next().map(|(_, value)| value.as_str());
            match values.next() {
                Some(_) => Err(ApiError::invalid(name, format!("`{name}` is given twice"))),
                None => Ok(value),
            }
        };
        let number = |value: &str| {
            let wrong = || {
                format!(
                    "`limit` must be an integer from 1 to {PAGE}, got {}",
                    shown(value)
                )
            };
            value
                .parse()
                .map_err(|_| ApiError::invalid("limit", wrong()))
        };
        Ok(Self {
            limit: only("limit")?.map(number).transpose()?,
            after: only("after")?.map(str::to_owned),
        })
    }
}

/// A new session with the beginning of another session's history.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"id": "bedtime-2", "at": 120}))]
pub(super) struct ForkBody {
    /// Name of the new session; it must not exist.
    #[schema(pattern = "^[A-Za-z0-9_.:@-]{1,128}$")]
    id: String,
    /// Number of tokens to copy from the beginning of the history. Default: all.
    #[schema(minimum = 0)]
    at: Option<i64>,
}

/// Tokens to remove.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"tokens": 20}))]
pub(super) struct RewindBody {
    /// Number of tokens to remove from the end.
    #[schema(minimum = 0)]
    tokens: i64,
    /// Behavior if a request is using the session. Default: `wait`.
    #[serde(default, deserialize_with = "optional_word")]
    if_busy: Option<IfBusy>,
}

/// A session without its history.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": "bedtime-1", "object": "session", "token_count": 120, "cached_tokens": 112, "kv_resident": true, "created": 1_764_000_000, "last_used": 1_764_000_060, "busy": false}))]
pub(super) struct SessionSummary {
    /// Name of the session.
    id: String,
    /// Always `session`.
    object: &'static str,
    /// Tokens of the history.
    token_count: usize,
    /// Tokens of the history that are now in the KV cache.
    cached_tokens: usize,
    /// Whether the KV cache has all full blocks of the history, so that a continuation need not compute
    /// them again.
    kv_resident: bool,
    /// End of the first request, in seconds since 1970.
    created: u64,
    /// End of the last request, in seconds since 1970.
    last_used: u64,
    /// Whether a request is using the session.
    busy: bool,
    /// Origin of a forked session; otherwise null.
    forked_from: Option<Fork>,
}

/// Origin of a forked session.
#[derive(Debug, Serialize, ToSchema)]
struct Fork {
    /// Name of the original session, which may have been changed or deleted since.
    id: String,
    /// Number of tokens taken from the original.
    at: usize,
}

/// A session with its history.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Session<'a> {
    /// The session without its history.
    #[serde(flatten)]
    summary: SessionSummary,
    /// The history as text.
    text: String,
    /// The history as token ids.
    tokens: &'a [u32],
}

/// A deleted session.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeletedSession {
    /// Name of the session.
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
            kv_resident: info.kv_resident,
            created: unix_seconds(info.created),
            last_used: unix_seconds(info.last_used),
            busy: info.busy,
            forked_from: info.forked_from.as_ref().map(|from| Fork {
                id: from.id.to_string(),
                at: from.at,
            }),
        }
    }
}

/// List sessions
///
/// Returns the sessions of this API key, most recently used first.
#[utoipa::path(
    get,
    path = "/v1/sessions",
    operation_id = "list_sessions",
    tag = "sessions",
    params(Page),
    responses((status = 200, description = "The sessions", body = SessionList), OpenAiLookupErrors),
)]
pub(super) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(given): Query<Vec<(String, String)>>,
) -> Result<Json<SessionList>, ApiError> {
    let Page { limit, after } = Page::of(&given)?;
    let limit = integer("limit", limit, 1..=PAGE)?.unwrap_or(PAGE);
    let after = after.map(|name| named("after", &name)).transpose()?;
    let serving = app.serving()?;
    let page = serving.sessions.list(scope.tenant, after.as_ref(), limit);
    let (sessions, has_more) = page.await?;
    Ok(Json(SessionList {
        object: "list",
        data: sessions.iter().map(SessionSummary::from).collect(),
        has_more,
    }))
}

/// Show a session
#[utoipa::path(
    get,
    path = "/v1/sessions/{id}",
    operation_id = "get_session",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's name", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses((status = 200, description = "The session with its history", body = Session), OpenAiLookupErrors),
)]
pub(super) async fn get(
    State(app): State<App>,
    scope: Scope,
    PathName(id): PathName,
) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    let key = key_of(&scope, &id)?;
    let info = serving.sessions.get(&key).await?;
    let (bytes, tokenizer) = (size_of_val(&*info.tokens), Arc::clone(&serving.tokenizer));
    let written = move || {
        Json(Session {
            summary: SessionSummary::from(&info),
            text: tokenizer.decode(&info.tokens),
            tokens: &info.tokens,
        })
        .into_response()
    };
    scope.admission.run(bytes, TOKENIZE_INLINE, written).await
}

/// Delete a session
///
/// A running generation on the session continues, but its text is not stored.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{id}",
    operation_id = "delete_session",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's name", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The session was deleted", body = DeletedSession),
        OpenAiLookupErrors,
        SessionErrors,
    ),
)]
pub(super) async fn delete(
    State(app): State<App>,
    scope: Scope,
    PathName(id): PathName,
) -> Result<Json<DeletedSession>, ApiError> {
    let serving = app.serving()?;
    let key = key_of(&scope, &id)?;
    serving.sessions.delete(&key).await?;
    Ok(Json(DeletedSession {
        id: key.id.to_string(),
        object: "session.deleted",
        deleted: true,
    }))
}

/// Fork a session
///
/// Creates a session whose history is the beginning of another's. The two share its KV blocks.
#[utoipa::path(
    post,
    path = "/v1/sessions/{id}/fork",
    operation_id = "fork_session",
    tag = "sessions",
    request_body = ForkBody,
    params(("id" = String, Path, description = "Name of the session to fork", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 201, description = "The new session", body = SessionSummary),
        OpenAiErrors,
        SessionErrors,
    ),
)]
pub(super) async fn fork(
    State(app): State<App>,
    scope: Scope,
    PathName(id): PathName,
    JsonBody(body): JsonBody<ForkBody>,
) -> Result<(StatusCode, Json<SessionSummary>), ApiError> {
    let serving = app.serving()?;
    let from = key_of(&scope, &id)?;
    let to = named("id", &body.id)?;
    let at = at_least("at", body.at, 0)?;
    let info = serving.sessions.fork(&from, to, at).await?;
    Ok((StatusCode::CREATED, Json(SessionSummary::from(&info))))
}

/// Rewind a session
///
/// Removes tokens from the end of the history. The next request continues from the remaining tokens.
#[utoipa::path(
    post,
    path = "/v1/sessions/{id}/rewind",
    operation_id = "rewind_session",
    tag = "sessions",
    request_body = RewindBody,
    params(("id" = String, Path, description = "The session's name", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The session after the rewind", body = SessionSummary),
        OpenAiErrors,
        SessionErrors,
    ),
)]
pub(super) async fn rewind(
    State(app): State<App>,
    scope: Scope,
    PathName(id): PathName,
    JsonBody(body): JsonBody<RewindBody>,
) -> Result<Json<SessionSummary>, ApiError> {
    let serving = app.serving()?;
    let key = key_of(&scope, &id)?;
    let tokens = at_least("tokens", Some(body.tokens), 0)?.unwrap_or(0);
    let if_busy = body.if_busy.unwrap_or_default();
    let info = serving.sessions.rewind(&key, tokens, if_busy).await?;
    Ok(Json(SessionSummary::from(&info)))
}

/// Returns the key of the session whose name is in the path.
fn key_of(scope: &Scope, name: &str) -> Result<SessionKey, ApiError> {
    let id = named("id", name)?;
    Ok(SessionKey {
        tenant: scope.tenant,
        id,
    })
}

/// Returns the session name given in `field`.
fn named(field: &str, name: &str) -> Result<SessionId, ApiError> {
    SessionId::parse(name).map_err(|invalid| {
        let message = invalid
            .message
            .replace("`session_id`", &format!("`{field}`"));
        ApiError::invalid(field, message)
    })
}
