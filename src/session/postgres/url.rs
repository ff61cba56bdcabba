//! The database's URL: address, user and TLS mode.
//!
//! Nothing derived from a URL may reveal its password, neither an error nor [`Target::name`].

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::tls::Trust;

/// Default time limit for a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a connection with unacknowledged data counts as broken.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// Timeouts enforced by the database, in case this process no longer can. The statement timeout is
/// shorter than [`ANSWER`](super::link::ANSWER), so that the database reports the outcome of a slow
/// statement.
const OPTIONS: &str = "-c statement_timeout=5s -c idle_in_transaction_session_timeout=60s";

/// A parsed URL.
pub(super) struct Target {
    pub config: Config,
    /// Trusted certificates; `None` without TLS.
    pub trust: Option<Trust>,
    /// The URL without its password and options.
    pub name: String,
}

/// Why a URL is not valid.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUrl {
    /// The scheme is missing or unknown.
    #[error("it must begin with postgres:// or postgresql://")]
    Scheme,
    /// The end of the password is ambiguous.
    #[error("it has more than one `@`; write those in user and password as %40")]
    At,
    /// The user is missing.
    #[error("the user is missing; write postgres://USER@HOST/DATABASE")]
    User,
    /// The TLS mode is unknown.
    #[error("`sslmode` must be disable, prefer, require or verify-full")]
    SslMode,
    /// A parameter is not valid percent-encoded text.
    #[error("`{0}` is not valid percent-encoded UTF-8")]
    Encoding(&'static str),
    /// Any other fault.
    #[error("{0}")]
    Other(String),
}

/// Parses a URL. `password` is used if the URL has none.
///
/// # Errors
/// [`InvalidUrl`], which does not quote the URL.
pub(super) fn parse(url: &str, password: Option<&str>) -> Result<Target, InvalidUrl> {
    let address = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme))
        .ok_or(InvalidUrl::Scheme)?;
    let (address, query) = address.split_once('?').unwrap_or((address, ""));
    if address.matches('@').count() > 1 {
        return Err(InvalidUrl::At);
    }
    let (mut mode, mut root, mut rest) = ("prefer", None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = value,
            Some(("sslrootcert", "system")) => root = None,
            Some(("sslrootcert", value)) => root = Some(PathBuf::from(decoded(value)?)),
            _ => rest.push(pair),
        }
    }
    let url = format!("postgres://{address}?{}", rest.join("&"));
    let parsed: Result<Config, _> = url.parse();
    let mut config = parsed.map_err(|error| InvalidUrl::Other(super::message::message(&error)))?;
    let (ssl_mode, trust) = match (mode, root) {
        ("disable", _) => (SslMode::Disable, None),
        ("prefer", None) => (SslMode::Prefer, Some(Trust::Anyone)),
        ("require", None) => (SslMode::Require, Some(Trust::Anyone)),
        // As in libpq, naming an authority without verifying certificates is an error.
        ("prefer" | "require", Some(_)) => {
            return Err(InvalidUrl::Other(
                "`sslrootcert` needs `sslmode=verify-full`".to_owned(),
            ));
        }
        ("verify-full", root) => (SslMode::Require, Some(Trust::Authorities(root))),
        _ => return Err(InvalidUrl::SslMode),
    };
    config.ssl_mode(ssl_mode);
    complete(&mut config, password)?;
    Ok(Target {
        name: name(&config),
        trust,
        config,
    })
}

/// Returns whether a URL contains a password.
#[must_use]
pub fn has_password(url: &str) -> bool {
    parse(url, None).is_ok_and(|target| target.config.get_password().is_some())
}

/// Fills in the defaults.
fn complete(config: &mut Config, password: Option<&str>) -> Result<(), InvalidUrl> {
    if config.get_user().is_none_or(str::is_empty) {
        return Err(InvalidUrl::User);
    }
    if let (None, Some(password)) = (config.get_password(), password) {
        config.password(password);
    }
    if config.get_application_name().is_none() {
        config.application_name("skald");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(UNACKNOWLEDGED);
    }
    // Of several hosts, use the one that accepts writes.
    if config.get_target_session_attrs() == TargetSessionAttrs::Any {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    // Options in the URL come last and take precedence.
    let options = match config.get_options() {
        Some(own) => format!("{OPTIONS} {own}"),
        None => OPTIONS.to_owned(),
    };
    config.options(options);
    Ok(())
}

fn decoded(value: &str) -> Result<String, InvalidUrl> {
    let text = percent_encoding::percent_decode_str(value).decode_utf8();
    let text = text.map_err(|_| InvalidUrl::Encoding("sslrootcert"))?;
    Ok(text.into_owned())
}

fn name(config: &Config) -> String {
    let mut name = format!("postgres://{}@", config.get_user().unwrap_or_default());
    for (n, host) in config.get_hosts().iter().enumerate() {
        if n > 0 {
            name.push(',');
        }
        match host {
            Host::Tcp(host) => name.push_str(host),
            #[cfg(unix)]
            Host::Unix(path) => name.push_str(&path.to_string_lossy()),
        }
        let ports = config.get_ports();
        if let Some(port) = ports.get(n).or(ports.first()) {
            let _ = write!(name, ":{port}");
        }
    }
    let database = config.get_dbname().or(config.get_user());
    let _ = write!(name, "/{}", database.unwrap_or_default());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> String {
        match parse(url, None) {
            Ok(target) => panic!("{} is accepted", target.name),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_name_of_a_url_does_not_contain_its_password() {
        for (url, name) in [
            ("postgres://u:secret@db/skald", "postgres://u@db:5432/skald"),
            (
                "postgresql://u:secret@db:6543/skald?sslmode=disable&application_name=secret",
                "postgres://u@db:6543/skald",
            ),
            ("postgres://u:s%40cret@a:1,b:2/x", "postgres://u@a:1,b:2/x"),
            ("postgres://u@%2Frun%2Fpg/x", "postgres://u@/run/pg:5432/x"),
            ("postgres://u@db", "postgres://u@db:5432/u"),
        ] {
            assert_eq!(parse(url, None).unwrap().name, name);
        }
    }

    #[test]
    fn a_password_is_found_anywhere_in_a_url() {
        for url in [
            "postgres://u:secret@db/x",
            "postgres://u:secret@db/x?sslmode=verify-full&sslrootcert=ca.pem",
            "postgres://u@db/x?password=secret",
        ] {
            assert!(has_password(url), "{url}");
        }
        assert!(!has_password("postgres://u@db/x?sslmode=verify-full"));
    }

    #[test]
    fn an_invalid_url_is_refused_without_being_quoted() {
        for url in [
            "mysql://u:secret@db/x",
            "u:secret@db",
            "postgres://u:se@secret@db/x",
            "postgres://u:p@secret/x@db/y",
            "postgres://:secret@db/x",
            "postgres://u:secret@db:port/x",
            "postgres://u:secret@db/x?sslmode=maybe",
            "postgres://u:secret@db/x?secret=1",
            "postgres://u:secret@db/x?connect_timeout=soon",
            "postgres://u:secret@db/x?sslrootcert=a.pem",
            "postgres://u:secret@db/x?sslmode=verify-full&sslrootcert=%ff",
        ] {
            let message = error(url);
            let of_value = message.replace("unknown option `secret`", "");
            assert!(!of_value.contains("secret"), "{url}: {message}");
        }
    }

    #[test]
    fn password_and_options_in_the_url_take_precedence() {
        let password = |url| {
            let target = parse(url, Some("other")).unwrap();
            target.config.get_password().map(<[u8]>::to_vec)
        };
        assert_eq!(password("postgres://u:own@db/x").unwrap(), b"own");
        assert_eq!(password("postgres://u@db/x").unwrap(), b"other");
        let target = parse(
            "postgres://u@db/x?options=-c%20statement_timeout%3D9s",
            None,
        )
        .unwrap();
        let options = target.config.get_options().unwrap();
        assert!(options.ends_with("-c statement_timeout=9s"), "{options}");
    }

    #[test]
    fn the_url_selects_the_tls_mode() {
        let mode = |query: &str| {
            let target = parse(&format!("postgres://u@db/x{query}"), None).unwrap();
            (target.config.get_ssl_mode(), target.trust)
        };
        assert_eq!(mode(""), (SslMode::Prefer, Some(Trust::Anyone)));
        assert_eq!(mode("?sslmode=disable"), (SslMode::Disable, None));
        let full = Trust::Authorities(Some(PathBuf::from("/a b.pem")));
        assert_eq!(
            mode("?sslmode=verify-full&sslrootcert=%2Fa%20b.pem"),
            (SslMode::Require, Some(full))
        );
        let full = Trust::Authorities(None);
        assert_eq!(mode("?sslmode=verify-full"), (SslMode::Require, Some(full)));
    }
}
