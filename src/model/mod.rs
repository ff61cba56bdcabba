//! The architectures, each a forward pass over a batch of rows.
//!
//! A model works on rows and KV blocks; it must never know about sequences, sessions or requests.
//!
//! | module | what it is for |
//! |---|---|
//! | [`spec`] | sizes and token ids of a model, for the rest of the program |
//! | [`batch`] | the rows of a forward pass, and its results |
//! | [`gpt2`] | GPT-2 |
//! | `layers` | code shared by the architectures |
//! | [`trial`] | the trial forward pass before a model is served |

pub mod batch;
pub mod gpt2;
mod layers;
pub mod spec;
pub mod trial;

use candle_core::Result;

use self::batch::{Batch, Outputs};
use self::gpt2::Gpt2;
pub use self::layers::LoadError;
pub use self::spec::ModelSpec;
use crate::backend::Backend;
use crate::checkpoint::ModelFiles;
use crate::kernels::Pool;
use crate::kernels::kv::{KvCache, KvDtype};

/// A loaded model of one of the architectures. This is an enum rather than a trait because the set
/// is closed and has one caller, the inference worker.
pub enum Model {
    /// GPT-2.
    Gpt2(Gpt2),
}

impl Model {
    /// Reads the weights of the files' architecture and has the backend prepare them.
    ///
    /// # Errors
    /// [`LoadError`], with file and tensor, if the checkpoint does not match its configuration.
    pub fn load(files: &ModelFiles, backend: &dyn Backend) -> std::result::Result<Self, LoadError> {
        Ok(Self::Gpt2(Gpt2::load(files, backend)?))
    }

    /// Returns the model's sizes and tokens.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        match self {
            Self::Gpt2(model) => model.spec(),
        }
    }

    /// Returns the compute threads, for sampling from the logits.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        match self {
            Self::Gpt2(model) => model.pool(),
        }
    }

    /// Returns the size in bytes of the prepared weights.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        match self {
            Self::Gpt2(model) => model.weight_bytes(),
        }
    }

    /// Returns the size in bytes of one KV block, all layers together.
    #[must_use]
    pub fn kv_block_bytes(&self, dtype: KvDtype) -> usize {
        let spec = self.spec();
        KvCache::block_bytes(dtype, spec.layers, spec.kv_heads, spec.head_width)
    }

    /// Creates an empty KV cache of `blocks` blocks.
    ///
    /// # Errors
    /// If its memory can't be allocated.
    pub fn kv_cache(&self, dtype: KvDtype, blocks: usize) -> Result<KvCache> {
        match self {
            Self::Gpt2(model) => model.kv_cache(dtype, blocks),
        }
    }

    /// Runs one forward pass over the rows of a batch: writes their keys and values into the cache and
    /// returns the logits and hidden states of the rows that ask for them.
    ///
    /// # Errors
    /// If the batch does not match the model or the cache.
    pub fn forward(&self, batch: Batch, kv: &KvCache) -> Result<Outputs> {
        match self {
            Self::Gpt2(model) => model.forward(batch, kv),
        }
    }
}
