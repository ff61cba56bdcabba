//! Blocks outside of the KV cache: those that leave it, and those that come back.

use super::blocks::PrefixId;
use super::scheduler::StoredParts;
use crate::kernels::kv::KvPart;

/// A part of a block evicted from the KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictedBlock {
    /// Hash of all tokens up to its end.
    pub prefix: PrefixId,
    /// The part: that of the global layers is all of it where window layers have no slots.
    pub part: KvPart,
    /// Its content, as [`KvCache::read_block`](crate::kernels::kv::KvCache::read_block) returns it.
    pub bytes: Vec<u8>,
}

/// A block to restore to the KV cache. What is not there is either in the cache already, or computed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredBlock {
    /// Its part in the global layers.
    pub global: Option<Vec<u8>>,
    /// Its part in the window layers.
    pub window: Option<Vec<u8>>,
}

impl StoredBlock {
    pub(super) fn parts(&self) -> StoredParts {
        StoredParts {
            global: self.global.is_some(),
            window: self.window.is_some(),
        }
    }

    /// Returns the content of a part.
    #[must_use]
    pub fn part(&mut self, part: KvPart) -> &mut Option<Vec<u8>> {
        match part {
            KvPart::Global => &mut self.global,
            KvPart::Window => &mut self.window,
        }
    }
}

/// How much of a context is in the KV cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resident {
    /// Leading tokens in full blocks that a sequence can continue.
    pub tokens: usize,
    /// For each leading full block in the cache, whether its part in the window layers is there too;
    /// always where they have no slots.
    pub windows: Vec<bool>,
}
