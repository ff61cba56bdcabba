//! Errors of the parts of a key.

use super::digits::ID_DIGITS;

/// Maximum characters of a key's name.
pub(super) const LONGEST_NAME: usize = 64;

/// Why a part of a key is not valid. Values are left out: one could be a secret in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// The id.
    #[error("`id` must be {} of the characters 0-9 and a-f", ID_DIGITS)]
    Id,
    /// The name.
    #[error("a name must be 1 to {LONGEST_NAME} of the characters A-Z a-z 0-9 - _ . : @")]
    Name,
    /// The hash.
    #[error("`hash` must be 64 of the characters 0-9 and a-f, as `skald keys create` writes it")]
    Hash,
    /// No scopes.
    #[error("`scopes` is empty; it must have at least one of generate, metrics, admin")]
    NoScopes,
    /// Two keys have the same id.
    #[error("another key has the same id")]
    SameId,
    /// Two keys have the same name.
    #[error("another key has the name {0:?}; choose another name")]
    SameName(String),
}
