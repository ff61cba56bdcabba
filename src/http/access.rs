//! The hosts that requests may name, and the web pages that may send requests.
//!
//! Without API keys the server trusts its machine, but a browser on that machine sends the requests of any
//! web page. Two headers that pages can't forge distinguish these requests:
//!
//! - `Host`: a page whose host name was rebound to this machine's address (DNS rebinding) sends that
//!   name, so only known names are accepted. An IP address can't be rebound.
//! - `Origin`: a page of another origin is refused before its request has any effect, whether or not the
//!   browser would let it read the answer.
//!
//! With API keys any host is accepted: a rebound page has no key, and browsers don't add one. Pages of
//! other origins are still refused, so that `--cors-origin` alone decides which are allowed.
//!
//! Other programs are unaffected, because they send no `Origin` and name the address that they connect to.
//! Nothing here may depend on a client's address: behind a proxy, all clients have the same.

pub(super) mod check;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use super::error::{ApiError, shown};
use super::keys::limit_headers;
use super::outcome::PROBES;
use crate::config::{AllowedHost, CorsOrigin};
use crate::keys::Keys;
use crate::session::Sharing;

/// Time for which browsers may cache the answer to a preflight.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

/// The hosts and origins that are allowed besides the machine's own, and the API keys.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Hosts that requests may name.
    pub hosts: Vec<AllowedHost>,
    /// Origins whose pages may send requests.
    pub origins: Vec<CorsOrigin>,
    /// API keys; `None` if requests need none.
    pub keys: Option<Arc<Keys>>,
}

impl Access {
    /// Returns whether each tenant has its own share, which requires that the server checks keys.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        match self.keys {
            Some(_) => Sharing::ByTenant,
            None => Sharing::AsOne,
        }
    }
}

/// The address that the server listens on: an extension of each request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listening {
    /// The address, which may be a wildcard.
    pub address: SocketAddr,
    /// Whether connections are encrypted.
    pub tls: bool,
}

/// Marks a request that arrived when all places for connections were taken: an extension of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoPlace;

/// The host that a request names, without its port.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    /// In lower case, without a final dot.
    Name(String),
}

impl Host {
    fn of(authority: &Authority) -> Self {
        let host = authority.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(host).parse::<IpAddr>() {
            return Self::Ip(address.to_canonical());
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        Self::Name(name.to_ascii_lowercase())
    }

    /// Returns whether the host can only be this machine. Browsers resolve `localhost` and its subdomains
    /// themselves.
    fn is_local(&self) -> bool {
        match self {
            Self::Ip(address) => address.is_loopback(),
            Self::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        }
    }
}

impl Access {
    /// Returns whether a server with this listening address serves requests to this host.
    fn allows_host(&self, host: &Host, listening: Option<IpAddr>) -> bool {
        if host.is_local() || self.keys.is_some() {
            return true;
        }
        match host {
            Host::Ip(address) => {
                let own = |listening: IpAddr| {
                    listening.is_unspecified() || listening.to_canonical() == *address
                };
                listening.is_some_and(own) || self.hosts.iter().any(|host| host.is_ip(*address))
            }
            Host::Name(name) => self.hosts.iter().any(|host| host.is_name(name)),
        }
    }

    /// Returns whether pages of this origin may send requests to a server at this authority.
    fn allows_origin(&self, origin: &str, authority: Option<&Authority>) -> bool {
        let host = origin.split_once("://").map(|(_, host)| host);
        let same = authority.zip(host).is_some_and(|(authority, host)| {
            // The scheme can differ behind a proxy that terminates TLS.
            authority.as_str().eq_ignore_ascii_case(host)
        });
        same || self.origins.iter().any(|allowed| allowed.is(origin))
    }

    /// Returns the layer that answers preflights and allows pages of the allowed origins to read answers;
    /// `None` without such origins.
    pub(super) fn cors(&self) -> Option<CorsLayer> {
        if self.origins.is_empty() {
            return None;
        }
        let layer = CorsLayer::new()
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(exposed())
            // Pages of a public network to a server in a private one.
            .allow_private_network(true)
            .max_age(PREFLIGHT_AGE);
        if self.origins.contains(&CorsOrigin::Any) {
            return Some(layer.allow_origin(Any));
        }
        let origins = self.origins.clone();
        Some(layer.allow_origin(AllowOrigin::predicate(move |origin, _| {
            let origin = origin.to_str().unwrap_or_default();
            origins.iter().any(|allowed| allowed.is(origin))
        })))
    }
}

/// Returns the headers that pages may read.
fn exposed() -> Vec<HeaderName> {
    let own = [
        HeaderName::from_static("x-request-id"),
        HeaderName::from_static("retry-after-ms"),
        header::RETRY_AFTER,
    ];
    own.into_iter().chain(limit_headers::headers()).collect()
}

fn admit(access: &Access, request: &Request) -> Result<(), ApiError> {
    let is_probe = PROBES.contains(&request.uri().path());
    let authority = authority(request)?;
    let listening = request.extensions().get::<Listening>();
    let listening = listening.map(|listening| listening.address.ip());
    if let Some(authority) = &authority
        && !is_probe
        && !access.allows_host(&Host::of(authority), listening)
    {
        return Err(foreign_host(authority.host()));
    }
    // Browsers send it once. If another client sends several, each must be allowed.
    for origin in request.headers().get_all(header::ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        if !access.allows_origin(&origin, authority.as_ref()) {
            return Err(foreign_origin(&origin));
        }
    }
    if request.extensions().get::<NoPlace>().is_some() && !is_probe {
        return Err(ApiError::no_place());
    }
    Ok(())
}

/// Returns the host and port of a request: the authority of its target, otherwise its `Host`. `None` in
/// HTTP/1.0, which requires neither and which browsers do not use.
fn authority(request: &Request) -> Result<Option<Authority>, ApiError> {
    let header = host_header(request.headers())?;
    if let Some(target) = request.uri().authority() {
        // HTTP/1.1 requires the header nevertheless.
        if header.is_none() && request.version() == Version::HTTP_11 {
            return Err(missing_host());
        }
        if target.as_str().contains('@') {
            return Err(ApiError::broken_head(
                "the request's target must not name a user",
            ));
        }
        if !has_valid_port(target) {
            return Err(ApiError::broken_head(format!(
                "the request's target {:?} is not a valid host: its port must be 0 to 65535",
                shown(target.as_str())
            )));
        }
        return Ok(Some(target.clone()));
    }
    match header {
        Some(value) => {
            let text = value.to_str().unwrap_or_default();
            let parsed = text.parse::<Authority>().ok();
            let parsed = parsed.filter(|authority| !authority.as_str().contains('@'));
            let refuse = |why: &str| {
                let host = shown(&String::from_utf8_lossy(value.as_bytes()));
                ApiError::broken_head(format!("the Host header {host:?} is not a valid host{why}"))
            };
            let authority = parsed.ok_or_else(|| refuse(""))?;
            if has_valid_port(&authority) {
                Ok(Some(authority))
            } else {
                Err(refuse(": its port must be 0 to 65535"))
            }
        }
        None if request.version() <= Version::HTTP_10 => Ok(None),
        None => Err(missing_host()),
    }
}

fn host_header(headers: &HeaderMap) -> Result<Option<&HeaderValue>, ApiError> {
    let mut all = headers.get_all(header::HOST).iter();
    let first = all.next();
    match all.count() {
        0 => Ok(first),
        more => Err(ApiError::broken_head(format!(
            "the request has {} Host headers; it must have one",
            more + 1
        ))),
    }
}

fn missing_host() -> ApiError {
    ApiError::broken_head("the request has no Host header; it must have one")
}

/// Returns whether an authority without a user has a valid port or none.
fn has_valid_port(authority: &Authority) -> bool {
    let port = authority.as_str().strip_prefix(authority.host());
    match port.and_then(|port| port.strip_prefix(':')) {
        Some("") | None => true,
        Some(port) => port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok(),
    }
}

/// Returns the error for a host, with advice to allow it if the setting accepts it.
fn foreign_host(host: &str) -> ApiError {
    let parsed = host.parse();
    let can_be_allowed = matches!(parsed, Ok(AllowedHost::Name(_) | AllowedHost::Ip(_)));
    ApiError::foreign_host(host, can_be_allowed)
}

/// Returns the error for an origin, with advice to allow it if the setting accepts it.
fn foreign_origin(origin: &str) -> ApiError {
    let parsed = origin.parse::<CorsOrigin>();
    let can_be_allowed = parsed.is_ok_and(|parsed| parsed != CorsOrigin::Any && parsed.is(origin));
    ApiError::foreign_origin(origin, can_be_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(hosts: &[&str], origins: &[&str]) -> Access {
        Access {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            origins: origins
                .iter()
                .map(|origin| origin.parse().unwrap())
                .collect(),
            keys: None,
        }
    }

    fn allows(access: &Access, host: &str, listening: &str) -> bool {
        let host = Host::of(&host.parse().unwrap());
        access.allows_host(&host, Some(listening.parse().unwrap()))
    }

    #[test]
    fn a_server_on_loopback_accepts_only_hosts_of_its_machine() {
        let none = Access::default();
        for own in [
            "localhost",
            "LOCALHOST:80",
            "a.localhost.",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:8",
        ] {
            assert!(allows(&none, own, "127.0.0.1"), "{own}");
        }
        for foreign in [
            "evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[fd00::1]",
        ] {
            assert!(!allows(&none, foreign, "127.0.0.1"), "{foreign}");
        }
    }

    #[test]
    fn a_server_accepts_its_own_address_and_on_a_wildcard_any_address() {
        let none = Access::default();
        assert!(allows(&none, "10.0.0.1:8080", "10.0.0.1"));
        assert!(allows(&none, "[::ffff:10.0.0.1]", "10.0.0.1"));
        assert!(!allows(&none, "10.0.0.2:8080", "10.0.0.1"));
        for wildcard in ["0.0.0.0", "::"] {
            assert!(allows(&none, "203.0.113.9", wildcard));
            assert!(allows(&none, "[fd00::1]:8080", wildcard));
            assert!(!allows(&none, "evil.example", wildcard));
        }
    }

    #[test]
    fn only_valid_settings_are_advised() {
        let long = "a".repeat(300);
        for (host, advised) in [
            ("evil.example", true),
            ("192.0.2.1", true),
            ("[fd00::1]", true),
            ("[::1%25eth0]", false),
            ("a..b", false),
            ("exa$mple", false),
            ("*", false),
            (&long, false),
        ] {
            let message = foreign_host(host).to_string();
            let advice = format!("--allowed-host {host}");
            assert_eq!(message.ends_with(&advice), advised, "{message}");
            assert_eq!(message.contains("--"), advised, "{message}");
        }
        for (origin, advised) in [
            ("https://evil.example:8443", true),
            ("null", true),
            ("file://", false),
            ("*", false),
            ("http://evil.example/", false),
            ("http://a b", false),
        ] {
            let message = foreign_origin(origin).to_string();
            let advice = format!("--cors-origin {origin}");
            assert_eq!(message.ends_with(&advice), advised, "{message}");
            assert_eq!(message.contains("--"), advised, "{message}");
        }
    }

    #[test]
    fn a_port_has_16_bits() {
        let valid = |authority: &str| has_valid_port(&authority.parse().unwrap());
        for good in [
            "a",
            "a:0",
            "a:65535",
            "a:00080",
            "[::1]",
            "[::1]:8080",
            "127.0.0.1:1",
        ] {
            assert!(valid(good), "{good}");
        }
        for bad in [
            "a:65536",
            "localhost:99999999",
            "[::1]:65536",
            "a:b",
            "a:-1",
        ] {
            let authority = bad.parse::<Authority>();
            assert!(
                !authority.is_ok_and(|authority| has_valid_port(&authority)),
                "{bad}"
            );
        }
    }

    #[test]
    fn allowed_hosts_are_accepted() {
        let named = access(&["skald", "*.svc.example"], &[]);
        assert!(allows(&named, "skald:8080", "0.0.0.0"));
        assert!(allows(&named, "a.svc.example", "127.0.0.1"));
        assert!(!allows(&named, "svc.example", "127.0.0.1"));
        assert!(allows(&access(&["*"], &[]), "evil.example", "127.0.0.1"));
    }

    #[test]
    fn pages_of_the_server_and_of_allowed_origins_are_accepted() {
        let own: Authority = "localhost:8080".parse().unwrap();
        let none = Access::default();
        assert!(none.allows_origin("http://localhost:8080", Some(&own)));
        for foreign in [
            "http://localhost:3000",
            "https://evil.example",
            "null",
            "",
            "http://",
        ] {
            assert!(!none.allows_origin(foreign, Some(&own)), "{foreign}");
            assert!(!none.allows_origin(foreign, None), "{foreign}");
        }
        let named = access(&[], &["http://localhost:3000"]);
        assert!(named.allows_origin("http://localhost:3000", Some(&own)));
        assert!(!named.allows_origin("http://localhost:3001", Some(&own)));
        assert!(access(&[], &["*"]).allows_origin("null", None));
    }
}
