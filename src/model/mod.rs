//! The architectures, each a forward pass over a batch of rows.
//!
//! A model works on rows and KV blocks; it must never know about sequences, sessions or requests.
//!
//! | module | what it is for |
//! |---|---|
//! | [`spec`] | sizes and token ids of a model, for the rest of the program |
//! | [`batch`] | the rows of a forward pass, and its results |
//! | [`stage`] | the stages of a pass, for observers |
//! | [`gpt2`] | GPT-2 |
//! | `layers` | code shared by the architectures |
//! | [`trial`] | the trial forward pass before a model is served |

pub mod batch;
pub mod gpt2;
mod layers;
pub mod spec;
pub mod stage;
pub mod trial;

use candle_core::{Result, Tensor};

use self::batch::{Batch, Outputs};
use self::gpt2::Gpt2;
pub use self::layers::LoadError;
pub use self::spec::ModelSpec;
use self::stage::Observe;
use crate::backend::Backend;
use crate::checkpoint::{ModelConfig, ModelFiles};
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
        match &files.config {
            ModelConfig::Gpt2(config) => Ok(Self::Gpt2(Gpt2::load(files, config, backend)?)),
            other => Err(LoadError::Architecture(other.architecture())),
        }
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

    /// Runs one forward pass over the rows of a batch for what an observer sees of it: writes their keys
    /// and values into the cache, and computes no logits.
    ///
    /// # Errors
    /// If the batch does not fit the model or the cache, or `observe` fails.
    pub fn forward_observed(
        &self,
        batch: Batch,
        kv: &KvCache,
        observe: &mut Observe<'_>,
    ) -> Result<()> {
        match self {
            Self::Gpt2(model) => model.blocks(batch, kv, observe).map(drop),
        }
    }

    /// Returns the embeddings of tokens: `[ids, hidden_width]`.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn token_embeddings(&self, ids: &[u32]) -> Result<Vec<f32>> {
        match self {
            Self::Gpt2(model) => model.token_embeddings(ids),
        }
    }

    /// Returns the embeddings that are added for positions, `[positions, hidden_width]`; `None` if the model
    /// has none.
    ///
    /// # Errors
    /// If a position is outside the window.
    pub fn position_embeddings(&self, positions: &[u32]) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Gpt2(model) => model.position_embeddings(positions).map(Some),
        }
    }

    /// Computes the logits that states of the residual stream would give if the model ended there:
    /// `[rows, hidden_width] -> [rows, vocab_size]`. After the last block they are the model's logits.
    ///
    /// # Errors
    /// If `states` has another width.
    pub fn read_off(&self, states: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gpt2(model) => model.read_off(states),
        }
    }

    /// Computes the final norm of states of the residual stream:
    /// `[rows, hidden_width] -> [rows, hidden_width]`.
    ///
    /// # Errors
    /// If `states` has another width.
    pub fn final_norm(&self, states: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gpt2(model) => model.final_norm(states),
        }
    }

    /// Computes how far directions of the residual stream push each token, without the final norm:
    /// `[rows, hidden_width] -> [rows, vocab_size]`. For states after the final norm they are the logits.
    ///
    /// # Errors
    /// If `directions` has another width.
    pub fn push(&self, directions: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gpt2(model) => model.push(directions),
        }
    }

    /// Computes the dot products of rows with all token embeddings:
    /// `[rows, hidden_width] -> [rows, vocab_size]`.
    ///
    /// # Errors
    /// If `rows` has another width.
    pub fn embedding_products(&self, rows: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gpt2(model) => model.embedding_products(rows),
        }
    }

    /// Returns the Euclidean norms of all token embeddings, `[vocab_size]`.
    ///
    /// # Errors
    /// If the embeddings can't be read.
    pub fn embedding_norms(&self) -> Result<&[f32]> {
        match self {
            Self::Gpt2(model) => model.embedding_norms(),
        }
    }

    /// Returns the Euclidean norm of the output weights of every neuron of a block: `[inner_width]`.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn neuron_norms(&self, block: usize) -> Result<&[f32]> {
        match self {
            Self::Gpt2(model) => model.neuron_norms(block),
        }
    }

    /// Returns what neurons of a block write into the residual stream at activation 1:
    /// `[neurons, hidden_width]`.
    ///
    /// # Errors
    /// If there is no such block or neuron.
    pub fn neuron_outputs(&self, block: usize, neurons: &[usize]) -> Result<Vec<f32>> {
        match self {
            Self::Gpt2(model) => model.neuron_outputs(block, neurons),
        }
    }

    /// Returns the bytes of the weights that a block's attention and its feed-forward network read.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn block_bytes(&self, block: usize) -> Result<(usize, usize)> {
        match self {
            Self::Gpt2(model) => model.block_bytes(block),
        }
    }
}
