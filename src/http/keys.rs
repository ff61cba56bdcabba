//! Checks API keys, if the server has any: the key of a request, its scopes, and its limits.
//!
//! [`check`](check::check) is a layer inside that of errors. It passes the request's [`Meter`], which counts
//! tokens, on as an extension. The body of the answer holds the request's place among the key's concurrent
//! requests, so the place is free once the answer has ended or its client has disconnected.
//!
//! Errors, log lines and spans must never contain a key, only its name.

pub(super) mod check;
pub(super) mod limit_headers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, header};

use super::error::ApiError;
use crate::keys::{Account, KeyScope};
use crate::request::{GenerateRequest, Tenant};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Permission that a route requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// No key: orchestrators use the route and it reveals nothing, or its answer is the same in every server of
    /// this version, as the API description is.
    Nothing,
    /// Any key.
    Key,
    /// A key with this scope.
    Scope(KeyScope),
}

/// Permission that each route requires, by its template.
const ROUTES: [(&str, Needs); 32] = {
    use KeyScope::{Admin, Generate, Metrics};
    use Needs::{Nothing, Scope};
    [
        ("/livez", Nothing),
        ("/readyz", Nothing),
        ("/health", Nothing),
        ("/ping", Nothing),
        ("/assets/{name}", Nothing),
        ("/openapi.json", Nothing),
        ("/docs", Nothing),
        ("/docs/{file}", Nothing),
        ("/metrics", Scope(Metrics)),
        ("/", Scope(Generate)),
        ("/generate", Scope(Generate)),
        ("/generate_stream", Scope(Generate)),
        ("/v1/completions", Scope(Generate)),
        ("/v1/chat/completions", Scope(Generate)),
        ("/v1/embeddings", Scope(Generate)),
        ("/v1/inspect", Scope(Generate)),
        ("/v1/load_lora_adapter", Scope(Admin)),
        ("/v1/unload_lora_adapter", Scope(Admin)),
        ("/v1/models", Scope(Generate)),
        ("/v1/models/{*id}", Scope(Generate)),
        ("/v1/sessions", Scope(Generate)),
        ("/v1/sessions/{id}", Scope(Generate)),
        ("/v1/sessions/{id}/fork", Scope(Generate)),
        ("/v1/sessions/{id}/rewind", Scope(Generate)),
        ("/tokenize", Scope(Generate)),
        ("/detokenize", Scope(Generate)),
        ("/info", Scope(Generate)),
        ("/model_info", Scope(Generate)),
        ("/get_model_info", Scope(Generate)),
        ("/server_info", Scope(Generate)),
        ("/get_server_info", Scope(Generate)),
        ("/get_load", Scope(Generate)),
    ]
};

impl Needs {
    /// Returns the permission that the route of this template requires. A path without a route requires
    /// any key, so that only clients with a key learn which paths exist. A route missing in the table
    /// requires the administrator's scope.
    pub(super) fn of(method: &Method, route: Option<&str>) -> Self {
        let Some(route) = route else {
            return Self::Key;
        };
        // The page, which asks for a key itself.
        if route == "/" && matches!(*method, Method::GET | Method::HEAD) {
            return Self::Nothing;
        }
        let known = ROUTES.iter().find(|(path, _)| *path == route);
        known.map_or(Self::Scope(KeyScope::Admin), |(_, needs)| *needs)
    }
}

/// Returns the key of a request, from `Authorization: Bearer` or `X-Api-Key`.
///
/// # Errors
/// If the request has two different keys.
pub(super) fn shown(headers: &HeaderMap) -> Result<Option<&[u8]>, ApiError> {
    let bearer = headers.get_all(header::AUTHORIZATION).iter();
    let bearer = bearer.filter_map(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    let plain = headers.get_all(X_API_KEY).iter().map(HeaderValue::as_bytes);
    let mut keys = bearer.chain(plain).map(<[u8]>::trim_ascii);
    let first = keys.find(|key| !key.is_empty());
    if keys.any(|key| !key.is_empty() && Some(key) != first) {
        return Err(ApiError::broken_head(
            "the request has two different API keys; send one, as `Authorization: Bearer KEY` or as \
             `X-Api-Key: KEY`",
        ));
    }
    Ok(first)
}

/// Returns the tenant of a request: that of its key if the server checks keys, otherwise one derived from
/// the unchecked key.
///
/// # Errors
/// If the request has two different keys.
pub(super) fn tenant(headers: &HeaderMap, meter: &Meter) -> Result<Tenant, ApiError> {
    match &meter.0 {
        Some(account) => Ok(account.tenant()),
        None => Ok(shown(headers)?.map_or(Tenant::ANONYMOUS, Tenant::of_key)),
    }
}

/// Counts the tokens of a request for its key: an extension of each request with a key.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Option<Arc<Account>>);

impl Meter {
    /// Returns the meter of a request.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Returns the tenant whose share of the server the request uses. If the server checks no keys, all
    /// requests have the same one, because clients could get further shares by inventing tenants.
    pub(super) fn share(&self) -> Tenant {
        let account = self.0.as_ref();
        account.map_or(Tenant::ANONYMOUS, |account| account.tenant())
    }

    /// Returns whether the request may set a `priority` below 0. If the server checks no keys, every
    /// request may.
    pub(super) fn may_prioritize(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|account| account.key.may_prioritize)
    }

    /// Takes the tokens of the prompts from the key's limit. Each prompt is shared by `per_prompt`
    /// requests and is counted once.
    ///
    /// # Errors
    /// If the limit has too few tokens left.
    pub(super) fn take_prompts(
        &self,
        requests: &[GenerateRequest],
        per_prompt: usize,
    ) -> Result<Charge, ApiError> {
        let prompts = requests.iter().step_by(per_prompt.max(1));
        let tokens = prompts.map(|request| request.history.len() + request.prompt.len());
        let tokens = tokens.sum::<usize>() as u64;
        if let Some(account) = &self.0 {
            account.usage.take_prompt(tokens, Instant::now())?;
        }
        Ok(Charge {
            account: self.0.clone(),
            tokens,
            kept: AtomicBool::new(false),
        })
    }

    /// Counts a generated token.
    pub(super) fn generated(&self) {
        if let Some(account) = &self.0 {
            account.usage.take_generated(1, Instant::now());
        }
    }
}

/// Prompt tokens taken from a limit; returned on drop, unless a request has started.
#[derive(Debug)]
pub(super) struct Charge {
    account: Option<Arc<Account>>,
    tokens: u64,
    kept: AtomicBool,
}

impl Charge {
    /// Keeps the tokens, because a request has started.
    pub(super) fn keep(&self) {
        if let Some(account) = &self.account
            && !self.kept.swap(true, Ordering::Relaxed)
        {
            account.usage.count_prompt(self.tokens);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(account) = &self.account
            && !self.kept.load(Ordering::Relaxed)
        {
            account.usage.put_back_prompt(self.tokens, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_key_is_a_bearer_token_or_a_separate_header() {
        let of = |lines: &[_]| shown(&headers(lines)).unwrap().map(<[u8]>::to_vec);
        let key = Some(b"key".to_vec());
        assert_eq!(of(&[("authorization", "Bearer key")]), key);
        assert_eq!(of(&[("authorization", "bearer  key ")]), key);
        assert_eq!(of(&[("x-api-key", " key")]), key);
        let both = [("authorization", "Bearer key"), ("x-api-key", "key")];
        assert_eq!(of(&both), key);
        let proxy = [("authorization", "Basic eDp5"), ("x-api-key", "key")];
        assert_eq!(of(&proxy), key);
        assert_eq!(
            of(&[("x-api-key", ""), ("authorization", "Bearer key")]),
            key
        );
        for none in ["Bearer ", "Bearer", "Basic key", ""] {
            assert_eq!(of(&[("authorization", none)]), None);
        }
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn two_different_keys_are_refused() {
        for lines in [
            [("authorization", "Bearer a"), ("x-api-key", "b")],
            [("authorization", "Bearer a"), ("authorization", "Bearer b")],
            [("x-api-key", "a"), ("x-api-key", "b")],
        ] {
            let error = shown(&headers(&lines)).unwrap_err().to_string();
            assert!(error.contains("two different API keys"), "{error}");
        }
    }

    #[test]
    fn without_keys_requests_with_the_same_token_are_one_tenant() {
        let of = |lines: &[_]| tenant(&headers(lines), &Meter::default()).unwrap();
        assert_eq!(
            of(&[("authorization", "Bearer key")]),
            Tenant::of_key(b"key")
        );
        assert_eq!(of(&[("x-api-key", "key")]), Tenant::of_key(b"key"));
        assert_eq!(of(&[("authorization", "Basic key")]), Tenant::ANONYMOUS);
        assert_eq!(of(&[]), Tenant::ANONYMOUS);
    }

    #[test]
    fn every_documented_route_has_a_permission() {
        let contract = crate::http::openapi();
        for path in contract.paths.paths.keys() {
            let route = path.replace("/v1/models/{id}", "/v1/models/{*id}");
            let listed = ROUTES.iter().any(|(known, _)| *known == route);
            assert!(listed, "{path} is not in `ROUTES`");
        }
        let of = |method: Method, route| Needs::of(&method, route);
        assert_eq!(of(Method::GET, Some("/new")), Needs::Scope(KeyScope::Admin));
        assert_eq!(of(Method::GET, None), Needs::Key);
        assert_eq!(of(Method::GET, Some("/")), Needs::Nothing);
        assert_eq!(
            of(Method::POST, Some("/")),
            Needs::Scope(KeyScope::Generate)
        );
    }
}
