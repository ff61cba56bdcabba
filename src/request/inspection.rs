//! What an inspection shows of a forward pass.

use std::ops::Range;
use std::sync::Arc;

/// The stages of a pass to show. Blocks, heads and positions count from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectionWanted {
    /// Positions to show, at least one, within the prompt.
    pub rows: Range<usize>,
    /// The embeddings of tokens and positions.
    pub embedding: Option<EmbeddingWanted>,
    /// Norms of the residual stream and of what each block writes into it.
    pub residual: bool,
    /// Attention weights.
    pub attention: Option<AttentionWanted>,
    /// The strongest neurons of the feed-forward networks.
    pub neurons: Option<NeuronsWanted>,
    /// Number of most likely tokens to show after each block (the logit lens).
    pub lens: Option<usize>,
    /// The logits after the last position.
    pub logits: bool,
    /// What each filter of sampling removes after the last position.
    pub sampling: Option<SamplingWanted>,
}

/// The embeddings to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingWanted {
    /// Number of tokens with the nearest embeddings.
    pub nearest: usize,
    /// Whether the embeddings themselves are shown, not only their norms.
    pub values: bool,
}

/// The attention weights to show: those of every head in `heads` of every block in `layers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionWanted {
    /// Blocks.
    pub layers: Vec<usize>,
    /// Query heads.
    pub heads: Vec<usize>,
    /// Whether the weights of all positions are shown, from 0 to the last one of the prompt.
    pub map: bool,
    /// Whether queries, keys and values are shown too.
    pub qkv: bool,
}

/// The neurons to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeuronsWanted {
    /// Blocks.
    pub layers: Vec<usize>,
    /// Number of neurons per position.
    pub top: usize,
}

/// The sampling to show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SamplingWanted {
    /// Number of tokens that were sampled before; they are the last ones of the prompt.
    pub sampled: usize,
    /// Tokens before the prompt, which the repetition penalty sees too: those of a session that are
    /// beyond the window.
    pub earlier: Arc<[u32]>,
}

impl InspectionWanted {
    /// Returns the first position that the pass is observed at.
    #[must_use]
    pub fn observed_from(&self) -> usize {
        match &self.attention {
            Some(attention) if attention.map => 0,
            _ => self.rows.start,
        }
    }
}
