//! The stored state of a session, in memory and in its file.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::sealed::{Fingerprint, Seal};
use crate::text::Tokenizer;

/// The stored state of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct History {
    pub tokens: Arc<[u32]>,
    pub created: SystemTime,
    pub last_used: SystemTime,
}

/// Returns the fingerprint of a tokenizer. The meaning of token ids depends on the tokenizer alone, so
/// histories stay valid when weights change.
#[must_use]
pub fn tokenizer_fingerprint(tokenizer: &Tokenizer, vocab_size: usize) -> Fingerprint {
    let mut hash = blake3::Hasher::new();
    for id in 0..u32::try_from(vocab_size).unwrap_or(u32::MAX) {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Fingerprint(*hash.finalize().as_bytes())
}

/// Returns the seal of history files.
pub(super) fn seal(fingerprint: Fingerprint) -> Seal {
    Seal {
        kind: *b"SKALDSES",
        version: 1,
        fingerprint,
    }
}

impl History {
    /// Returns a history whose last turn ends now, as its first does if `created` is `None`.
    pub fn used_now(created: Option<SystemTime>, tokens: Arc<[u32]>) -> Self {
        let now = SystemTime::now();
        Self {
            tokens,
            created: created.unwrap_or(now),
            // The clock may have been set back since.
            last_used: created.map_or(now, |created| now.max(created)),
        }
    }

    /// Encodes the content of a history file: the times of creation and last use in nanoseconds since
    /// 1970 (8 bytes each), then the tokens (4 bytes each), all little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + 4 * self.tokens.len());
        for time in [self.created, self.last_used] {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
            bytes.extend_from_slice(&nanos.to_le_bytes());
        }
        bytes.extend(encode_tokens(&self.tokens));
        bytes
    }

    /// Decodes the content of a history file; `None` if it is not valid.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (created, rest) = bytes.split_first_chunk()?;
        let (last_used, rest) = rest.split_first_chunk()?;
        let time = |nanos: &[u8; 8]| {
            UNIX_EPOCH.checked_add(Duration::from_nanos(u64::from_le_bytes(*nanos)))
        };
        Some(Self {
            tokens: decode_tokens(rest)?,
            created: time(created)?,
            last_used: time(last_used)?,
        })
    }

    /// Returns whether the session has been idle for longer than `ttl`.
    pub fn has_expired(&self, ttl: Option<Duration>) -> bool {
        has_expired(self.last_used, ttl)
    }
}

/// Returns whether more than `ttl` has passed since `last_used`.
pub(super) fn has_expired(last_used: SystemTime, ttl: Option<Duration>) -> bool {
    let idle = last_used.elapsed().unwrap_or_default();
    ttl.is_some_and(|ttl| idle > ttl)
}

/// Encodes tokens as 4 bytes each, little endian.
pub(super) fn encode_tokens(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// Decodes tokens encoded by [`encode_tokens`]; `None` if the length is not a multiple of 4.
pub(super) fn decode_tokens(bytes: &[u8]) -> Option<Arc<[u32]>> {
    let (tokens, rest) = bytes.as_chunks();
    let tokens = tokens.iter().map(|&id| u32::from_le_bytes(id));
    rest.is_empty().then(|| tokens.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_decoded_as_it_was_encoded() {
        let created = UNIX_EPOCH + Duration::from_nanos(1_764_000_000_123_456_789);
        for tokens in [vec![], vec![0, 50256, u32::MAX]] {
            let history = History {
                tokens: tokens.into(),
                created,
                last_used: created + Duration::from_secs(5),
            };
            let bytes = history.encode();
            assert_eq!(History::decode(&bytes), Some(history));
            assert_eq!(History::decode(&bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(History::decode(&[]), None);
    }
}
