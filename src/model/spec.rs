//! The properties of a model that the rest of the program uses, for every architecture: sizes and
//! token ids.

/// The sizes and tokens of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Name of the architecture: `model_type` in `config.json`.
    pub architecture: &'static str,
    /// Number of token ids; every id is below it.
    pub vocab_size: usize,
    /// Maximum number of positions in a context.
    pub context_length: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of query heads per block.
    pub heads: usize,
    /// Number of key and value heads per block; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Width of the residual stream.
    pub hidden_width: usize,
    /// Number of neurons in the feed-forward network of a block.
    pub inner_width: usize,
    /// Number of weights, tied ones counted once.
    pub parameters: u64,
    /// Token ids that end a text.
    pub end_of_text: Vec<u32>,
}
