//! `GET /metrics`.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use super::families::Scrape;
use super::format::Format;
use crate::http::app::App;
use crate::http::error::{ApiError, NativeError};

/// Metrics for Prometheus
///
/// Returns the Prometheus text format, or `OpenMetrics` if the `Accept` header prefers it. Available
/// while the model is loading (with `skald_up` 0) and while the server drains. Series whose names begin
/// with `vllm:` serve dashboards and routers made for vLLM.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    params(("Accept" = Option<String>, Header, description = "`application/openmetrics-text` for OpenMetrics; quality values are respected")),
    responses(
        (
            status = 200,
            description = "All metrics",
            content(
                (String = "text/plain", example = json!("# HELP skald_prefix_cache_hit_tokens_total Prompt tokens found in the prefix cache.\n# TYPE skald_prefix_cache_hit_tokens_total counter\nskald_prefix_cache_hit_tokens_total 4096\n")),
                (String = "application/openmetrics-text", example = json!("# HELP skald_prefix_cache_hit_tokens Prompt tokens found in the prefix cache.\n# TYPE skald_prefix_cache_hit_tokens counter\nskald_prefix_cache_hit_tokens_total 4096\n# EOF\n")),
            ),
        ),
        (status = 500, description = "The server failed", body = NativeError),
    ),
)]
pub(in crate::http) async fn metrics(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let serving = app.serving().ok();
    let sessions = match &serving {
        Some(serving) => app.session_count().read(serving).await,
        None => None,
    };
    let scrape = Scrape {
        observations: app.observations(),
        keys: app.access().keys.as_deref(),
        serving: serving.as_deref(),
        sessions,
    };
    let format = Format::accepted(&headers);
    let text = scrape
        .encode(format)
        .map_err(|error| ApiError::internal(format!("metrics could not be encoded: {error}")))?;
    let headers = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::VARY, "accept"),
    ];
    Ok((headers, text).into_response())
}
