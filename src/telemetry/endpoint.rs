//! The trace endpoint: the URL of an OTLP receiver for protobuf over HTTP.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

use crate::shown_url::shown_url;

/// Path of traces in OTLP over HTTP.
const TRACES: &str = "/v1/traces";

/// Why an endpoint is not valid. The message never contains a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{shown:?} is not a valid OTLP endpoint ({reason}); use a URL such as http://localhost:4318"
)]
pub struct InvalidEndpoint {
    shown: String,
    reason: String,
}

/// The URL that spans are posted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtlpEndpoint(Url);

impl OtlpEndpoint {
    /// Parses the complete URL of a receiver, as in `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    ///
    /// # Errors
    /// If `text` is not an absolute `http` or `https` URL without user, query and fragment.
    pub fn whole(text: &str) -> Result<Self, InvalidEndpoint> {
        let invalid = |reason: &str| InvalidEndpoint {
            shown: shown_url(text),
            reason: reason.to_owned(),
        };
        let url = Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid("it does not begin with http:// or https://"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("it has a query or a fragment"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(
                "it has a user name or password: pass them in OTEL_EXPORTER_OTLP_HEADERS",
            ));
        }
        Ok(Self(url))
    }

    /// Returns the URL.
    pub(super) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for OtlpEndpoint {
    type Err = InvalidEndpoint;

    /// Parses the URL of a collector, and appends `/v1/traces` unless it is already there.
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let Self(mut url) = Self::whole(text)?;
        let base = url.path().trim_end_matches('/');
        let path = format!("{}{TRACES}", base.trim_end_matches(TRACES));
        url.set_path(&path);
        Ok(Self(url))
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_traces_is_added_to_a_collector() {
        for (given, posted_to) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("https://host/otlp", "https://host/otlp/v1/traces"),
            ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ] {
            let endpoint: OtlpEndpoint = given.parse().expect(given);
            assert_eq!(endpoint.as_str(), posted_to);
            assert_eq!(endpoint.to_string(), posted_to);
        }
    }

    #[test]
    fn the_endpoint_of_traces_alone_is_used_unchanged() {
        let endpoint = OtlpEndpoint::whole("https://host/custom").expect("a URL");
        assert_eq!(endpoint.as_str(), "https://host/custom");
    }

    #[test]
    fn an_invalid_url_is_refused_and_named() {
        for given in [
            "",
            "collector",
            "localhost:4318",
            "grpc://localhost:4317",
            "http://",
            "http://host:99999",
            "http://host/?key=1",
            "http://host/#part",
        ] {
            let refusal = given.parse::<OtlpEndpoint>().expect_err(given).to_string();
            let shown = shown_url(given);
            assert!(refusal.contains(&format!("{shown:?}")), "{refusal}");
            assert!(refusal.contains("http://localhost:4318"), "{refusal}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_shown() {
        for given in ["http://user:secret@host:1", "http://host/?key=secret"] {
            let refusal = given.parse::<OtlpEndpoint>().expect_err(given).to_string();
            assert!(!refusal.contains("secret"), "{refusal}");
        }
    }
}
