//! Export and import of KV blocks.
//!
//! The engine does not know where exported blocks are stored. A block is identified by the prefix
//! that ends with it, so it can be found again from the tokens alone.

use super::blocks::PrefixId;
use super::commands::{Command, Exchange};
use super::event::GenerateError;
use super::handle::EngineHandle;
use crate::request::Tenant;

/// A block evicted from the KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictedBlock {
    /// Hash of all tokens up to its end.
    pub prefix: PrefixId,
    /// Its content, as [`KvCache::read_block`](crate::kernels::kv::KvCache::read_block) returns it.
    pub bytes: Vec<u8>,
}

impl EngineHandle {
    /// Returns the number of leading tokens of a context that are in full blocks of the KV cache.
    ///
    /// # Errors
    /// [`GenerateError::EngineGone`] if the worker has ended.
    pub async fn resident_tokens(
        &self,
        tenant: Tenant,
        tokens: Vec<u32>,
    ) -> Result<usize, GenerateError> {
        self.ask(|reply| {
            Command::Exchange(Exchange::Resident {
                tenant,
                tokens,
                reply,
            })
        })
        .await
    }

    /// Restores blocks of a context to the KV cache. `tokens` are the context's tokens from its start,
    /// `bytes` the content of its blocks from `first_block` on, each
    /// [`kv_block_bytes`](super::EngineStatus::kv_block_bytes) long (an incomplete last block is ignored).
    /// The blocks before them must be in the cache.
    ///
    /// Returns the number of the blocks that are in the cache afterwards: fewer if earlier blocks
    /// are missing, or if running requests leave too little room.
    ///
    /// # Errors
    /// [`GenerateError::EngineGone`] if the worker has ended.
    pub async fn import_kv(
        &self,
        tenant: Tenant,
        tokens: Vec<u32>,
        first_block: usize,
        bytes: Vec<u8>,
    ) -> Result<usize, GenerateError> {
        self.ask(|reply| {
            Command::Exchange(Exchange::Import {
                tenant,
                tokens,
                first_block,
                bytes,
                reply,
            })
        })
        .await
    }
}
