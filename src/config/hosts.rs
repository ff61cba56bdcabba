//! Hosts and origins in settings, and what they match.
//!
//! `http::access` decides what happens to a request that matches none.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Why a text is not a host or an origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHost {
    /// Not a host.
    #[error(
        "{0:?} is not a valid host; write a name without scheme and port, such as \
         skald.example.org, *.example.org for all below it, or * for any"
    )]
    Host(String),
    /// Not an origin.
    #[error(
        "{0:?} is not a valid origin; write scheme, host and port as browsers send them, such as \
         https://app.example.org or http://localhost:3000, or * for any"
    )]
    Origin(String),
}

/// A host that requests may name, whatever the port: a name, an IP address, `*.example.org`, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHost {
    /// Any host.
    Any,
    /// Any name below this one; begins with a dot.
    Below(String),
    /// This name, in lower case.
    Name(String),
    /// This address.
    Ip(IpAddr),
}

impl AllowedHost {
    /// Returns whether `name`, in lower case and without a final dot, is this host.
    #[must_use]
    pub fn is_name(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Below(parent) => name.ends_with(parent.as_str()),
            Self::Name(allowed) => name == allowed,
            Self::Ip(_) => false,
        }
    }

    /// Returns whether `address` is this host.
    #[must_use]
    pub fn is_ip(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Ip(allowed) => *allowed == address,
            Self::Below(_) | Self::Name(_) => false,
        }
    }
}

impl FromStr for AllowedHost {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = || InvalidHost::Host(text.to_owned());
        let host = text.trim().to_ascii_lowercase();
        if host == "*" {
            return Ok(Self::Any);
        }
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(&host).parse::<IpAddr>() {
            return Ok(Self::Ip(address.to_canonical()));
        }
        let (below, name) = match host.strip_prefix("*.") {
            Some(parent) => (true, parent),
            None => (false, host.as_str()),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_label = |label: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !label.is_empty() && label.chars().all(allowed)
        };
        if !name.split('.').all(is_label) {
            return Err(invalid());
        }
        Ok(if below {
            Self::Below(format!(".{name}"))
        } else {
            Self::Name(name.to_owned())
        })
    }
}

/// An origin whose pages may call the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigin {
    /// Any origin.
    Any,
    /// This one, as browsers send it.
    Exact(String),
}

impl CorsOrigin {
    /// Returns whether an `Origin` header names this origin.
    #[must_use]
    pub fn is(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(allowed) => allowed.eq_ignore_ascii_case(origin),
        }
    }
}

impl FromStr for CorsOrigin {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let origin = text.trim().trim_end_matches('/').to_ascii_lowercase();
        match origin.as_str() {
            "*" => return Ok(Self::Any),
            // Pages without an origin: files, sandboxed frames.
            "null" => return Ok(Self::Exact(origin)),
            _ => (),
        }
        let invalid = || InvalidHost::Origin(text.to_owned());
        let (scheme, host) = origin.split_once("://").ok_or_else(invalid)?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let in_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if !is_scheme || host.is_empty() || !host.chars().all(in_host) {
            return Err(invalid());
        }
        Ok(Self::Exact(origin))
    }
}

impl fmt::Display for CorsOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "*",
            Self::Exact(origin) => origin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_an_address_or_a_pattern() {
        let host = |text: &str| text.parse::<AllowedHost>().unwrap();
        assert!(host("Skald.Example.org").is_name("skald.example.org"));
        assert!(host("skald.example.org.").is_name("skald.example.org"));
        assert!(!host("skald.example.org").is_name("evil.skald.example.org"));
        assert!(host("*.example.org").is_name("a.b.example.org"));
        for other in ["example.org", "evilexample.org", "example.org.evil"] {
            assert!(!host("*.example.org").is_name(other), "{other}");
        }
        assert!(host("my_container").is_name("my_container"));
        assert!(host("10.0.0.1").is_ip("10.0.0.1".parse().unwrap()));
        assert!(host("[fd00::1]").is_ip("fd00::1".parse().unwrap()));
        assert!(host("::ffff:10.0.0.1").is_ip("10.0.0.1".parse().unwrap()));
        assert!(host("*").is_name("anything") && host("*").is_ip("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn an_invalid_host_is_refused_with_an_example() {
        for wrong in [
            "", "http://a", "a:80", "a/b", "*.", "a..b", "*a", "a b", "ä",
        ] {
            let error = wrong.parse::<AllowedHost>().unwrap_err().to_string();
            assert!(error.contains("skald.example.org"), "{wrong}: {error}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| text.parse::<CorsOrigin>().unwrap();
        assert!(origin("http://localhost:3000").is("http://localhost:3000"));
        assert!(origin("https://App.example.org/").is("https://app.example.org"));
        assert!(!origin("https://app.example.org").is("http://app.example.org"));
        assert!(!origin("https://app.example.org").is("https://app.example.org:8443"));
        assert!(origin("chrome-extension://abc").is("chrome-extension://abc"));
        assert!(origin("null").is("null") && !origin("null").is("http://a"));
        assert!(origin("*").is("null") && origin("*").is("http://a"));
        for wrong in [
            "",
            "localhost:3000",
            "http://",
            "http://a/b",
            "://a",
            "http://a b",
        ] {
            let error = wrong.parse::<CorsOrigin>().unwrap_err();
            assert!(
                matches!(&error, InvalidHost::Origin(text) if text == wrong),
                "{error}"
            );
        }
    }
}
