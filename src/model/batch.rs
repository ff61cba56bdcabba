//! The rows of one forward pass, and its results.

use candle_core::Tensor;

use super::adapter::AdapterRows;
use crate::kernels::kv::SequenceSpan;

/// The rows of one forward pass.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token ids, `[rows]`.
    pub ids: Vec<u32>,
    /// Position of each token in its own context, `[rows]`, below the context length.
    pub positions: Vec<u32>,
    /// KV blocks that the rows belong to.
    pub spans: Vec<SequenceSpan>,
    /// Rows whose logits are computed, in order.
    pub logits_rows: Vec<u32>,
    /// Rows whose logits are computed afterwards in pieces, in order: there may be so many that all of their
    /// logits would not fit in memory.
    pub scored_rows: Vec<u32>,
    /// Rows whose hidden states are returned, in order.
    pub hidden_rows: Vec<u32>,
    /// The adapters of rows that have one; each row has one at most.
    pub adapters: Vec<AdapterRows>,
}

/// The results of one forward pass.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// `[logits_rows, vocab_size]`
    pub logits: Tensor,
    /// After the last norm, as [`Model::logits`](super::Model::logits) takes them:
    /// `[scored_rows, hidden_width]`
    pub scored: Tensor,
    /// After the last norm: `[hidden_rows, hidden_width]`
    pub hidden: Tensor,
}
