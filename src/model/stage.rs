//! The stages of a forward pass, as it reports them to an observer.
//!
//! Observing never changes what is computed: the observer gets the tensors that the next stage reads.

use candle_core::{Result, Tensor};

/// What was computed. Blocks count from 0; `rows` are those of the batch, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The residual stream before block `i`, the embedding for 0; after the last block for `i` = the number
    /// of blocks: `[rows, hidden_width]`.
    Residual(usize),
    /// The normalized rows that a block's attention reads: `[rows, hidden_width]`.
    AttentionInput(usize),
    /// Queries, keys and values of a block as attention reads them, normalized and rotated where the
    /// architecture does that: `[rows, (heads + 2 * kv_heads) * head_width]`.
    Qkv(usize),
    /// The mix of values of all heads of a block, before the output projection:
    /// `[rows, heads * head_width]`.
    Mixed(usize),
    /// The residual stream after a block's attention was added, through a norm of its own where the
    /// architecture has one. The rows' keys and values are in the cache:
    /// `[rows, hidden_width]`.
    Attended(usize),
    /// The normalized rows that a block's feed-forward network reads: `[rows, hidden_width]`.
    NeuronInput(usize),
    /// Activations of the neurons of a block's feed-forward network, times their gates where it is gated:
    /// `[rows, inner_width]`.
    Neurons(usize),
}

/// Called with every stage, in order; an error ends the pass.
pub type Observe<'a> = dyn FnMut(Stage, &Tensor) -> Result<()> + 'a;

/// The observer of a pass that is not looked at.
///
/// # Errors
/// None.
pub fn unobserved(_: Stage, _: &Tensor) -> Result<()> {
    Ok(())
}
