//! The API description: the OpenAPI document generated from the handlers and types themselves.

use std::sync::LazyLock;

use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{self, ContentBuilder, Ref, RefOr, ResponseBuilder, Responses};

use super::error::{NativeError, OpenAiError};
use super::keys::Needs;
use super::native::answer::BestOfSequence;
use super::outcome::PROBES;
use crate::keys::KeyScope;

/// The parts of the document that describe the server as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Skald",
        description = "Text generation with small language models: GPT-2, Gemma, the Llama family.\n\nTwo dialects, one engine: OpenAI's under `/v1`, text-generation-inference's elsewhere. Bodies are parsed as JSON regardless of their content type; unknown fields are ignored; every known field may be null. Every answer has the header `X-Request-Id`: the client's own value if it consists of at most 128 of the characters `A-Z a-z 0-9 - _ . : @ / + =`, otherwise a new one. Only a request head that is not valid HTTP (400) or too large (431) is answered without it and without a body. Answers with status 429 or 503 have `Retry-After`, except those of probes. Any request can be answered with 400 for a missing or repeated `Host`, with 403 for a host or an origin that the server does not allow (probes and `/metrics` accept any host), and with 503 if all connections are in use (except probes). Pages of the origins in `--cors-origin` may send requests: `OPTIONS` answers their preflights. A server started with `--keys` requires an API key with every request except probes, this document and `/docs`, as `Authorization: Bearer KEY` or as `X-Api-Key: KEY`; it accepts any host. Answers to keys with limits report the remaining requests and tokens: `X-RateLimit-Limit-Requests`, `-Remaining-Requests` and `-Reset-Requests`, the same for `-Tokens`, and `RateLimit-Policy` and `RateLimit`. A request's text depends only on its own prompt, parameters and seed.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "native", description = "The dialect of text-generation-inference, with sessions"),
        (name = "openai", description = "The dialect of OpenAI"),
        (name = "inspect", description = "What the model computes on the way to a token"),
        (name = "sessions", description = "Conversations the server remembers"),
        (name = "tokens", description = "Text to tokens and back"),
        (name = "server", description = "The server itself"),
    ),
    paths(super::openai::models::get),
    // Schemas that utoipa does not find by itself.
    components(schemas(NativeError, OpenAiError, BestOfSequence)),
)]
pub(super) struct Contract;

/// Paths that take a `priority`.
const GENERATING: [&str; 7] = [
    "/",
    "/generate",
    "/generate_stream",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/inspect",
];

/// Descriptions of errors on one route, by path, method and status, where they are narrower than those of
/// its kind of path; empty if the route never answers with the status.
const OWN: [(&str, &str, &str, &str); 42] = {
    const NO_MODEL: &str = "The requested model is not served (`model_not_found`)";
    const NO_SESSION: &str = "The session does not exist (`not_found`)";
    const BODY: &str = "The name is not a valid session name, the body is not JSON, or a field has a \
        wrong type or value";
    const SLOW_BODY: &str = "The body did not arrive in time (`request_timeout`)";
    const LARGE_BODY: &str = "The body is too large (`request_too_large`)";
    const WAITING: &str = "Too many requests are waiting for a session; see `Retry-After`";
    const UNKNOWN: &str = "The disk or the session database failed, or it is unknown whether the \
        change was stored (`session_state_unknown`)";
    const LOADING: &str = "The model is being loaded; see `Retry-After`";
    const AWAY: &str = "The model is being loaded, the server is shutting down, the session database is \
        unavailable (`session_store_unavailable`), or the session was busy for too long (`queue_timeout`); see \
        `Retry-After`";
    const TURN: &str = "Another request is using the session (`session_busy`), or another server took \
        over the session during the turn, which was discarded (`session_taken_over`)";
    const STATELESS: &str = "The model is being loaded, the server is shutting down, the request waited too \
        long for its place (`queue_timeout`), or the inference worker is stuck; see `Retry-After`";
    const SESSION: &str = "/v1/sessions/{id}";
    const FORK: &str = "/v1/sessions/{id}/fork";
    const REWIND: &str = "/v1/sessions/{id}/rewind";
    const CHAT: &str = "/v1/chat/completions";
    const EMBEDDINGS: &str = "/v1/embeddings";
    const INSPECT: &str = "/v1/inspect";
    [
        ("/v1/completions", "post", "404", NO_MODEL),
        ("/v1/completions", "post", "409", TURN),
        (CHAT, "post", "404", NO_MODEL),
        (CHAT, "post", "500", "Generation failed"),
        (CHAT, "post", "503", STATELESS),
        (EMBEDDINGS, "post", "404", NO_MODEL),
        (
            EMBEDDINGS,
            "post",
            "500",
            "The embeddings could not be computed",
        ),
        (EMBEDDINGS, "post", "503", STATELESS),
        (
            INSPECT,
            "post",
            "404",
            "The requested model is not served (`model_not_found`), or the session does not exist (`not_found`)",
        ),
        (INSPECT, "post", "500", "The pass failed"),
        ("/v1/models", "get", "400", ""),
        ("/v1/models", "get", "404", ""),
        ("/v1/models", "get", "500", ""),
        ("/v1/models", "get", "503", LOADING),
        (
            "/v1/models/{id}",
            "get",
            "400",
            "The name in the path is not UTF-8",
        ),
        ("/v1/models/{id}", "get", "404", NO_MODEL),
        ("/v1/models/{id}", "get", "500", ""),
        ("/v1/models/{id}", "get", "503", LOADING),
        (
            "/v1/sessions",
            "get",
            "400",
            "`limit` or `after` has a wrong value",
        ),
        (
            "/v1/sessions",
            "get",
            "404",
            "The session `after` does not exist (`not_found`)",
        ),
        (SESSION, "get", "404", NO_SESSION),
        (SESSION, "delete", "403", ""),
        (SESSION, "delete", "404", NO_SESSION),
        (
            SESSION,
            "delete",
            "409",
            "Another server is using the session (`session_busy`), or took it over before \
            it was deleted (`session_taken_over`)",
        ),
        (SESSION, "delete", "500", UNKNOWN),
        (FORK, "post", "400", BODY),
        (FORK, "post", "404", NO_SESSION),
        (FORK, "post", "408", SLOW_BODY),
        (
            FORK,
            "post",
            "409",
            "A session with the new name exists (`session_exists`), or another server \
            took it over during the turn (`session_taken_over`)",
        ),
        (FORK, "post", "413", LARGE_BODY),
        (FORK, "post", "429", WAITING),
        (FORK, "post", "500", UNKNOWN),
        (FORK, "post", "503", AWAY),
        (REWIND, "post", "400", BODY),
        (REWIND, "post", "403", ""),
        (REWIND, "post", "404", NO_SESSION),
        (REWIND, "post", "408", SLOW_BODY),
        (REWIND, "post", "409", TURN),
        (REWIND, "post", "413", LARGE_BODY),
        (REWIND, "post", "429", WAITING),
        (REWIND, "post", "500", UNKNOWN),
        (REWIND, "post", "503", AWAY),
    ]
};

/// Replaces the general descriptions of errors with those of each route, and adds the errors of the layers
/// in front of all routes: a host or origin that is not allowed, a key that is missing or lacks a permission.
pub(super) fn describe_errors(contract: &mut openapi::OpenApi) {
    const FOREIGN: &str = "The host (`host_not_allowed`) or the page's origin (`origin_not_allowed`) is \
        not allowed; see `--allowed-host` and `--cors-origin`";
    const FOREIGN_PAGE: &str =
        "The page's origin (`origin_not_allowed`) is not allowed; see `--cors-origin`";
    const NO_KEY: &str = "With `--keys`: the API key is missing or not valid (`invalid_api_key`); see `WWW-Authenticate`";
    const NATIVE_NO_KEY: &str = "With `--keys`: the API key is missing or not valid (`unauthorized`); see `WWW-Authenticate`";
    const PRIORITY: &str = "With `--keys`: `priority` is below 0 and the API key lacks the permission \
        (`priority_not_allowed`)";
    const SCOPE: &str = "With `--keys`: the API key lacks the scope (`insufficient_scope`)";
    const LIMIT: &str = "With `--keys`: a limit of the API key is reached; see `Retry-After`";
    for (path, item) in &mut contract.paths.paths {
        let error = if path.starts_with("/v1") {
            "OpenAiError"
        } else {
            "NativeError"
        };
        // The only template that the API description writes differently.
        let route = path.replace("/v1/models/{id}", "/v1/models/{*id}");
        let methods = [
            ("get", Method::GET, &mut item.get),
            ("post", Method::POST, &mut item.post),
            ("delete", Method::DELETE, &mut item.delete),
        ];
        for (method, verb, operation) in methods {
            let Some(operation) = operation else { continue };
            let needs = Needs::of(&verb, Some(&route));
            narrow(&mut operation.responses, path, method);
            let mut add = |status, what| add(&mut operation.responses, status, what, error);
            if PROBES.contains(&path.as_str()) {
                add("403", FOREIGN_PAGE);
            } else {
                add("403", FOREIGN);
            }
            if needs == Needs::Nothing {
                operation.security = Some(Vec::new());
                continue;
            }
            add(
                "401",
                if path.starts_with("/v1") {
                    NO_KEY
                } else {
                    NATIVE_NO_KEY
                },
            );
            if let Needs::Scope(scope) = needs {
                add("403", SCOPE);
                if GENERATING.contains(&path.as_str()) {
                    add("403", PRIORITY);
                }
                if scope == KeyScope::Generate {
                    add("429", LIMIT);
                }
            }
        }
    }
    describe_keys(contract);
}

/// Replaces the general descriptions of errors with those of one route.
fn narrow(responses: &mut Responses, path: &str, method: &str) {
    let own = OWN.iter().filter(|own| own.0 == path && own.1 == method);
    for (_, _, status, what) in own {
        if what.is_empty() {
            responses.responses.remove(*status);
        } else if let Some(RefOr::T(response)) = responses.responses.get_mut(*status) {
            (*what).clone_into(&mut response.description);
        }
    }
}

/// Adds the two ways to send a key. Both are optional, because a server without `--keys` needs none.
fn describe_keys(contract: &mut openapi::OpenApi) {
    const BEARER: &str = "bearer";
    const HEADER: &str = "apiKey";
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An API key, if the server checks them (`--keys`)"));
    let header = ApiKeyValue::with_description("X-Api-Key", "The same key in a separate header");
    let components = contract.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer.build()));
    components.add_security_scheme(HEADER, SecurityScheme::ApiKey(ApiKey::Header(header)));
    let by = |scheme| SecurityRequirement::new(scheme, Vec::<String>::new());
    contract.security = Some(vec![SecurityRequirement::default(), by(BEARER), by(HEADER)]);
}

/// Adds an answer, or appends to the description of the one with the same status.
fn add(responses: &mut Responses, status: &str, what: &str, error: &str) {
    match responses.responses.get_mut(status) {
        Some(RefOr::T(other)) => {
            let other = &mut other.description;
            *other = format!("{other}. {what}");
        }
        Some(RefOr::Ref(_)) => (),
        None => {
            let schema = Ref::from_schema_name(error);
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let refused = ResponseBuilder::new()
                .description(what)
                .content("application/json", content);
            responses
                .responses
                .insert(status.to_owned(), refused.build().into());
        }
    }
}

/// This document
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "server",
    responses((status = 200, description = "The API description of this server, in OpenAPI 3.1", content_type = "application/json")),
)]
pub(super) async fn document() -> Response {
    /// Serialized once: the document does not change while the server runs.
    static JSON: LazyLock<String> = LazyLock::new(|| {
        super::openapi().to_json().unwrap_or_else(|error| {
            tracing::error!(%error, "API description not serialized");
            String::from("{}")
        })
    });
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, JSON.as_str()).into_response()
}
