//! The seam between models and what computes them.
//!
//! A model asks a [`Backend`] for its layers and calls them; it does not know which backend it has.
//! [`cpu`] is Skald's own kernels. [`candle`] is candle's own operations: slower, independent of the
//! kernels, and so what they are compared with.

pub mod candle;
pub mod cpu;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::kernels::Pool;
use crate::kernels::attention::{AttentionPlan, AttentionShape};
use crate::kernels::kv::LayerKv;
use crate::kernels::linear::{Epilogue, RawWeight, WeightDtype};
use crate::kernels::prefetch::MemoryRange;

/// Makes the layers of a model.
pub trait Backend: Send + Sync {
    /// Returns the name of what computes, for logs and fingerprints: results of two backends with
    /// the same name are the same bit for bit.
    fn name(&self) -> &'static str;

    /// Returns the precision that weights are held in.
    fn weight_dtype(&self) -> WeightDtype;

    /// Returns the device of all tensors, the KV cache included.
    fn device(&self) -> &Device;

    /// Returns the compute threads, which sampling uses too.
    fn pool(&self) -> &Arc<Pool>;

    /// Makes a linear layer.
    ///
    /// # Errors
    /// If lengths do not fit the shape, the weights' type is not supported, or memory can't be
    /// allocated.
    fn linear(&self, weight: RawWeight<'_>, bias: Option<&[f32]>) -> Result<Box<dyn Linear>>;

    /// Makes a layer norm over rows of `weight.len()` elements.
    ///
    /// # Errors
    /// If `weight` is empty or of another length than `bias`, or `eps` is negative or not finite.
    fn layer_norm(&self, weight: &[f32], bias: &[f32], eps: f64) -> Result<Box<dyn LayerNorm>>;

    /// Makes the attention of one layer.
    ///
    /// # Errors
    /// If the shape is not possible.
    fn attention(&self, shape: AttentionShape) -> Result<Box<dyn Attention>>;
}

/// A linear layer: `y = x W + b`.
pub trait Linear: Send + Sync {
    /// Computes `[rows, in] -> [rows, out]`, in f32.
    ///
    /// # Errors
    /// If the shape or type of `x`, or of a tensor to add, is not the layer's.
    fn forward(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor>;

    /// Adds the weights of single outputs to the rows of `x`, `[outputs, in]`: token embeddings
    /// that are tied to this layer.
    ///
    /// # Errors
    /// If an output does not exist, or `x` has another length.
    fn add_weights_of(&self, outputs: &[u32], x: &mut [f32]) -> Result<()>;

    /// Returns the size of the weights in memory, in bytes.
    fn bytes(&self) -> usize;

    /// Returns the memory that a pass over the layer reads; empty if it is not known.
    fn memory(&self) -> MemoryRange {
        MemoryRange::default()
    }

    /// Sets, once, the memory that the next layer reads, as a hint to prefetch it.
    fn set_next(&self, _next: MemoryRange) {}
}

/// Layer normalization.
pub trait LayerNorm: Send + Sync {
    /// Normalizes each row of `x`, `[rows, n]` f32, into a tensor of the same shape.
    ///
    /// # Errors
    /// If `x` has another shape or type, or can't be read where it lies.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
}

/// Causal attention over a layer's KV cache.
pub trait Attention: Send + Sync {
    /// Writes the rows' keys and values into the cache, then attends with every row over its own
    /// sequence up to its own position:
    /// `[rows, (heads + 2 * kv_heads) * head_width]` -> `[rows, heads * head_width]`, f32.
    ///
    /// # Errors
    /// If `qkv`, the cache and the plan do not fit each other.
    fn forward(&self, qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<Tensor>;
}
