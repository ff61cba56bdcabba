//! Keys and values that leave the engine and come back: what the front end asks of the worker, and
//! what the worker gives away.
//!
//! The engine does not know where they are kept. A block is named by the prefix it ends, so it can
//! be found there by whoever knows the tokens.

use tokio::sync::oneshot;

use super::blocks::PrefixId;
use super::event::GenerateError;
use super::handle::{Command, EngineHandle};
use crate::request::Tenant;

/// A block of keys and values that the pool has no more room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictedBlock {
    /// The tokens up to its end.
    pub prefix: PrefixId,
    /// Its content, as [`KvCache::read_block`](crate::kernels::kv::KvCache::read_block) gives it.
    pub bytes: Vec<u8>,
}

/// What the front end asks of the worker.
pub(super) enum Exchange {
    Resident {
        tenant: Tenant,
        tokens: Vec<u32>,
        reply: oneshot::Sender<usize>,
    },
    Import {
        tenant: Tenant,
        tokens: Vec<u32>,
        first_block: usize,
        bytes: Vec<u8>,
        reply: oneshot::Sender<usize>,
    },
}

impl EngineHandle {
    /// How many tokens of a context, from its start on, are in full blocks of the KV cache.
    ///
    /// # Errors
    /// [`GenerateError::EngineGone`] if the worker is gone.
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

    /// Puts blocks of a context back into the KV cache. `tokens` are the context's tokens from its
    /// start, `bytes` the contents of its blocks from `first_block` on, each
    /// [`kv_block_bytes`](super::EngineStatus::kv_block_bytes) long (an end that is not a whole block
    /// is not looked at). The blocks before must be in the cache.
    ///
    /// Gives how many of the blocks are in the cache now: fewer if the ones before are not, or if
    /// there is no room that neither a running request nor this import needs.
    ///
    /// # Errors
    /// [`GenerateError::EngineGone`] if the worker is gone.
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
