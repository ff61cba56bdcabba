//! The stored state of a session, in memory and in its file.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ForkedFrom;
use super::sealed::{Fingerprint, Seal};
use crate::request::SessionId;
use crate::text::Tokenizer;

/// The stored state of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct History {
    pub tokens: Arc<[u32]>,
    pub created: SystemTime,
    pub last_used: SystemTime,
    /// Set by the first turn, and kept by all others.
    pub forked_from: Option<ForkedFrom>,
}

/// What a turn stores.
#[derive(Debug, Clone)]
pub(super) struct NewHistory {
    /// End of the session's first turn; `None` if this is the first.
    pub created: Option<SystemTime>,
    pub tokens: Arc<[u32]>,
    pub forked_from: Option<ForkedFrom>,
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

/// Returns the seal of origin files.
pub(super) fn origin_seal(fingerprint: Fingerprint) -> Seal {
    Seal {
        kind: *b"SKALDORG",
        version: 1,
        fingerprint,
    }
}

impl NewHistory {
    /// Returns a first history that begins here.
    #[cfg(any(test, fuzzing))]
    pub fn first(tokens: impl Into<Arc<[u32]>>) -> Self {
        Self {
            created: None,
            tokens: tokens.into(),
            forked_from: None,
        }
    }

    /// Returns the history whose last turn ends now.
    pub fn used_now(self) -> History {
        let now = SystemTime::now();
        History {
            tokens: self.tokens,
            created: self.created.unwrap_or(now),
            // The clock may have been set back since.
            last_used: self.created.map_or(now, |created| now.max(created)),
            forked_from: self.forked_from,
        }
    }
}

impl History {
    /// Encodes the content of a history file: the times of creation and last use in nanoseconds since
    /// 1970 (8 bytes each), then the tokens (4 bytes each), all little endian. The file does not have
    /// `forked_from`: see [`encode_origin`](Self::encode_origin).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + 4 * self.tokens.len());
        for time in [self.created, self.last_used] {
            bytes.extend_from_slice(&nanos(time).to_le_bytes());
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
            forked_from: None,
        })
    }

    /// Encodes the content of an origin file, if the session was forked: the time of its creation as in
    /// the history file, the number of tokens it began with (8 bytes), then the other session's name.
    pub fn encode_origin(&self) -> Option<Vec<u8>> {
        let ForkedFrom { id, at } = self.forked_from.as_ref()?;
        let mut bytes = nanos(self.created).to_le_bytes().to_vec();
        bytes.extend_from_slice(&(*at as u64).to_le_bytes());
        bytes.extend_from_slice(id.as_str().as_bytes());
        Some(bytes)
    }

    /// Takes over `forked_from` from the content of an origin file, unless the file is not valid or
    /// belongs to an earlier session of the same name.
    pub fn decode_origin(&mut self, bytes: &[u8]) {
        self.forked_from = origin(bytes)
            .filter(|(created, _)| *created == nanos(self.created))
            .map(|(_, origin)| origin);
    }

    /// Returns whether the session has been idle for longer than `ttl`.
    pub fn has_expired(&self, ttl: Option<Duration>) -> bool {
        has_expired(self.last_used, ttl)
    }
}

/// Decodes an origin file: the session's time of creation, and where it was forked.
fn origin(bytes: &[u8]) -> Option<(u64, ForkedFrom)> {
    let (created, rest) = bytes.split_first_chunk()?;
    let (at, name) = rest.split_first_chunk()?;
    let origin = ForkedFrom {
        id: SessionId::parse(std::str::from_utf8(name).ok()?).ok()?,
        at: usize::try_from(u64::from_le_bytes(*at)).ok()?,
    };
    Some((u64::from_le_bytes(*created), origin))
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
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
                forked_from: None,
            };
            let bytes = history.encode();
            assert_eq!(History::decode(&bytes), Some(history));
            assert_eq!(History::decode(&bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(History::decode(&[]), None);
    }

    #[test]
    fn an_origin_belongs_to_the_session_of_the_same_time_only() {
        let mut forked = NewHistory {
            forked_from: Some(ForkedFrom {
                id: SessionId::parse("source:1").unwrap(),
                at: 75,
            }),
            ..NewHistory::first([1, 2])
        }
        .used_now();
        let file = forked.encode_origin().unwrap();
        let expected = forked.forked_from.take();
        forked.decode_origin(&file);
        assert_eq!(forked.forked_from, expected);
        for end in 0..17 {
            forked.decode_origin(&file[..end]);
            assert_eq!(forked.forked_from, None, "{end} bytes");
        }
        forked.decode_origin(&[&file[..], b"/"].concat());
        assert_eq!(forked.forked_from, None);
        forked.created += Duration::from_nanos(1);
        forked.decode_origin(&file);
        assert_eq!(forked.forked_from, None);
        assert_eq!(forked.encode_origin(), None);
    }
}
