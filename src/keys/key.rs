//! A key: its id, name, scopes and limits.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use clap::ValueEnum;
use serde::Serialize;
use toml::value::Datetime;

use super::id::KeyId;
use super::invalid::{InvalidKey, LONGEST_NAME};
use super::secret::SecretHash;

/// The name of a key for people; also its label in `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct KeyName(String);

impl KeyName {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for KeyName {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        if (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(allowed) {
            Ok(Self(text))
        } else {
            Err(InvalidKey::Name)
        }
    }
}

impl FromStr for KeyName {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A permission of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KeyScope {
    /// All client endpoints: generate, embed, tokenize, use sessions, read about the model.
    Generate,
    /// `/metrics`.
    Metrics,
    /// All of the above.
    Admin,
}

impl KeyScope {
    /// Returns the scope of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut all = Self::value_variants().iter().copied();
        all.find(|scope| scope.as_str() == name)
    }

    /// Returns the name of the scope in files and errors.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// The limits of a key; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct KeyLimits {
    /// Maximum requests per minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Maximum tokens per minute, of prompts and generated.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Maximum concurrent requests, each until its answer has ended.
    pub concurrent_requests: Option<NonZeroU32>,
}

/// A key in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Id of the key.
    pub id: KeyId,
    /// Name of the key.
    pub name: KeyName,
    /// Hash of its secret.
    pub hash: SecretHash,
    /// Permissions of the key.
    pub scopes: Vec<KeyScope>,
    /// The limits of the key.
    pub limits: KeyLimits,
    /// Whether its requests can set a `priority` below 0.
    pub may_prioritize: bool,
    /// Time of its creation, if the file has it.
    pub created: Option<Datetime>,
}

impl Key {
    /// Returns whether the key has this scope.
    #[must_use]
    pub fn has(&self, scope: KeyScope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&KeyScope::Admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["ada", "team-a.prod:1@example", &"a".repeat(64)] {
            assert!(good.parse::<KeyName>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a\"b", "ä", "a\n", &"a".repeat(65)] {
            assert_eq!(bad.parse::<KeyName>(), Err(InvalidKey::Name), "{bad:?}");
        }
    }

    #[test]
    fn an_error_does_not_repeat_what_was_given() {
        let secret = "skald_0123456789ab_0123456789abcdef0123456789abcdef0123456789abcdef0123";
        let name = secret.parse::<KeyName>().unwrap_err().to_string();
        let id = KeyId::try_from(secret.to_owned()).unwrap_err().to_string();
        assert!(!name.contains("0123456789ab") && !id.contains("0123456789ab"));
    }

    #[test]
    fn the_scope_admin_includes_all_others() {
        let mut key = Key {
            id: KeyId::random().unwrap(),
            name: "ada".parse().unwrap(),
            hash: SecretHash::NONE,
            scopes: vec![KeyScope::Metrics],
            limits: KeyLimits::default(),
            may_prioritize: false,
            created: None,
        };
        assert!(key.has(KeyScope::Metrics));
        assert!(!key.has(KeyScope::Generate) && !key.has(KeyScope::Admin));
        key.scopes = vec![KeyScope::Admin];
        assert!(key.has(KeyScope::Metrics) && key.has(KeyScope::Generate));
    }
}
