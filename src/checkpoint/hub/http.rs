//! The part of the hub's HTTP protocol that fetching a model needs: the files of a revision, a
//! file's metadata, and its content from a byte offset.
//!
//! Redirects are followed here and not by the HTTP client, because the metadata of a large file is
//! in the redirect to the content network, to which the token must never be sent. Responses are
//! bounded.

use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::error::FetchError;
use super::settings::{HubSettings, HubToken};

/// Maximum redirects per request.
const MAX_REDIRECTS: usize = 10;
/// Maximum size of a revision's description in bytes: some hundred thousand files.
const MAX_DESCRIPTION: usize = 32 << 20;
const REPO_COMMIT_LENGTH: usize = 40;

const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// The files of a revision.
#[derive(Debug)]
pub(super) struct Revision {
    /// The commit's hash, 40 hexadecimal digits.
    pub(super) commit: String,
    /// Names of its files.
    pub(super) files: Vec<String>,
}

/// The hub's metadata of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Name of the content; valid as a file name.
    pub(super) etag: String,
    /// Length in bytes, if known.
    pub(super) size: Option<u64>,
}

/// A hub.
#[derive(Debug)]
pub(super) struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<HeaderValue>,
}

impl Hub {
    pub(super) fn new(settings: &HubSettings) -> Result<Self, FetchError> {
        let endpoint = Url::parse(settings.endpoint.trim_end_matches('/'));
        let endpoint = endpoint.map_err(|error| FetchError::Endpoint(error.to_string()))?;
        if !is_http(&endpoint) {
            return Err(FetchError::Endpoint("not an http:// address".to_owned()));
        }
        let token = settings.token.as_ref().map(bearer).transpose()?;
        let client = crate::tls::http_client()
            .redirect(Policy::none())
            .user_agent(concat!("skald/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.answer_within)
            .read_timeout(settings.stall_timeout)
            .build()?;
        Ok(Self {
            client,
            endpoint,
            token,
        })
    }

    /// Requests the files of a branch, tag or commit.
    pub(super) async fn revision(&self, id: &str, name: &str) -> Result<Revision, FetchError> {
        #[derive(Deserialize)]
        struct Description {
            sha: Option<String>,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let api = ["api", "models"].into_iter().chain(id.split('/'));
        let url = self.url(api.chain(["revision", name]));
        let response = self.get(url, 0).await?;
        let body = bounded(response, MAX_DESCRIPTION).await?;
        let description: Description = serde_json::from_slice(&body)
            .map_err(|error| FetchError::malformed(error.to_string()))?;
        let commit = description.sha.unwrap_or_default();
        // It becomes the name of a directory.
        if commit.len() != REPO_COMMIT_LENGTH || !commit.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(FetchError::malformed("the commit is missing or malformed"));
        }
        let files = description.siblings.into_iter().map(|file| file.rfilename);
        Ok(Revision {
            commit,
            files: files.collect(),
        })
    }

    /// Requests a file's metadata.
    pub(super) async fn metadata(
        &self,
        id: &str,
        commit: &str,
        file: &str,
    ) -> Result<Metadata, FetchError> {
        let mut url = self.file_url(id, commit, file);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(Method::HEAD, &url, 0).await?;
            let headers = response.headers();
            let linked = text(headers, &LINKED_ETAG);
            let next = redirect(&response)?;
            match next {
                // A renamed repository, or a small file at another path of the hub.
                Some(next) if linked.is_none() && self.is_own(&next) => url = next,
                next => return Metadata::read(headers, next.is_some()),
            }
        }
        Err(FetchError::Redirects(MAX_REDIRECTS))
    }

    /// Requests a file's content from a byte offset; the response may still begin at 0.
    pub(super) async fn content(
        &self,
        id: &str,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Response, FetchError> {
        self.get(self.file_url(id, commit, file), from).await
    }

    async fn get(&self, mut url: Url, from: u64) -> Result<Response, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(Method::GET, &url, from).await?;
            match redirect(&response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(FetchError::Redirects(MAX_REDIRECTS))
    }

    /// Sends one request. The token goes to the hub's own host only.
    async fn request(&self, method: Method, url: &Url, from: u64) -> Result<Response, FetchError> {
        let request = self.client.request(method, url.clone());
        // Lengths and ranges must be those of the file, not of its compressed form.
        let mut request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token.as_ref().filter(|_| self.is_own(url)) {
            request = request.header(header::AUTHORIZATION, token.clone());
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let response = request.send().await?;
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(response);
        }
        let headers = response.headers();
        Err(FetchError::Refused {
            status,
            code: text(headers, &ERROR_CODE),
            message: text(headers, &ERROR_MESSAGE),
            retry_after: number(headers, &header::RETRY_AFTER).map(Duration::from_secs),
        })
    }

    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    fn file_url(&self, id: &str, commit: &str, file: &str) -> Url {
        let repository = id.split('/').chain(["resolve", commit]);
        self.url(repository.chain(file.split('/')))
    }

    /// Returns the endpoint with further path segments, encoded.
    fn url<'a>(&self, path: impl Iterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // Always succeeds, since the scheme was checked.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }
}

impl Metadata {
    /// Reads metadata from response headers. `redirected`: the length in `headers` is that of the
    /// redirect itself.
    fn read(headers: &HeaderMap, redirected: bool) -> Result<Self, FetchError> {
        let etag = text(headers, &LINKED_ETAG).or_else(|| text(headers, &header::ETAG));
        let etag = etag.as_deref().map(plain).unwrap_or_default();
        // It becomes the name of a file.
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.chars().all(fits) {
            return Err(FetchError::malformed("the file has no usable ETag"));
        }
        let encoded = text(headers, &header::CONTENT_ENCODING);
        let is_whole = !redirected && encoded.is_none_or(|encoding| encoding == "identity");
        let length = number(headers, &header::CONTENT_LENGTH).filter(|_| is_whole);
        Ok(Self {
            etag: etag.to_owned(),
            size: number(headers, &LINKED_SIZE).or(length),
        })
    }
}

/// Returns the authorization header of a token, marked as sensitive.
fn bearer(token: &HubToken) -> Result<HeaderValue, FetchError> {
    let value = HeaderValue::try_from(format!("Bearer {}", token.as_str()));
    let mut value = value.map_err(|_| FetchError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns an `ETag` without its quotes and weak prefix.
fn plain(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

fn is_http(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

/// Returns the target of a redirect.
fn redirect(response: &Response) -> Result<Option<Url>, FetchError> {
    if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
        return Ok(None);
    }
    let location = text(response.headers(), &header::LOCATION);
    let next = location.and_then(|location| response.url().join(&location).ok());
    let next = next.filter(is_http);
    let lost = || FetchError::malformed("the redirect is not to an HTTP address");
    next.ok_or_else(lost).map(Some)
}

/// Reads a body of at most `most` bytes.
async fn bounded(mut response: Response, most: usize) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            let reason = format!("longer than {most} bytes");
            return Err(FetchError::malformed(reason));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &str)], redirected: bool) -> Option<(String, Option<u64>)> {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse().unwrap())
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        let metadata = Metadata::read(&headers, redirected).ok()?;
        Some((metadata.etag, metadata.size))
    }

    #[test]
    fn a_large_files_own_name_and_length_win_over_those_of_the_answer() {
        let whole = [("etag", "\"abc\""), ("content-length", "12")];
        assert_eq!(read(&whole, false), Some(("abc".to_owned(), Some(12))));
        assert_eq!(read(&whole, true), Some(("abc".to_owned(), None)));
        let linked = [("x-linked-etag", "W/\"def\""), ("x-linked-size", "99")];
        let linked = [&whole[..], &linked].concat();
        assert_eq!(read(&linked, true), Some(("def".to_owned(), Some(99))));
        let compressed = [&whole[..], &[("content-encoding", "gzip")]].concat();
        assert_eq!(read(&compressed, false), Some(("abc".to_owned(), None)));
    }

    #[test]
    fn an_etag_that_could_leave_the_cache_is_refused() {
        for etag in ["", "\"\"", "../x", "a/b", "..", "a b"] {
            assert_eq!(read(&[("etag", etag)], false), None, "{etag}");
        }
    }
}
