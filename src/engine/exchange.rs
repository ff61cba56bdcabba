//! Export and import of KV blocks.
//!
//! The engine does not know where exported blocks are stored. A block is identified by the prefix
//! that ends with it, so it can be found again from the tokens alone.

use super::commands::{Command, Exchange};
use super::event::GenerateError;
use super::handle::EngineHandle;
use super::stored::{Resident, StoredBlock};
use crate::request::Tenant;

impl EngineHandle {
    /// Returns the number of leading tokens of a context that are in full blocks of the KV cache and that a
    /// sequence can continue.
    ///
    /// # Errors
    /// [`GenerateError::EngineGone`] if the worker has ended.
    pub async fn resident_tokens(
        &self,
        tenant: Tenant,
        tokens: Vec<u32>,
    ) -> Result<usize, GenerateError> {
        Ok(self.resident(tenant, tokens).await?.tokens)
    }

    /// Returns how much of a context is in the KV cache.
    ///
    /// # Errors
    /// [`GenerateError::EngineGone`] if the worker has ended.
    pub async fn resident(
        &self,
        tenant: Tenant,
        tokens: Vec<u32>,
    ) -> Result<Resident, GenerateError> {
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
    /// `blocks` its blocks from `first_block` on, their parts
    /// [`kv_block_bytes`](super::EngineStatus::kv_block_bytes) and
    /// [`kv_slot_bytes`](super::EngineStatus::kv_slot_bytes) long (parts of another length are ignored).
    /// The blocks before them, and those without their global part, must be in the cache.
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
        blocks: Vec<StoredBlock>,
    ) -> Result<usize, GenerateError> {
        self.ask(|reply| {
            Command::Exchange(Exchange::Import {
                tenant,
                tokens,
                first_block,
                blocks,
                reply,
            })
        })
        .await
    }
}
