//! The text that a client sends, and its hash, which the file stores.
//!
//! `skald_<id>_<secret>`: 12 hexadecimal digits that identify the key, and 64 secret ones. The prefix is for
//! tools that search source code and logs for secrets.
//!
//! A secret is 256 random bits. Slow hashes (Argon2, bcrypt) make guessing expensive if there are few
//! possibilities; here there are too many to guess with any hash, so a fast one is as good.

use std::fmt;

use ring::error::Unspecified;

use super::digits::{ID_DIGITS, is_digit, random_digits};
use super::id::KeyId;
use super::invalid::InvalidKey;

/// The beginning of every key.
const PREFIX: &str = "skald_";
/// Bytes of a secret.
const SECRET: usize = 32;

/// A whole key as its owner sends it. Only [`Secret::expose`] shows it.
pub struct Secret(String);

impl Secret {
    /// Creates the secret of a new key.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn random(id: &KeyId) -> Result<Self, Unspecified> {
        let digits = random_digits::<SECRET>()?;
        Ok(Self(format!("{PREFIX}{id}_{digits}")))
    }

    /// Returns the text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the hash that the file stores.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Returns the id in the text that a client sent.
pub(super) fn id(shown: &[u8]) -> Option<&str> {
    let id = shown.strip_prefix(PREFIX.as_bytes())?.get(..ID_DIGITS)?;
    std::str::from_utf8(id).ok()
}

/// The hash of a secret. Two are compared in constant time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash(blake3::Hash);

impl SecretHash {
    /// A hash that no secret has.
    pub(super) const NONE: Self = Self(blake3::Hash::from_bytes([0; 32]));

    /// Returns the hash of the text that a client sent.
    #[must_use]
    pub fn of(shown: &[u8]) -> Self {
        Self(blake3::derive_key("skald 2026-11 API key", shown).into())
    }
}

impl TryFrom<String> for SecretHash {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        if !text.bytes().all(is_digit) {
            return Err(InvalidKey::Hash);
        }
        let hash = blake3::Hash::from_hex(text).map_err(|_| InvalidKey::Hash)?;
        Ok(Self(hash))
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.to_hex(), f)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_are_found_by_their_ids() {
        let ada = KeyId::random().unwrap();
        let (one, two) = (Secret::random(&ada).unwrap(), Secret::random(&ada).unwrap());
        assert_ne!(one.expose(), two.expose());
        assert_ne!(one.hash(), two.hash());
        assert_eq!(one.expose().len(), 6 + 12 + 1 + 64);
        assert_eq!(id(one.expose().as_bytes()), Some(ada.as_str()));
        assert_eq!(id(b"sk-0123456789abcdef"), None);
        assert_eq!(id(b"skald_short"), None);
    }

    #[test]
    fn a_hash_is_read_back_from_its_text_and_shows_no_secret() {
        let secret = Secret::random(&KeyId::random().unwrap()).unwrap();
        let hash = secret.hash();
        assert_eq!(SecretHash::try_from(hash.to_string()).unwrap(), hash);
        assert_eq!(format!("{secret:?} {hash:?}"), "Secret(…) SecretHash(…)");
        for bad in ["", "00", &"g".repeat(64), &"A".repeat(64), secret.expose()] {
            let hash = SecretHash::try_from(bad.to_owned());
            assert_eq!(hash, Err(InvalidKey::Hash), "{bad}");
        }
    }
}
