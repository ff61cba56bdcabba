//! The page for people at `GET /`: the files of `web/dist`, embedded in the binary.
//!
//! The page talks to the same endpoints as any other client. It needs no API key to be loaded, because it
//! asks for one itself and the files tell nothing of the server. It must never load anything from
//! elsewhere: [`POLICY`] forbids it to the browser.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// What a browser may load and run for the page: its own files, and no script or style within the HTML.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'",
);

/// A file of the page.
struct PageFile {
    path: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    /// The same compressed with gzip; `None` for what does not shrink.
    gzip: Option<&'static [u8]>,
}

macro_rules! file {
    ($path:literal, $content_type:literal) => {
        PageFile {
            gzip: None,
            path: $path,
            content_type: $content_type,
            content: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/dist/", $path)),
        }
    };
    ($path:literal, $content_type:literal, gzip) => {
        PageFile {
            gzip: Some(include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/web/dist/",
                $path,
                ".gz"
            ))),
            ..file!($path, $content_type)
        }
    };
}

/// All files of the page.
static FILES: [PageFile; 7] = [
    file!("index.html", "text/html; charset=utf-8", gzip),
    file!("assets/page.js", "text/javascript; charset=utf-8", gzip),
    file!("assets/page.css", "text/css; charset=utf-8", gzip),
    file!("assets/theme.js", "text/javascript; charset=utf-8", gzip),
    file!("assets/icon.svg", "image/svg+xml", gzip),
    file!("assets/vollkorn.woff2", "font/woff2"),
    file!("assets/instrument-sans.woff2", "font/woff2"),
];

/// The version of the page: a hash of all its files, so that a browser never mixes those of two versions.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = blake3::Hasher::new();
    for file in &FILES {
        hasher.update(file.content);
    }
    // Weak: it names the compressed form too.
    let hash = hasher.finalize().to_hex();
    format!("W/\"{}\"", hash.get(..32).unwrap_or_default())
});

/// Answers with the page.
pub(super) async fn index(headers: HeaderMap) -> Result<Response, ApiError> {
    serve("index.html", &headers)
}

/// Answers with one of the files that the page loads.
pub(super) async fn asset(
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    serve(&format!("assets/{name}"), &headers)
}

fn serve(path: &str, request: &HeaderMap) -> Result<Response, ApiError> {
    let file = FILES.iter().find(|file| file.path == path);
    let file = file.ok_or_else(|| ApiError::not_found("the page has no such file"))?;
    let mut answer = if names_version(request) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match file.gzip.filter(|_| takes_gzip(request)) {
            Some(gzip) => ([(header::CONTENT_ENCODING, "gzip")], gzip).into_response(),
            None => file.content.into_response(),
        }
    };
    let headers = answer.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(header::CONTENT_TYPE, file.content_type);
    set(header::CACHE_CONTROL, "no-cache");
    set(header::VARY, "accept-encoding");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    if let Ok(version) = HeaderValue::from_str(&VERSION) {
        headers.insert(header::ETAG, version);
    }
    Ok(answer)
}

/// Returns whether the client has this version of the page.
fn names_version(request: &HeaderMap) -> bool {
    elements(request, &header::IF_NONE_MATCH).any(|tag| tag == VERSION.as_str())
}

/// Returns whether the client reads gzip.
fn takes_gzip(request: &HeaderMap) -> bool {
    elements(request, &header::ACCEPT_ENCODING).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let refused = |weight: &str| matches!(weight, "q=0" | "q=0.0" | "q=0.00" | "q=0.000");
        parts.next() == Some("gzip") && !parts.any(refused)
    })
}

/// Returns the elements of a header that is a list.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_has_no_inline_script_or_style() {
        let sent: usize = FILES
            .iter()
            .map(|file| file.gzip.unwrap_or(file.content).len())
            .sum();
        assert!(sent < 150_000, "{sent} bytes");
        let index = std::str::from_utf8(FILES[0].content).unwrap();
        assert!(!index.contains("<style") && !index.contains("style="));
        for script in index.split("<script").skip(1) {
            assert!(script.contains("src=\"/assets/"), "{script}");
        }
        for file in &FILES[1..] {
            let named = index.contains(file.path)
                || FILES.iter().any(|other| {
                    let name = file.path.trim_start_matches("assets/").as_bytes();
                    other.content.windows(name.len()).any(|part| part == name)
                });
            assert!(named, "nothing loads {}", file.path);
        }
    }

    #[test]
    fn gzip_is_sent_to_those_who_read_it() {
        let takes = |coding: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(coding));
            takes_gzip(&headers)
        };
        assert!(takes("gzip, deflate, br") && takes("br;q=1.0, gzip;q=0.5"));
        assert!(!takes("br") && !takes("gzip;q=0") && !takes("x-gzip"));
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
