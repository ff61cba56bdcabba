//! The web page at `GET /`: the files of `web/dist`, embedded in the binary.
//!
//! The page uses the same endpoints as any other client. Its files need no API key: they reveal nothing about
//! the server, and the page asks for a key itself. It must never load anything from other hosts; [`POLICY`]
//! makes the browser enforce that.

use axum::http::HeaderMap;
use axum::response::Response;

use super::embedded::{EmbeddedFile, HTML, SCRIPT, STYLE};
use super::error::{ApiError, NativeError};
use super::path_name::PathName;

/// Content security policy: the page loads its own files only, and no script or style within the HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; \
    img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// Embeds a file of `web/dist`, with its compressed form if it has one.
macro_rules! file {
    ($path:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/dist/", $path))
    };
    ($name:literal, $path:literal, $content_type:expr) => {
        EmbeddedFile::plain($name, $content_type, file!($path))
    };
    ($name:literal, $path:literal, $content_type:expr, gzip) => {
        file!($name, $path, $content_type).or_gzip(include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/web/dist/",
            $path,
            ".gz"
        )))
    };
}

static INDEX: EmbeddedFile = file!("index.html", "index.html", HTML, gzip);

/// The files that the page loads.
static ASSETS: [EmbeddedFile; 6] = [
    file!("page.js", "assets/page.js", SCRIPT, gzip),
    file!("page.css", "assets/page.css", STYLE, gzip),
    file!("theme.js", "assets/theme.js", SCRIPT, gzip),
    file!("icon.svg", "assets/icon.svg", "image/svg+xml", gzip),
    file!("vollkorn.woff2", "assets/vollkorn.woff2", "font/woff2"),
    file!(
        "instrument-sans.woff2",
        "assets/instrument-sans.woff2",
        "font/woff2"
    ),
];

/// Show the page
///
/// The web page: write with the model, look inside it, watch the server. The page loads nothing from other hosts
/// and requires no API key; with `--keys`, it asks for one.
#[utoipa::path(
    get,
    path = "/",
    tag = "server",
    operation_id = "page",
    responses((status = 200, description = "The page", content_type = "text/html", body = String)),
)]
pub(super) async fn index(headers: HeaderMap) -> Response {
    INDEX.response(&headers, POLICY)
}

/// Load a file of the page
#[utoipa::path(
    get,
    path = "/assets/{name}",
    tag = "server",
    operation_id = "page_file",
    params(("name" = String, Path, description = "File name")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/javascript"),
            (String = "text/css"),
            (Vec<u8> = "font/woff2"),
            (String = "image/svg+xml"),
        )),
        (status = 404, description = "The page has no such file", body = NativeError),
        (status = 422, description = "The name in the path is not UTF-8", body = NativeError),
    ),
)]
pub(super) async fn asset(
    PathName(name): PathName,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let file = EmbeddedFile::find(&ASSETS, &name);
    let file = file.ok_or_else(|| ApiError::not_found("the page has no such file"))?;
    Ok(file.response(&headers, POLICY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_has_no_inline_script_or_style() {
        let sent: usize = ASSETS.iter().map(|file| file.sent().len()).sum();
        let sent = sent + INDEX.sent().len();
        assert!(sent < 150_000, "{sent} bytes");
        let index = std::str::from_utf8(INDEX.content()).unwrap();
        assert!(!index.contains("<style") && !index.contains("style="));
        for script in index.split("<script").skip(1) {
            assert!(script.contains("src=\"/assets/"), "{script}");
        }
        for file in &ASSETS {
            let name = file.name.as_bytes();
            let names = |other: &EmbeddedFile| {
                let mut parts = other.content().windows(name.len());
                parts.any(|part| part == name)
            };
            assert!(
                names(&INDEX) || ASSETS.iter().any(names),
                "nothing loads {}",
                file.name
            );
        }
    }
}
