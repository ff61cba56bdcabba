//! API keys at the door, where the server has any: which key a request shows, whether it may do what is
//! asked, and what is left of its limits.
//!
//! [`check`] is a layer within that of errors. What it learns of a request goes on as an extension: the
//! [`Meter`], which counts the tokens. A key's place among its concurrent requests is held by the answer's
//! body, so it is free when the answer has ended or its client has gone.
//!
//! A key must never be in an error, a log line or a span; its name is.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tracing::Span;

use super::app::App;
use super::error::ApiError;
use super::outcome::StreamEnd;
use crate::keys::bucket::Level;
use crate::keys::usage::Levels;
use crate::keys::{Account, KeyScope, Keys, Place};
use crate::request::{GenerateRequest, Tenant};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
/// Limit, what is left of it, and when it is whole again, as OpenAI names them.
const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// No key: it is asked by orchestrators, and tells nothing.
    Nothing,
    /// Any key.
    Key,
    /// A key with this scope.
    Scope(KeyScope),
}

/// What each route needs, by its template.
const ROUTES: [(&str, Needs); 26] = {
    use KeyScope::{Generate, Metrics};
    use Needs::{Key, Nothing, Scope};
    [
        ("/livez", Nothing),
        ("/readyz", Nothing),
        ("/health", Nothing),
        ("/ping", Nothing),
        ("/openapi.json", Key),
        ("/metrics", Scope(Metrics)),
        ("/", Scope(Generate)),
        ("/generate", Scope(Generate)),
        ("/generate_stream", Scope(Generate)),
        ("/v1/completions", Scope(Generate)),
        ("/v1/chat/completions", Scope(Generate)),
        ("/v1/embeddings", Scope(Generate)),
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
    /// Returns what the route of this template needs. Without a route, any key: whether a path exists is
    /// told only to those who have one. A route that was forgotten in the table is the administrator's.
    pub(super) fn of(route: Option<&str>) -> Self {
        let Some(route) = route else {
            return Self::Key;
        };
        let known = ROUTES.iter().find(|(path, _)| *path == route);
        known.map_or(Self::Scope(KeyScope::Admin), |(_, needs)| *needs)
    }
}

/// Returns the key that a request shows, as a bearer token or as `X-Api-Key`.
///
/// # Errors
/// If it shows two different ones.
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

/// Returns the tenant of a request: of its key where the server checks keys, else of whatever it shows as
/// one.
///
/// # Errors
/// If it shows two different keys.
pub(super) fn tenant(headers: &HeaderMap, meter: &Meter) -> Result<Tenant, ApiError> {
    match &meter.0 {
        Some(account) => Ok(account.tenant()),
        None => Ok(shown(headers)?.map_or(Tenant::ANONYMOUS, Tenant::of_key)),
    }
}

/// Returns the layer that lets in requests with a key that may do what they ask.
pub(super) async fn check(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let Some(keys) = &app.access().keys else {
        return next.run(request).await;
    };
    let route = request.extensions().get::<MatchedPath>();
    let needs = Needs::of(route.map(MatchedPath::as_str));
    if needs == Needs::Nothing {
        return next.run(request).await;
    }
    let mut response = match authenticate(keys, request.headers(), needs) {
        Err(refused) => refused.into_response(),
        Ok(account) => {
            Span::current().record("key", account.key.name.as_str());
            let limited = needs == Needs::Scope(KeyScope::Generate);
            let place = limited.then(|| account.usage.begin(Instant::now()));
            let mut response = match place.transpose() {
                Err(reached) => ApiError::from(reached).into_response(),
                Ok(place) => {
                    request
                        .extensions_mut()
                        .insert(Meter(Some(Arc::clone(&account))));
                    held(next.run(request).await, place)
                }
            };
            if limited {
                tell(
                    &account.usage.levels(Instant::now()),
                    response.headers_mut(),
                );
            }
            response
        }
    };
    if let Some(reason) = response.extensions().get().and_then(ApiError::refused_key) {
        app.observations().key_refused(reason);
    }
    if needs == Needs::Scope(KeyScope::Generate) {
        // A cache must not give one key's answer to another.
        response.headers_mut().append(
            header::VARY,
            HeaderValue::from_static("authorization, x-api-key"),
        );
    }
    response
}

fn authenticate(keys: &Keys, headers: &HeaderMap, needs: Needs) -> Result<Arc<Account>, ApiError> {
    let shown = shown(headers)?.ok_or_else(ApiError::no_key)?;
    let account = keys.authenticate(shown).ok_or_else(ApiError::invalid_key)?;
    match needs {
        Needs::Scope(scope) if !account.key.has(scope) => Err(ApiError::missing_scope(scope)),
        _ => Ok(account),
    }
}

/// Counts the tokens of a request for its key: an extension of each request that shows one.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Option<Arc<Account>>);

impl Meter {
    /// Returns that of a request.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Returns the tenant whose share of the server the request uses. Without keys clients could invent
    /// tenants, and get a further share with each: all requests have one.
    pub(super) fn share(&self) -> Tenant {
        let account = self.0.as_ref();
        account.map_or(Tenant::ANONYMOUS, |account| account.tenant())
    }

    /// Returns whether the request may set `priority`: without keys every request may.
    pub(super) fn may_prioritize(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|account| account.key.may_prioritize)
    }

    /// Takes the tokens of the prompts, of which `per_prompt` requests each have the same.
    ///
    /// # Errors
    /// If the key has not as many left.
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

    /// Takes a token that was generated.
    pub(super) fn generated(&self) {
        if let Some(account) = &self.0 {
            account.usage.take_generated(1, Instant::now());
        }
    }
}

/// Tokens of prompts that were taken: put back when this is dropped, unless a request began to run.
#[derive(Debug)]
pub(super) struct Charge {
    account: Option<Arc<Account>>,
    tokens: u64,
    kept: AtomicBool,
}

impl Charge {
    /// Notes that the prompts are being read.
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

/// Puts on an answer what is left of each limit: in OpenAI's headers, which clients read, and in those of
/// the IETF's draft (draft-ietf-httpapi-ratelimit-headers-10), which also have the concurrent requests.
fn tell(levels: &Levels, headers: &mut HeaderMap) {
    let mut policy = Vec::new();
    let mut left = Vec::new();
    let minute = [
        ("requests", &REQUESTS, levels.requests),
        ("tokens", &TOKENS, levels.tokens),
    ];
    for (name, [limit, remaining, reset], level) in minute {
        let Some(level) = level else { continue };
        headers.insert(limit, level.limit.into());
        headers.insert(remaining, level.remaining.into());
        insert(headers, reset, &until_whole(level.reset));
        let Level { limit, .. } = level;
        policy.push(format!("\"{name}\";q={limit};w=60;qu=\"{name}\""));
        let seconds = level.reset.as_millis().div_ceil(1000);
        left.push(format!("\"{name}\";r={};t={seconds}", level.remaining));
    }
    if let Some((limit, free)) = levels.concurrent {
        const NAME: &str = "concurrent-requests";
        policy.push(format!("\"{NAME}\";q={limit};qu=\"{NAME}\""));
        left.push(format!("\"{NAME}\";r={free}"));
    }
    if !policy.is_empty() {
        insert(headers, &POLICY, &policy.join(", "));
        insert(headers, &LEFT, &left.join(", "));
    }
}

fn insert(headers: &mut HeaderMap, name: &HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Writes a time as OpenAI does: `120ms`, `8.64s`, `6m0s`.
fn until_whole(time: Duration) -> String {
    let milliseconds = time.as_nanos().div_ceil(1_000_000);
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match minutes {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{seconds}s"),
    }
}

/// Returns all headers that tell of limits, for pages that may read them.
pub(super) fn headers() -> impl Iterator<Item = HeaderName> {
    [REQUESTS, TOKENS]
        .into_iter()
        .flatten()
        .chain([POLICY, LEFT, header::WWW_AUTHENTICATE])
}

/// Returns an answer that holds its request's place until it has ended.
fn held(response: Response, place: Option<Place>) -> Response {
    if place.is_none() || response.body().is_end_stream() {
        return response;
    }
    let end = response.extensions().get::<StreamEnd>().cloned();
    response.map(|body| Body::new(BodyWithPlace { body, place, end }))
}

/// Body of an answer that keeps its request's place among the key's concurrent requests.
struct BodyWithPlace {
    body: Body,
    /// `None` once the answer has ended.
    place: Option<Place>,
    /// End of the stream, if the answer is one.
    end: Option<StreamEnd>,
}

impl HttpBody for BodyWithPlace {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let goes_on = matches!(frame, Some(Ok(_)))
            && !self.body.is_end_stream()
            && !self.end.as_ref().is_some_and(StreamEnd::is_noted);
        if !goes_on {
            // Before the last frame goes out: its client may come again the moment that it has read it.
            self.place = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
    fn a_key_is_a_bearer_token_or_a_header_of_its_own() {
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
    fn without_keys_the_tenant_is_who_shows_the_same_key() {
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
    fn every_route_of_the_contract_has_its_needs() {
        let contract = crate::http::openapi();
        for path in contract.paths.paths.keys() {
            let route = path.replace("/v1/models/{id}", "/v1/models/{*id}");
            let listed = ROUTES.iter().any(|(known, _)| *known == route);
            assert!(listed, "{path} is not in `ROUTES`");
        }
        assert_eq!(Needs::of(Some("/new")), Needs::Scope(KeyScope::Admin));
        assert_eq!(Needs::of(None), Needs::Key);
    }

    #[test]
    fn times_are_written_as_openai_does() {
        for (milliseconds, text) in [
            (0, "0ms"),
            (120, "120ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (60_000, "1m0s"),
            (90_500, "1m30.5s"),
            (3_600_000, "60m0s"),
        ] {
            assert_eq!(until_whole(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn only_limits_that_a_key_has_are_told() {
        let mut headers = HeaderMap::new();
        tell(&Levels::default(), &mut headers);
        assert!(headers.is_empty());
        let level = Level {
            limit: 60,
            remaining: 59,
            reset: Duration::from_millis(1500),
        };
        let levels = Levels {
            requests: Some(level),
            tokens: None,
            concurrent: Some((4, 3)),
        };
        tell(&levels, &mut headers);
        assert_eq!(headers["x-ratelimit-limit-requests"], "60");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "59");
        assert_eq!(headers["x-ratelimit-reset-requests"], "1.5s");
        assert_eq!(
            headers["ratelimit-policy"],
            "\"requests\";q=60;w=60;qu=\"requests\", \"concurrent-requests\";q=4;qu=\"concurrent-requests\""
        );
        assert_eq!(
            headers["ratelimit"],
            "\"requests\";r=59;t=2, \"concurrent-requests\";r=3"
        );
        assert_eq!(headers.len(), 5);
    }
}
