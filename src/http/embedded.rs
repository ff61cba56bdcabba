//! Files that are part of the program: pages, scripts, styles and fonts.
//!
//! They are the same for every client and hold no secret, so they are served without a key. A page's
//! Content-Security-Policy lets a browser load from and call this server only: no file may need another host,
//! an inline script or an inline style.

use std::sync::OnceLock;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Content type of pages.
pub(super) const HTML: &str = "text/html; charset=utf-8";
/// Content type of scripts.
pub(super) const SCRIPT: &str = "text/javascript; charset=utf-8";
/// Content type of styles.
pub(super) const STYLE: &str = "text/css; charset=utf-8";

/// A file of the program.
pub(super) struct EmbeddedFile {
    /// Name in the path.
    pub name: &'static str,
    content_type: &'static str,
    /// Its bytes; `None` if only the compressed ones are in the program.
    plain: Option<&'static [u8]>,
    /// Its bytes, compressed with gzip; `None` for what does not shrink.
    gzip: Option<&'static [u8]>,
    tag: OnceLock<HeaderValue>,
}

impl EmbeddedFile {
    /// Creates a file that is served as it is.
    pub(super) const fn plain(
        name: &'static str,
        content_type: &'static str,
        bytes: &'static [u8],
    ) -> Self {
        Self {
            name,
            content_type,
            plain: Some(bytes),
            gzip: None,
            tag: OnceLock::new(),
        }
    }

    /// Creates a file that is served compressed, which every browser reads.
    pub(super) const fn gzip(
        name: &'static str,
        content_type: &'static str,
        compressed: &'static [u8],
    ) -> Self {
        let mut file = Self::plain(name, content_type, &[]);
        file.plain = None;
        file.gzip = Some(compressed);
        file
    }

    /// Adds the compressed bytes, for clients that read them.
    pub(super) const fn or_gzip(mut self, compressed: &'static [u8]) -> Self {
        self.gzip = Some(compressed);
        self
    }

    /// Finds the file of this name.
    pub(super) fn find<'a>(files: &'a [Self], name: &str) -> Option<&'a Self> {
        files.iter().find(|file| file.name == name)
    }

    /// Returns the bytes as browsers receive them.
    #[cfg(test)]
    pub(super) fn sent(&self) -> &'static [u8] {
        self.gzip.or(self.plain).unwrap_or_default()
    }

    /// Returns the uncompressed bytes, if they are in the program.
    #[cfg(test)]
    pub(super) fn content(&self) -> &'static [u8] {
        self.plain.unwrap_or_default()
    }

    /// Returns the entity tag, which changes with the bytes. It is weak: it names both forms.
    fn tag(&self) -> &HeaderValue {
        self.tag.get_or_init(|| {
            let hash = blake3::hash(self.plain.or(self.gzip).unwrap_or_default()).to_hex();
            let tag = format!("W/\"{}\"", hash.get(..32).unwrap_or_default());
            HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("W/\"\""))
        })
    }

    /// Returns the file, or 304 if the client has it already, with this Content-Security-Policy. A browser
    /// asks each time, since the next version of the server has other files of the same names.
    pub(super) fn response(&self, request: &HeaderMap, policy: &'static str) -> Response {
        let tag = self.tag();
        let known = elements(request, &header::IF_NONE_MATCH);
        // Weak comparison, as RFC 9110 wants it for this header.
        let opaque = |tag: &str| tag.trim_start_matches("W/").to_owned();
        let own = tag.to_str().map(opaque).unwrap_or_default();
        let is_known = known
            .into_iter()
            .any(|known| known == "*" || opaque(known) == own);
        let gzip = self
            .gzip
            .filter(|_| self.plain.is_none() || takes_gzip(request));
        let mut response = match (is_known, gzip) {
            (true, _) => StatusCode::NOT_MODIFIED.into_response(),
            (false, Some(gzip)) => ([(header::CONTENT_ENCODING, "gzip")], gzip).into_response(),
            (false, None) => self.plain.unwrap_or_default().into_response(),
        };
        let headers = response.headers_mut();
        let mut set = |name: HeaderName, value: &'static str| {
            headers.insert(name, HeaderValue::from_static(value));
        };
        set(header::CONTENT_TYPE, self.content_type);
        set(header::CACHE_CONTROL, "no-cache");
        set(header::VARY, "accept-encoding");
        set(header::CONTENT_SECURITY_POLICY, policy);
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(header::REFERRER_POLICY, "no-referrer");
        headers.insert(header::ETAG, tag.clone());
        response
    }
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
