//! Files that are part of the program: pages, scripts and styles.
//!
//! They are the same for every client and hold no secret, so they are served without a key. Their policy lets
//! a browser load from and call this server only: none may need another host, an inline script or an inline
//! style.

use std::sync::OnceLock;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What a page may load and do.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// A file of the program.
pub(super) struct EmbeddedFile {
    /// Name in the path.
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    /// The bytes are compressed, once, when the file was added. Every browser reads that.
    is_gzip: bool,
    tag: OnceLock<HeaderValue>,
}

impl EmbeddedFile {
    /// Creates a file.
    pub(super) const fn new(
        name: &'static str,
        content_type: &'static str,
        bytes: &'static [u8],
    ) -> Self {
        Self {
            name,
            content_type,
            bytes,
            is_gzip: false,
            tag: OnceLock::new(),
        }
    }

    /// Creates a file that is compressed with gzip.
    pub(super) const fn gzip(
        name: &'static str,
        content_type: &'static str,
        bytes: &'static [u8],
    ) -> Self {
        let mut file = Self::new(name, content_type, bytes);
        file.is_gzip = true;
        file
    }

    /// Finds the file of this name.
    pub(super) fn find<'a>(files: &'a [Self], name: &str) -> Option<&'a Self> {
        files.iter().find(|file| file.name == name)
    }

    /// Returns the entity tag, which changes with the bytes.
    fn tag(&self) -> &HeaderValue {
        self.tag.get_or_init(|| {
            let hash = blake3::hash(self.bytes).to_hex();
            let tag = format!("\"{}\"", hash.get(..16).unwrap_or_default());
            HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
        })
    }

    /// Returns the file, or 304 if the client has it already. A browser asks each time, since the next
    /// version of the server has other files of the same names.
    pub(super) fn response(&self, request: &HeaderMap) -> Response {
        let tag = self.tag();
        let known = request.get_all(header::IF_NONE_MATCH).iter();
        let known = known.filter_map(|known| known.to_str().ok());
        let is_known = known.flat_map(|known| known.split(',')).any(|known| {
            let known = known.trim();
            known == "*" || tag == known.trim_start_matches("W/")
        });
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let kind = [(header::CONTENT_TYPE, self.content_type)];
            (kind, self.bytes).into_response()
        };
        let headers = response.headers_mut();
        if self.is_gzip && !is_known {
            let gzip = HeaderValue::from_static("gzip");
            headers.insert(header::CONTENT_ENCODING, gzip);
        }
        let plain = HeaderValue::from_static;
        headers.insert(header::ETAG, tag.clone());
        headers.insert(header::CACHE_CONTROL, plain("no-cache"));
        headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, plain("nosniff"));
        headers.insert(header::REFERRER_POLICY, plain("no-referrer"));
        response
    }
}
