//! The result of an inspection: what the stages of a forward pass computed, as plain numbers.
//!
//! Rows are the requested positions, in order. All values are the kernels' own, in f32.

use std::time::Duration;

/// The requested stages; all others are `None` or empty.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inspection {
    /// Embeddings.
    pub embedding: Option<EmbeddingRows>,
    /// Norms of the residual stream.
    pub residual: Option<ResidualNorms>,
    /// Attention of single heads, by block, then head.
    pub attention: Vec<HeadAttention>,
    /// Neurons, by block.
    pub neurons: Vec<BlockNeurons>,
    /// Readings of the logit lens: one per state of the residual stream, the embedding first.
    pub lens: Vec<LensReading>,
    /// Logits after the last position, `[vocab_size]`.
    pub logits: Option<Vec<f32>>,
    /// What each filter of sampling removed after the last position.
    pub sampling: Option<SamplingTrace>,
    /// Time and bytes of each stage, in order.
    pub costs: Vec<StageCost>,
}

/// Embeddings of the rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EmbeddingRows {
    /// Token embeddings, `[rows, hidden_width]`.
    pub tokens: Vec<f32>,
    /// Position embeddings, `[rows, hidden_width]`; `None` if the model adds none.
    pub positions: Option<Vec<f32>>,
    /// Per row, the other tokens with the nearest embeddings and their cosines, the nearest first.
    pub nearest: Vec<Vec<(u32, f32)>>,
}

/// Euclidean norms of the residual stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ResidualNorms {
    /// Norms of each state, the embedding first: `[rows]`.
    pub states: Vec<Vec<f32>>,
    /// Norms of what the attention of each block adds: `[rows]`.
    pub attention_writes: Vec<Vec<f32>>,
    /// Norms of what the feed-forward network of each block adds: `[rows]`.
    pub mlp_writes: Vec<Vec<f32>>,
}

/// The attention of one head.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadAttention {
    /// Block.
    pub layer: usize,
    /// Query head.
    pub head: usize,
    /// Weights, row by row: the row of position `p` has `p + 1` weights.
    pub weights: Vec<f32>,
    /// Queries, keys and values of the rows, if requested.
    pub qkv: Option<HeadQkv>,
}

/// Queries, keys and values of one head, `[rows, head_width]` each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeadQkv {
    /// Queries.
    pub q: Vec<f32>,
    /// Keys.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
}

/// The neurons of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockNeurons {
    /// Block.
    pub layer: usize,
    /// Per row, the number of neurons with an activation above 0.
    pub active: Vec<usize>,
    /// Per row, the neurons that add most to the residual stream, the strongest first.
    pub strongest: Vec<Vec<Neuron>>,
}

/// One neuron at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Neuron {
    /// Number of the neuron in the block.
    pub neuron: usize,
    /// Activation.
    pub activation: f32,
    /// Norm of what it adds to the residual stream.
    pub write: f32,
    /// The tokens that it promotes most, the most promoted first.
    pub promotes: Vec<u32>,
}

/// The next token as read off a state of the residual stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LensReading {
    /// Per row, the most likely tokens with their probabilities, the most likely first.
    pub top: Vec<Vec<(u32, f32)>>,
    /// Per row, the entropy in bits.
    pub entropy: Vec<f32>,
}

/// The sampling of one token.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingTrace {
    /// The steps that apply, in order.
    pub steps: Vec<SamplingStep>,
    /// The random number, in [0, 1); `None` if the most likely token is taken.
    pub random: Option<f64>,
    /// The sampled token.
    pub token: u32,
    /// Its probability among the tokens left.
    pub probability: f64,
}

/// One step of sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingStep {
    /// The parameter that controls the step.
    pub parameter: &'static str,
    /// Number of logits that the step changed; `None` for filters, and for temperature, which changes all.
    pub changed: Option<usize>,
    /// Number of tokens left after the step.
    pub left: usize,
    /// Share of the probability before the step that it removed; `None` if it is not a filter.
    pub removed: Option<f64>,
}

/// The cost of one stage, over all chunks of the pass.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCost {
    /// Name: `embedding`, `attention.N` or `mlp.N`.
    pub stage: String,
    /// Time of the stage.
    pub time: Duration,
    /// Bytes of weights, keys and values that the stage read.
    pub bytes: usize,
}
