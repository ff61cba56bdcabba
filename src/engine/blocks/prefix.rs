//! Prefix ids, and the tokens of one block.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::BLOCK_SIZE;
use crate::request::Tenant;

/// Name of an exact sequence of whole blocks of tokens from the start of a tenant's context: a chain of
/// BLAKE3 hashes, so that it means the same in every process and can name a file.
///
/// Finding two sequences with the same name takes 2^64 hashes, and both would be of the same
/// tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixId([u8; 16]);

impl PrefixId {
    /// Returns the empty prefix, from which all contexts of a tenant start.
    #[must_use]
    pub fn root(tenant: Tenant) -> Self {
        let hash = blake3::derive_key("skald 2026-11 prefix of a context", tenant.as_bytes());
        Self::cut(&hash)
    }

    /// Returns the empty prefix of contexts that an adapter computes: `digest` is that of the adapter.
    #[must_use]
    pub fn adapted(self, digest: &[u8; 32]) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("skald 2026-11 adapter of a context");
        hash.update(&self.0).update(digest);
        Self::cut(hash.finalize().as_bytes())
    }

    /// Returns this prefix extended by one block of tokens.
    #[must_use]
    pub fn then(self, tokens: &[u32; BLOCK_SIZE]) -> Self {
        let mut bytes = [0; 16 + 4 * BLOCK_SIZE];
        let (parent, rest) = bytes.split_at_mut(16);
        parent.copy_from_slice(&self.0);
        for (bytes, token) in rest.as_chunks_mut().0.iter_mut().zip(tokens) {
            *bytes = token.to_le_bytes();
        }
        Self::cut(blake3::hash(&bytes).as_bytes())
    }

    /// Returns its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn cut(hash: &[u8; 32]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Self(id)
    }
}

/// In hexadecimal digits.
impl fmt::Display for PrefixId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Parses the output of [`Display`](fmt::Display).
impl FromStr for PrefixId {
    type Err = InvalidPrefixId;

    fn from_str(digits: &str) -> Result<Self, InvalidPrefixId> {
        let is_one = digits.len() == 32 && digits.bytes().all(|d| d.is_ascii_hexdigit());
        let id = u128::from_str_radix(digits, 16).ok().filter(|_| is_one);
        id.map(|id| Self(id.to_be_bytes())).ok_or(InvalidPrefixId)
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a prefix id has 32 hexadecimal digits")]
pub struct InvalidPrefixId;

impl fmt::Debug for PrefixId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefixId({self})")
    }
}

/// Up to one block of tokens, ordered lexicographically.
#[derive(Clone, Copy)]
pub(super) struct BlockTokens {
    tokens: [u32; BLOCK_SIZE],
    len: usize,
}

impl BlockTokens {
    /// Returns the first tokens of `tokens`, at most one block.
    pub fn first_of(tokens: &[u32]) -> Self {
        let len = tokens.len().min(BLOCK_SIZE);
        let mut block = [0; BLOCK_SIZE];
        block[..len].copy_from_slice(&tokens[..len]);
        Self { tokens: block, len }
    }

    pub fn as_slice(&self) -> &[u32] {
        &self.tokens[..self.len]
    }
}

/// Returns the length of the common prefix of two runs of tokens.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PartialEq for BlockTokens {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for BlockTokens {}

impl PartialOrd for BlockTokens {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BlockTokens {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl fmt::Debug for BlockTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_the_same_name_in_every_process_and_no_other_has_it() {
        let root = PrefixId::root(Tenant::ANONYMOUS);
        assert_eq!(root.to_string(), "709d56f7207d2f27ecb279ab2ac79f4c");
        let first = root.then(&[1; BLOCK_SIZE]);
        assert_eq!(first.to_string(), "cd218f61a2f6abfa509fd31886bfa8a8");
        let other = PrefixId::root(Tenant::of_key(b"sk"));
        let all = [
            root,
            other,
            first,
            other.then(&[1; BLOCK_SIZE]),
            root.then(&[2; BLOCK_SIZE]),
            first.then(&[1; BLOCK_SIZE]),
        ];
        assert_eq!(first.to_string().parse(), Ok(first));
        assert_eq!("+".repeat(32).parse::<PrefixId>(), Err(InvalidPrefixId));
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
