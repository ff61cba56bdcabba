//! The architectures, each a forward pass over a batch of rows.
//!
//! A model works on rows and KV blocks; it must never know about sequences, sessions or requests.
//!
//! | module | what it is for |
//! |---|---|
//! | [`spec`] | sizes and token ids of a model, for the rest of the program |
//! | [`batch`] | the rows of a forward pass, and its results |
//! | [`stage`] | the stages of a pass, for observers |
//! | [`adapter`] | LoRA adapters |
//! | `architecture` | what an architecture gives |
//! | [`gpt2`], [`gemma`], [`llama`] | GPT-2; Gemma 1, 2 and 3; Llama 2 and 3, Qwen 2 and 3 |
//! | `layers` | parts of blocks, and the vocabulary, shared by the architectures |
//! | `loader` | layers of a checkpoint's tensors |
//! | `parts` | single parts of a model, to look into it |
//! | [`trial`] | the trial forward pass before a model is served |

pub mod adapter;
mod architecture;
pub mod batch;
pub mod gemma;
pub mod gpt2;
mod layers;
pub mod llama;
mod loader;
mod parts;
pub mod spec;
pub mod stage;
pub mod trial;

use candle_core::{Result, Tensor};

use self::architecture::{Architecture, Ends};
use self::batch::{Batch, Outputs};
use self::gemma::Gemma;
use self::gpt2::Gpt2;
use self::layers::select_rows;
use self::llama::Llama;
pub use self::loader::LoadError;
use self::loader::Loader;
pub use self::spec::ModelSpec;
use self::stage::{Observe, unobserved};
use crate::backend::{Backend, Linear};
use crate::checkpoint::{ModelConfig, ModelFiles};
use crate::kernels::Pool;
use crate::kernels::kv::{KvCache, KvDtype, KvPart, KvShape};

/// A loaded model of one of the architectures: a closed set with one caller, the inference worker.
pub enum Model {
    /// GPT-2.
    Gpt2(Gpt2),
    /// Gemma 1, 2 and 3.
    Gemma(Gemma),
    /// Llama 2 and 3, Qwen 2 and 3.
    Llama(Llama),
}

impl Model {
    /// Reads all weights of the files' architecture and has the backend prepare them.
    ///
    /// # Errors
    /// [`LoadError`], with file and tensor, if the checkpoint does not match its configuration.
    pub fn load(files: &ModelFiles, backend: &dyn Backend) -> std::result::Result<Self, LoadError> {
        files.checkpoint.validate(&files.config)?;
        for what in files.checkpoint.peculiarities(&files.config) {
            tracing::warn!("{what}");
        }
        let loader = Loader { files, backend };
        let model = match &files.config {
            ModelConfig::Gpt2(config) => Self::Gpt2(Gpt2::load(&loader, config)?),
            ModelConfig::Gemma(config) => Self::Gemma(Gemma::load(&loader, config)?),
            ModelConfig::Llama(config) => Self::Llama(Llama::load(&loader, config)?),
        };
        files.checkpoint.release_pages();
        model.chain();
        Ok(model)
    }

    fn architecture(&self) -> &dyn Architecture {
        match self {
            Self::Gpt2(model) => model,
            Self::Gemma(model) => model,
            Self::Llama(model) => model,
        }
    }

    fn ends(&self) -> &Ends {
        self.architecture().ends()
    }

    /// Returns the linear layers in the order of computation.
    fn linears(&self) -> Vec<&dyn Linear> {
        let blocks = (0..self.spec().layers).filter_map(|i| self.architecture().block(i));
        let blocks = blocks.flat_map(|block| block.attention.into_iter().chain(block.mlp));
        blocks
            .chain([&*self.ends().vocabulary.projection])
            .collect()
    }

    /// Links each linear layer to the one computed after it, and the last to the first, for prefetching.
    fn chain(&self) {
        let layers = self.linears();
        let following = layers.iter().cycle().skip(1);
        for (layer, next) in layers.iter().zip(following) {
            layer.set_next(next.memory());
        }
    }

    /// Returns the model's sizes and tokens.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.ends().spec
    }

    /// Returns the compute threads, for sampling from the logits.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.ends().pool
    }

    /// Returns the size in bytes of the prepared weights.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let linears: usize = self.linears().into_iter().map(Linear::bytes).sum();
        linears + size_of_val(self.architecture().position_table().unwrap_or_default())
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
        let parts = vec![KvPart::Global; self.spec().layers];
        self.divided_kv_cache(dtype, &parts, blocks, 0)
    }

    /// Returns the positions that a row of each block sees, its own included; `None` for all up to its own.
    #[must_use]
    pub fn windows(&self) -> Vec<Option<usize>> {
        let blocks = (0..self.spec().layers).map(|i| self.architecture().block(i));
        blocks.map(|block| block?.shape.window).collect()
    }

    /// Creates an empty KV cache whose blocks are in these parts: `blocks` blocks for the global ones,
    /// `window_blocks` for the others.
    ///
    /// # Errors
    /// If its memory can't be allocated.
    pub fn divided_kv_cache(
        &self,
        dtype: KvDtype,
        parts: &[KvPart],
        blocks: usize,
        window_blocks: usize,
    ) -> Result<KvCache> {
        let spec = self.spec();
        let shape = KvShape {
            blocks,
            heads: spec.kv_heads,
            head_width: spec.head_width,
        };
        KvCache::divided(&self.ends().device, dtype, parts, shape, window_blocks)
    }

    /// Runs one forward pass over the rows of a batch: writes their keys and values into the cache and
    /// returns the logits and hidden states of the rows that ask for them.
    ///
    /// # Errors
    /// If the batch does not match the model or the cache.
    pub fn forward(&self, mut batch: Batch, kv: &KvCache) -> Result<Outputs> {
        let Ends {
            device,
            norm,
            vocabulary,
            ..
        } = self.ends();
        let logits_rows = std::mem::take(&mut batch.logits_rows);
        let scored_rows = std::mem::take(&mut batch.scored_rows);
        let hidden_rows = std::mem::take(&mut batch.hidden_rows);
        let x = self.architecture().blocks(batch, kv, &mut unobserved)?; // [rows, hidden_width]
        let x = norm.forward(&x)?; // [rows, hidden_width] -> [rows, hidden_width]
        let hidden = select_rows(&x, &hidden_rows, device)?; // -> [hidden_rows, hidden_width]
        let scored = select_rows(&x, &scored_rows, device)?; // -> [scored_rows, hidden_width]
        let sampled = select_rows(&x, &logits_rows, device)?; // -> [logits_rows, hidden_width]
        let logits = vocabulary.logits(&sampled)?; // -> [logits_rows, vocab_size]
        Ok(Outputs {
            logits,
            scored,
            hidden,
        })
    }

    /// Computes the logits of rows after the last norm: `[rows, hidden_width] -> [rows, vocab_size]`.
    ///
    /// # Errors
    /// If `rows` has another width.
    pub fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        self.ends().vocabulary.logits(rows)
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
        self.architecture().blocks(batch, kv, observe).map(drop)
    }
}
