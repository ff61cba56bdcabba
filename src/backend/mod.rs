//! The seam between models and what computes them.
//!
//! A model asks a [`Backend`] for its layers and calls them; it does not know which backend it runs
//! on. [`cpu`] is Skald's own kernels. [`candle`] is candle's own operations: slower, but
//! independent of the kernels, so the kernels are tested against it.

pub mod candle;
pub mod cpu;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::kernels::Pool;
use crate::kernels::attention::{AttentionPlan, AttentionShape};
use crate::kernels::kv::LayerKv;
use crate::kernels::linear::{Epilogue, RawWeight, WeightDtype};
use crate::kernels::prefetch::MemoryRange;
use crate::kernels::rotary::RotarySettings;

/// Makes the layers of a model.
pub trait Backend: Send + Sync {
    /// Returns the backend's name, for logs and fingerprints. Two backends with the same name give
    /// the same results bit for bit.
    fn name(&self) -> &'static str;

    /// Returns the precision that weights are held in.
    fn weight_dtype(&self) -> WeightDtype;

    /// Returns the device of all tensors, the KV cache included.
    fn device(&self) -> &Device;

    /// Returns the compute threads, which sampling uses too.
    fn pool(&self) -> &Arc<Pool>;

    /// Returns the same backend with the precision for adapters, whose matrices are small: never less than bf16.
    fn for_adapters(&self) -> Box<dyn Backend>;

    /// Makes a linear layer of matrices that read the same features and whose outputs follow one
    /// another: queries, keys and values, for example. Their stored types may differ.
    ///
    /// # Errors
    /// If lengths do not match the shapes, a matrix's type is not supported, or memory can't be
    /// allocated.
    fn linear(&self, weights: &[RawWeight<'_>], bias: Option<&[f32]>) -> Result<Box<dyn Linear>>;

    /// Makes a layer norm over rows of `weight.len()` elements.
    ///
    /// # Errors
    /// If `weight` is empty or `bias` has a different length, or `eps` is negative or not finite.
    fn layer_norm(&self, weight: &[f32], bias: &[f32], eps: f64) -> Result<Box<dyn Norm>>;

    /// Makes an RMS norm over rows of `weight.len()` elements, `x / sqrt(mean(x^2) + eps) * weight`.
    ///
    /// # Errors
    /// If `weight` is empty, or `eps` is negative or not finite.
    fn rms_norm(&self, weight: &[f32], eps: f64) -> Result<Box<dyn Norm>>;

    /// Makes the rotary positions of one layer.
    ///
    /// # Errors
    /// As [`RotarySettings::check`].
    fn rotary(&self, settings: RotarySettings<'_>) -> Result<Box<dyn Rotary>>;

    /// Makes the attention of one layer.
    ///
    /// # Errors
    /// If the shape is not valid.
    fn attention(&self, shape: AttentionShape) -> Result<Box<dyn Attention>>;
}

/// A linear layer: `y = x W + b`.
pub trait Linear: Send + Sync {
    /// Computes `[rows, in] -> [rows, out]`, in f32.
    ///
    /// # Errors
    /// If the shape or type of `x`, or of the epilogue's tensor, is not the layer's.
    fn forward(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor>;

    /// Adds the weights of individual outputs to the rows of `x`, `[outputs, in]`: token embeddings
    /// that are tied to this layer.
    ///
    /// # Errors
    /// If an output does not exist, or `x` has a different length.
    fn add_weights_of(&self, outputs: &[u32], x: &mut [f32]) -> Result<()>;

    /// Returns the size of the weights in memory, in bytes.
    fn bytes(&self) -> usize;

    /// Returns the memory that a pass over the layer reads; empty if it is not known.
    fn memory(&self) -> MemoryRange {
        MemoryRange::default()
    }

    /// Records the memory that the next layer reads, as a hint for prefetching. Only the first call
    /// has an effect.
    fn set_next(&self, _next: MemoryRange) {}
}

/// Normalization of rows.
pub trait Norm: Send + Sync {
    /// Normalizes each row of `x`, `[rows, n]` f32, into a tensor of the same shape.
    ///
    /// # Errors
    /// If `x` has a different shape or type, or can't be read in place.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// Computes `residual + norm(x)`, both `[rows, n]` f32.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), or if the residual has a different shape.
    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor>;
}

/// Rotary positions.
pub trait Rotary: Send + Sync {
    /// Normalizes the queries and keys of every row, if the layer has norms for them, and rotates them
    /// by the row's position: `[rows, (heads + 2 * kv_heads) * head_width]`, of the same shape, f32.
    ///
    /// The result may take over the memory of `qkv`, so other tensors that share it must not be read
    /// afterwards.
    ///
    /// # Errors
    /// If the shape or type of `qkv` is not the layer's, or it has not a row for every position.
    fn forward(&self, qkv: Tensor, positions: &[u32]) -> Result<Tensor>;
}

/// Causal attention over a layer's KV cache.
pub trait Attention: Send + Sync {
    /// Writes the rows' keys and values into the cache, then lets every row attend to its own
    /// sequence up to its own position: `[rows, (heads + 2 * kv_heads) * head_width]` ->
    /// `[rows, heads * head_width]`, f32.
    ///
    /// # Errors
    /// If the shapes of `qkv`, the cache and the plan do not match.
    fn forward(&self, qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<Tensor>;
}
