//! `GET /docs`: the API reference as a page, which reads `/openapi.json` and can call every endpoint.
//!
//! Swagger UI renders it (`assets/docs/README.md` has the reasons). All files that the page loads are embedded in
//! the binary.

use axum::http::HeaderMap;
use axum::response::Response;

use super::embedded::{EmbeddedFile, HTML, SCRIPT, STYLE};
use super::error::{ApiError, NativeError, shown};
use super::path_name::PathName;

/// Content security policy of the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static PAGE: EmbeddedFile = EmbeddedFile::plain(
    "index.html",
    HTML,
    include_bytes!("../../assets/docs/index.html"),
);

/// The files that the page loads.
static FILES: [EmbeddedFile; 4] = [
    EmbeddedFile::plain(
        "docs.js",
        SCRIPT,
        include_bytes!("../../assets/docs/docs.js"),
    ),
    EmbeddedFile::plain(
        "docs.css",
        STYLE,
        include_bytes!("../../assets/docs/docs.css"),
    ),
    EmbeddedFile::gzip(
        "swagger-ui-bundle.js",
        SCRIPT,
        include_bytes!("../../assets/docs/swagger-ui-bundle.js.gz"),
    ),
    EmbeddedFile::gzip(
        "swagger-ui.css",
        STYLE,
        include_bytes!("../../assets/docs/swagger-ui.css.gz"),
    ),
];

/// Show this document as a page
///
/// The page describes every endpoint and can call it. It loads nothing from other hosts and requires no API
/// key; with `--keys`, the endpoints that it calls do.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "server",
    responses((status = 200, description = "The page", content_type = "text/html", body = String)),
)]
pub(super) async fn docs(headers: HeaderMap) -> Response {
    PAGE.response(&headers, POLICY)
}

/// Load a script or style of the page
#[utoipa::path(
    get,
    path = "/docs/{file}",
    tag = "server",
    operation_id = "docs_file",
    params(("file" = String, Path, description = "File name")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/javascript"),
            (String = "text/css"),
        )),
        (status = 422, description = "The name in the path is not UTF-8", body = NativeError),
        (status = 404, description = "The page has no such file", body = NativeError),
    ),
)]
pub(super) async fn file(
    PathName(name): PathName,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let file = EmbeddedFile::find(&FILES, &name);
    let file = file.ok_or_else(|| ApiError::not_found(format!("no file {}", shown(&name))))?;
    Ok(file.response(&headers, POLICY))
}
