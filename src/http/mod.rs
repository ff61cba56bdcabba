//! The front end: HTTP in, HTTP out.
//!
//! It turns the request of any dialect into a [`GenerateRequest`](crate::request::GenerateRequest),
//! hands it to the engine, and turns the tokens that come back into that dialect's answer.
//!
//! | module | purpose |
//! |---|---|
//! | `app` | shared state: settings, and whether a model is served |
//! | `serve` | the listener, and the graceful stop |
//! | `places`, `connection`, `transport` | the limit of connections, one connection, and its bytes |
//! | `access` | allowed hosts and origins |
//! | `keys` | API keys: scopes and limits |
//! | `layers` | request ids, spans in the log |
//! | `admission` | limits of work outside the engine |
//! | `room` | limits of memory for slow clients |
//! | `request_trace`, `trace_context` | the trace of a request, and the caller's span |
//! | `path_name` | the name in a path |
//! | `body`, `fields`, `wire` | reading and checking JSON |
//! | `error` | the only place where an error becomes an answer |
//! | `structured` | constraints on the text, in every dialect |
//! | `generation` | the only path from a request to text |
//! | `prompt_log` | prompts and answers in the log, with `--log-prompts` |
//! | `prompt_report` | requests that only read their prompt |
//! | `timeline` | the events of each generation and their times |
//! | `outcome` | the outcome of each request |
//! | `respond`, `renderer` | from admitted requests to an answer, in the endpoint's dialect |
//! | `sse` | streams of events |
//! | `stall`, `unread` | clients that stop reading, and memory for their answers |
//! | `waiting` | timeouts of the queue and of requests |
//! | `native` | `/generate`, `/generate_stream`, `/` |
//! | `openai` | `/v1/completions`, `/v1/chat/completions`, `/v1/embeddings`, `/v1/models` |
//! | `inspect` | `/v1/inspect`: the values of each stage of a pass |
//! | `session_reset` | the report that a session starts anew |
//! | `sessions`, `tokens` | `/v1/sessions`; `/tokenize`, `/detokenize` |
//! | `health`, `metrics` | probes, `/info`; `/metrics` |
//! | `probes` | endpoints for routers: `/model_info`, `/server_info`, `/get_load`, `/ping` |
//! | `page` | the page for people at `GET /` |
//! | `openapi`, `documented_errors` | the API description |
//! | `docs`, `embedded` | the API description as a page; files embedded in the program |
//!
//! The front end never touches a tensor and never blocks its threads. It spawns no task for a generation
//! that outlives its request, because dropping the request's future is what cancels it.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod access;
mod adapters;
mod admission;
mod app;
mod body;
mod connection;
mod docs;
mod documented_errors;
mod embedded;
mod error;
mod fields;
mod generation;
mod health;
mod inspect;
mod keys;
mod layers;
mod metrics;
mod native;
mod openai;
mod openapi;
mod outcome;
mod page;
mod path_name;
mod places;
mod probes;
mod prompt_log;
mod prompt_report;
mod renderer;
mod request_trace;
mod respond;
mod room;
mod serve;
mod session_reset;
mod sessions;
mod sse;
mod stall;
mod stream_schema;
mod structured;
mod timeline;
mod tokens;
mod trace_context;
mod transport;
mod unread;
mod waiting;
mod wire;

pub use access::Access;
pub use app::{App, HttpConfig};
pub use metrics::Observations;
pub use serve::{Listener, run};

use axum::extract::Request;
use axum::http::Method;
use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::error::{ApiError, shown};

/// Returns all routes with their descriptions.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::Contract::openapi())
        .routes(routes!(native::generate))
        .routes(routes!(native::generate_stream))
        .routes(routes!(native::root, page::index))
        .routes(routes!(openai::completions::completions))
        .routes(routes!(openai::embeddings::embeddings))
        .routes(routes!(inspect::inspect))
        .routes(routes!(openai::chat::completions))
        .routes(routes!(openai::models::list))
        .routes(routes!(adapters::load))
        .routes(routes!(adapters::unload))
        // Described in `openapi::Contract`: names of models can have slashes, which OpenAPI's paths can't express.
        .route("/v1/models/{*id}", axum::routing::get(openai::models::get))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::get, sessions::delete))
        .routes(routes!(sessions::fork))
        .routes(routes!(sessions::rewind))
        .routes(routes!(tokens::tokenize_text))
        .routes(routes!(tokens::detokenize))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::health))
        .routes(routes!(health::info))
        .routes(routes!(probes::ping))
        .routes(routes!(probes::model_info))
        .routes(routes!(probes::get_model_info))
        .routes(routes!(probes::server_info))
        .routes(routes!(probes::get_server_info))
        .routes(routes!(probes::get_load))
        .routes(routes!(metrics::endpoint::metrics))
        .routes(routes!(openapi::document))
        .routes(routes!(docs::docs))
        .routes(routes!(docs::file))
        .routes(routes!(page::asset))
}

/// Returns the whole front end as a service.
pub fn router(app: App) -> Router {
    let (plain, _) = routes().split_for_parts();
    layered(plain, app)
}

/// Wraps routes in the layers of every request.
fn layered(plain: Router<App>, app: App) -> Router {
    let router = plain
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        // From here on, the last layer is the outermost.
        .layer(CatchPanicLayer::custom(ApiError::from_panic))
        .layer(middleware::from_fn_with_state(app.clone(), unread::bound))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            keys::check::check,
        ))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            error::render::render,
        ));
    // Around the layer that renders errors, so that pages can read those too.
    let router = match app.access().cors() {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(middleware::from_fn_with_state(
            app.clone(),
            access::check::check,
        ))
        // A second time, for the errors of the layers in between.
        .layer(middleware::from_fn_with_state(
            app.clone(),
            error::render::render,
        ))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            outcome::observe::observe,
        ))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(layers::span)
                .on_request(())
                .on_response(layers::answered)
                .on_body_chunk(())
                .on_eos(())
                .on_failure(()),
        )
        .layer(middleware::from_fn_with_state(
            app.clone(),
            layers::name_request,
        ))
        .with_state(app)
}

/// Returns the API description of all endpoints.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut contract = routes().into_openapi();
    openapi::describe_errors(&mut contract);
    contract
}

async fn no_such_path(request: Request) -> ApiError {
    // Its target is an address rather than a path.
    if request.method() == Method::CONNECT {
        return ApiError::not_found(
            "CONNECT is not supported: this server is not a proxy; see GET /openapi.json",
        );
    }
    ApiError::not_found(format!(
        "no route for {} {}; see GET /openapi.json",
        request.method(),
        shown(request.uri().path())
    ))
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::method_not_allowed(format!(
        "{} is not allowed on {}; see the Allow header for the allowed methods",
        request.method(),
        shown(request.uri().path())
    ))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{StatusCode, header};
    use axum::routing::{get, post};
    use tower::ServiceExt;

    use super::*;

    /// Returns a front end without a model and with two handlers that panic.
    fn panicking() -> Router {
        let app = App::with(HttpConfig::default(), Access::default(), None);
        let panics = || post(async || -> String { panic!("injected") });
        let plain = Router::new()
            .route("/v1/completions", panics())
            .route("/generate", panics())
            .route("/livez", get(health::livez));
        layered(plain, app)
    }

    async fn ask(router: &Router, request: axum::http::request::Builder) -> (StatusCode, String) {
        let request = request
            .header(header::HOST, "localhost")
            .body(Body::empty());
        let answer = router.clone().oneshot(request.expect("a request")).await;
        let answer = answer.expect("an answer");
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await;
        let body = String::from_utf8(body.expect("a body").to_vec());
        (status, body.expect("UTF-8"))
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_fails_only_its_request() {
        let router = panicking();
        for path in ["/v1/completions", "/generate"] {
            let (status, body) = ask(&router, Request::post(path)).await;
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
            assert!(
                body.contains("see its log") && !body.contains("injected"),
                "{body}"
            );
        }
        let (status, _) = ask(&router, Request::get("/livez")).await;
        assert_eq!(status, StatusCode::OK);
    }
}
