//! What an architecture gives; all that the rest of the program asks of a [`Model`](super::Model) follows from
//! it.
//!
//! An architecture's file has its blocks and how they are loaded, and nothing that is the same for
//! another one.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};

use super::batch::Batch;
use super::layers::Vocabulary;
use super::spec::ModelSpec;
use super::stage::Observe;
use crate::backend::{Linear, Norm};
use crate::kernels::Pool;
use crate::kernels::attention::AttentionShape;
use crate::kernels::kv::KvCache;

/// A model's blocks, and what is around them.
pub(super) trait Architecture: Send + Sync {
    /// Returns what comes before and after the blocks.
    fn ends(&self) -> &Ends;

    /// Computes the residual stream after the last block, `[rows, hidden_width]`, and writes all rows' keys
    /// and values into the cache. `observe` is called with every stage.
    ///
    /// # Errors
    /// If the batch does not fit the model or the cache, or `observe` fails.
    fn blocks(&self, batch: Batch, kv: &KvCache, observe: &mut Observe<'_>) -> Result<Tensor>;

    /// Returns the parts of a block; `None` if there is no such block.
    fn block(&self, block: usize) -> Option<BlockParts<'_>>;

    /// Returns the embeddings of positions, `[context_length * hidden_width]`, if they are added to those of
    /// tokens.
    fn position_table(&self) -> Option<&[f32]> {
        None
    }
}

/// What comes before and after a model's blocks.
pub(super) struct Ends {
    pub spec: ModelSpec,
    pub pool: Arc<Pool>,
    pub device: Device,
    /// Token embeddings and output projection.
    pub vocabulary: Vocabulary,
    /// The norm between the last block and the output projection.
    pub norm: Box<dyn Norm>,
    /// Norms of the token embeddings, once an inspection needs them.
    pub embedding_norms: OnceLock<Vec<f32>>,
}

impl Ends {
    /// Computes the embeddings of tokens, scaled: `[ids, hidden_width]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let width = self.spec.hidden_width;
        let mut x = vec![0.0; ids.len() * width];
        self.vocabulary.add_embeddings(ids, &mut x)?;
        Tensor::from_vec(x, (ids.len(), width), &self.device)
    }
}

/// The parts of a block that are looked into.
pub(super) struct BlockParts<'a> {
    /// The matrices of attention, in the order of computation.
    pub attention: Vec<&'a dyn Linear>,
    /// The matrices of the feed-forward network, in the order of computation; the last one has the neurons'
    /// output weights.
    pub mlp: Vec<&'a dyn Linear>,
    /// Sizes and parameters of attention.
    pub shape: AttentionShape,
    /// Weights of a norm between the feed-forward network and the residual stream, `[hidden_width]`.
    pub post_norm: Option<&'a [f32]>,
    /// Norms of what neurons write, once an inspection needs them.
    pub neuron_norms: &'a OnceLock<Vec<f32>>,
}
