//! `skald health`: checks whether a server is ready, for the health checks of container engines.
//!
//! The exit code is 0 or 1: Docker reserves the others. It sends one request; the container engine decides
//! how often to run it and what to do.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use reqwest::Url;
use reqwest::redirect::Policy;

use super::{CommandError, http_url};
use crate::config::{Layer, address, at_least_a_moment};
use crate::shown_url::shown_url;

/// The path if the URL has none.
const READINESS: &str = "/readyz";
/// Maximum bytes of an answer that are read.
const LONGEST_ANSWER: usize = 16 << 10;

/// Check whether a server is ready: exit code 0 if it is, 1 if not
#[derive(Debug, Args)]
#[command(
    after_help = "Without a URL, the request goes to the address in SKALD_LISTEN, else to `listen` in the \
        file given by --config, else to the default; the loopback address stands for 0.0.0.0 and [::]. \
        If SKALD_TLS_CERT or that file names a certificate, the request uses TLS without checking it, \
        because it stays on this machine and the certificate is for another name. The certificate \
        at a given https URL is checked.\n\n\
        Examples:\n  \
        skald health\n  \
        skald health http://localhost:8081\n  \
        skald health https://skald.example.org/livez\n  \
        skald health --insecure https://localhost:8443"
)]
pub struct Health {
    /// URL of the server; the path is /readyz if it has none
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Maximum time for the answer. The default is less than what container engines allow a health check,
    /// so that the message is this program's
    #[arg(long, value_name = "DURATION", value_parser = at_least_a_moment, default_value = "3s")]
    timeout: Duration,
    /// Use TLS without checking the certificate
    #[arg(long)]
    insecure: bool,
    /// TOML file with the server's settings
    #[arg(long, env = "SKALD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Health {
    pub(super) fn run(self) -> Result<(), CommandError> {
        self.check().map_err(CommandError::Running)
    }

    fn check(self) -> anyhow::Result<()> {
        let (url, insecure) = match &self.url {
            Some(given) => (request_url(given)?, self.insecure),
            None => (self.local()?, true),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer =
            async { tokio::time::timeout(self.timeout, check(url.clone(), insecure)).await };
        match runtime.block_on(answer) {
            Ok(outcome) => outcome,
            Err(_) => bail!(
                "{} did not answer within {}",
                shown_url(url.as_str()),
                humantime::format_duration(self.timeout)
            ),
        }
    }

    /// Returns the URL for the readiness of the server with this process's settings.
    fn local(&self) -> anyhow::Result<Url> {
        // Not read by clap, whose exit code for a wrong value is 2.
        let variable = std::env::var("SKALD_LISTEN").ok();
        let file = match &self.config {
            Some(file) => Layer::from_file(file)?,
            None => Layer::default(),
        };
        let file = file.unchecked()?;
        let listen = match &variable {
            Some(text) => {
                address(text).map_err(|expected| anyhow!("SKALD_LISTEN is {text:?}; {expected}"))?
            }
            None => file.listen,
        };
        let has_tls = file.tls_cert.is_some() || std::env::var_os("SKALD_TLS_CERT").is_some();
        let scheme = if has_tls { "https" } else { "http" };
        let address = reachable(listen);
        if address.port() == 0 {
            bail!("`listen` has port 0, so the system chose the port; pass the server's URL");
        }
        request_url(&format!("{scheme}://{address}"))
    }
}

/// Returns the address at which a server can be reached from its own machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Returns the URL of the request for a URL given by the user.
fn request_url(given: &str) -> anyhow::Result<Url> {
    let expected = || {
        let shown = shown_url(given);
        format!("{shown:?} is not a valid URL; write http://localhost:8080")
    };
    // A port alone would be taken for an IPv4 address.
    if given.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("{}", expected());
    }
    let mut url = http_url(given)
        .map_err(anyhow::Error::msg)
        .with_context(expected)?;
    if matches!(url.path(), "" | "/") {
        url.set_path(READINESS);
    }
    Ok(url)
}

/// Sends the request, and fails unless the answer is a success. With `insecure`, accepts any certificate.
async fn check(url: Url, insecure: bool) -> anyhow::Result<()> {
    let client = crate::tls::http_client()
        // The answer of a proxy, or of the target of a redirect, says nothing about the server.
        .no_proxy()
        .tls_danger_accept_invalid_certs(insecure)
        .redirect(Policy::none())
        .build()?;
    let shown = shown_url(url.as_str());
    let answer = client.get(url).send().await;
    let mut response = answer
        .map_err(reqwest::Error::without_url)
        .with_context(|| shown.clone())?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST_ANSWER {
            break;
        }
    }
    let status = response.status();
    if status.is_success() {
        // The exit code is the answer even if the text can't be written.
        let text = health_text(&body).unwrap_or("ok".to_owned());
        let _ = writeln!(std::io::stdout(), "{shown}: {text}");
        return Ok(());
    }
    match health_text(&body) {
        Some(text) => bail!("{shown} answered {status}: {text}"),
        None => bail!("{shown} answered {status}"),
    }
}

/// Returns the text of a health answer of Skald.
fn health_text(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let status = answer.get("status")?.as_str()?;
    match answer.get("error").and_then(|error| error.as_str()) {
        Some(error) => Some(format!("{status}: {error}")),
        None => Some(status.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_everywhere_is_asked_on_loopback() {
        let asked = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(asked("[::]:81"), "[::1]:81");
        assert_eq!(asked("10.1.2.3:82"), "10.1.2.3:82");
    }

    #[test]
    fn only_a_url_without_a_path_gets_one() {
        let asked = |given: &str| request_url(given).map(|url| url.to_string()).ok();
        let readiness = Some("http://localhost:8080/readyz".to_owned());
        assert_eq!(asked("http://localhost:8080"), readiness);
        assert_eq!(asked("http://localhost:8080/"), readiness);
        let liveness = "http://localhost:8080/livez";
        assert_eq!(asked(liveness).as_deref(), Some(liveness));
        assert_eq!(asked("localhost:8080"), readiness);
        for wrong in ["8080", "", "http://", "unix:///run/skald"] {
            assert_eq!(asked(wrong), None, "{wrong}");
        }
    }
}
