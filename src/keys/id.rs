//! The id of a key.

use std::borrow::Borrow;
use std::fmt;

use ring::error::Unspecified;
use serde::Serialize;

use super::digits::{ID_DIGITS, is_digit, random_digits};
use super::invalid::InvalidKey;

/// The id of a key: a random number, which is part of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct KeyId(String);

impl KeyId {
    /// Creates the id of a new key.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn random() -> Result<Self, Unspecified> {
        random_digits::<{ ID_DIGITS / 2 }>().map(Self)
    }

    /// Returns the digits of the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for KeyId {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        if text.len() == ID_DIGITS && text.bytes().all(is_digit) {
            Ok(Self(text))
        } else {
            Err(InvalidKey::Id)
        }
    }
}

impl Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
