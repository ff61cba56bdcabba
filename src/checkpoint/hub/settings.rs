//! Addresses of the hub and its cache, and the token, from the environment variables that all
//! Hugging Face tools share.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";
/// Default of the two timeouts, in seconds; the same as in `huggingface_hub`.
const TIMEOUT_SECONDS: u64 = 10;

/// An access token of the hub; its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct HubToken(String);

impl HubToken {
    /// Returns the token's text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for HubToken {
    fn from(token: &str) -> Self {
        Self(token.to_owned())
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(…)")
    }
}

/// Addresses, token and timeouts of the hub.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The hub's address.
    pub endpoint: String,
    /// The token, sent only to the hub's host.
    pub token: Option<HubToken>,
    /// The directory of the cache.
    pub cache_dir: PathBuf,
    /// Whether only the cache is used.
    pub offline: bool,
    /// Maximum wait for the hub's first response before the cache is used.
    pub answer_within: Duration,
    /// Maximum time without data before a download is resumed on another connection.
    pub stall_timeout: Duration,
}

impl HubSettings {
    /// Reads the environment, as `huggingface_hub` does: `HF_ENDPOINT`; `HF_HUB_CACHE`, or `hub` in
    /// `HF_HOME`, `XDG_CACHE_HOME/huggingface` or `~/.cache/huggingface`; `HF_TOKEN`, or the file
    /// `HF_TOKEN_PATH` or `token` in `HF_HOME`, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN`;
    /// `HF_HUB_OFFLINE`; `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` in seconds.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let text = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| variable(name));
            values.find(|value| !value.trim().is_empty())
        };
        let is_set = |names: &[&str]| {
            let value = text(names).unwrap_or_default().to_lowercase();
            ["1", "on", "yes", "true"].contains(&value.as_str())
        };
        let seconds = |name: &str| {
            let given = text(&[name]).and_then(|value| value.trim().parse().ok());
            Duration::from_secs(given.filter(|&n| n > 0).unwrap_or(TIMEOUT_SECONDS))
        };
        let user = text(&["HOME"]).map_or_else(std::env::temp_dir, PathBuf::from);
        let path = |names: &[&str]| text(names).map(|value| expand(&value, &user));

        let home = path(&["HF_HOME"]).unwrap_or_else(|| {
            let caches = path(&["XDG_CACHE_HOME"]).unwrap_or_else(|| user.join(".cache"));
            caches.join("huggingface")
        });
        let token = if is_set(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]) {
            None
        } else {
            text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| {
                let file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| home.join("token"));
                std::fs::read_to_string(file).ok()
            })
        };
        let token = token.map(|token| token.trim().to_owned());
        Self {
            endpoint: text(&["HF_ENDPOINT"]).unwrap_or_else(|| ENDPOINT.to_owned()),
            token: token.filter(|token| !token.is_empty()).map(HubToken),
            cache_dir: path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
                .unwrap_or_else(|| home.join("hub")),
            offline: is_set(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]),
            answer_within: seconds("HF_HUB_ETAG_TIMEOUT"),
            stall_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT"),
        }
    }
}

/// Replaces a leading `~` of a path with the user's home directory, since configuration files of
/// services, unlike shells, do not expand it.
fn expand(path: &str, user: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => user.join(rest),
        None => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(set: &[(&str, &str)]) -> HubSettings {
        HubSettings::from_variables(|name| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_may_name_another_hub_or_none() {
        let default = settings(&[("HF_ENDPOINT", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(default.endpoint, ENDPOINT);
        assert!(!default.offline);
        assert_eq!(default.answer_within, Duration::from_secs(10));
        assert_eq!(default.stall_timeout, Duration::from_secs(10));
        let other = settings(&[
            ("HF_ENDPOINT", "http://mirror"),
            ("HF_HUB_OFFLINE", "TRUE"),
            ("HF_HUB_ETAG_TIMEOUT", "3"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
        ]);
        assert_eq!(other.endpoint, "http://mirror");
        assert!(other.offline);
        assert_eq!(other.answer_within, Duration::from_secs(3));
        assert_eq!(other.stall_timeout, Duration::from_secs(10));
    }

    #[test]
    fn the_most_particular_variable_names_the_cache() {
        let mut set = vec![("HOME", "/home/ann")];
        let mut cache = |variable: (&'static str, &'static str)| {
            set.push(variable);
            settings(&set).cache_dir
        };
        for (variable, expected) in [
            (("UNUSED", ""), "/home/ann/.cache/huggingface/hub"),
            (("XDG_CACHE_HOME", "/xdg"), "/xdg/huggingface/hub"),
            (("HF_HOME", "~/hf"), "/home/ann/hf/hub"),
            (("HUGGINGFACE_HUB_CACHE", "/old"), "/old"),
            (("HF_HUB_CACHE", "/new"), "/new"),
        ] {
            assert_eq!(cache(variable), Path::new(expected));
        }
    }

    #[test]
    fn a_token_comes_from_the_environment_or_else_from_the_file_of_the_last_login() {
        let home = tempfile::TempDir::new().unwrap();
        let home_path = home.path().to_str().unwrap();
        let token = |set: &[(&str, &str)]| {
            let set = [&[("HF_HOME", home_path)], set].concat();
            settings(&set).token.map(|token| token.as_str().to_owned())
        };
        assert_eq!(token(&[]), None);
        std::fs::write(home.path().join("token"), "hf_stored\n").unwrap();
        std::fs::write(home.path().join("other"), "hf_other").unwrap();
        let other = home.path().join("other");
        let other = ("HF_TOKEN_PATH", other.to_str().unwrap());
        assert_eq!(token(&[]).as_deref(), Some("hf_stored"));
        assert_eq!(token(&[other]).as_deref(), Some("hf_other"));
        let given = ("HF_TOKEN", " hf_given ");
        assert_eq!(token(&[given, other]).as_deref(), Some("hf_given"));
        assert_eq!(
            token(&[given, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]),
            None
        );
        let settings = settings(&[given]);
        assert!(!format!("{settings:?}").contains("hf_given"));
    }
}
