//! `/v1/sessions`: what the server remembers of each conversation; branching off from it, taking
//! some of it back, forgetting it.

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

/// Sessions in one page of the list at most, and by default.
const PAGE: usize = 1000;

/// All sessions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionList {
    /// Always `list`.
    object: &'static str,
    /// The last used first.
    data: Vec<SessionSummary>,
    /// Whether more sessions follow.
    has_more: bool,
}

/// Which part of the list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Maximum number of sessions to return.
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    limit: Option<i64>,
    /// Those after this session.
    after: Option<String>,
}

impl Page {
    /// From the parameters of a query; those of other names are passed over.
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

/// A new session that begins as another one.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"id": "bedtime-2", "at": 120}))]
pub(super) struct ForkBody {
    /// Its name; there must be none of that name.
    #[schema(pattern = "^[A-Za-z0-9_.:@-]{1,128}$")]
    id: String,
    /// Number of the other's tokens to begin with. Default: all.
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

/// Summary of a session.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": "bedtime-1", "object": "session", "token_count": 120, "cached_tokens": 112, "kv_resident": true, "created": 1_764_000_000, "last_used": 1_764_000_060, "busy": false}))]
pub(super) struct SessionSummary {
    /// Its name.
    id: String,
    /// Always `session`.
    object: &'static str,
    /// Tokens of its history.
    token_count: usize,
    /// How many of them a continuation would find in the KV cache now.
    cached_tokens: usize,
    /// The KV cache has all full blocks of what it goes on from: nothing needs to be computed again.
    kv_resident: bool,
    /// When its first request ended, in seconds since 1970.
    created: u64,
    /// When its last request ended, in seconds since 1970.
    last_used: u64,
    /// A request is on it.
    busy: bool,
}

/// A session with its history.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Session<'a> {
    /// In short.
    #[serde(flatten)]
    summary: SessionSummary,
    /// Its history as text.
    text: String,
    /// Its history as token ids.
    tokens: &'a [u32],
}

/// A deleted session.
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
            kv_resident: info.kv_resident,
            created: unix_seconds(info.created),
            last_used: unix_seconds(info.last_used),
            busy: info.busy,
        }
    }
}

/// List the sessions
///
/// Those of this API key, the last used first.
#[utoipa::path(
    get,
    path = "/v1/sessions",
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

/// Forget a session
///
/// A generation that runs on it goes on, but what it makes is not kept.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{id}",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's name", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The session is forgotten", body = DeletedSession),
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

/// Branch off a session
///
/// A new session whose history is the first part of another's. What was computed of it is shared.
#[utoipa::path(
    post,
    path = "/v1/sessions/{id}/fork",
    tag = "sessions",
    request_body = ForkBody,
    params(("id" = String, Path, description = "The session to begin as", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
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

/// Take back the end of a session
///
/// Its next request goes on from what is left.
#[utoipa::path(
    post,
    path = "/v1/sessions/{id}/rewind",
    tag = "sessions",
    request_body = RewindBody,
    params(("id" = String, Path, description = "The session's name", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The session as it is now", body = SessionSummary),
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

/// Returns the session of the name in a path.
fn key_of(scope: &Scope, name: &str) -> Result<SessionKey, ApiError> {
    let id = named("id", name)?;
    Ok(SessionKey {
        tenant: scope.tenant,
        id,
    })
}

/// Returns the name of a session, given in `field`.
fn named(field: &str, name: &str) -> Result<SessionId, ApiError> {
    SessionId::parse(name).map_err(|invalid| {
        let message = invalid
            .message
            .replace("`session_id`", &format!("`{field}`"));
        ApiError::invalid(field, message)
    })
}
