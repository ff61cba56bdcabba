//! The answer of an inspection.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::values::{Matrix, Values};

/// The stages of a forward pass. Rows are the requested positions; stages not requested are absent. State 0 of
/// the residual stream is the embedding, so there is one state more than layers. Arrays of numbers are
/// `f16` or `f32` (Base64, little-endian), or `values` with `encoding: "json"`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct InspectAnswer {
    /// Name of the inspection.
    pub(super) id: String,
    /// The model.
    pub(super) model: String,
    /// Changes whenever the values may differ.
    pub(super) fingerprint: String,
    /// Tokens of the text.
    pub(super) length: usize,
    /// Tokens of a session's history before the context; position 0 is the first token of the context.
    pub(super) history: usize,
    /// Positions shown.
    pub(super) positions: Page,
    /// The positions of the page before this one; null at the beginning.
    pub(super) next: Option<Page>,
    /// Tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tokens: Option<Vec<InspectedToken>>,
    /// Embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) embedding: Option<EmbeddingStage>,
    /// The residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) residual: Option<ResidualStage>,
    /// Attention heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attention: Option<Vec<AttentionHead>>,
    /// Feed-forward networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mlp: Option<Vec<MlpLayer>>,
    /// The next token, read off after each layer through the final norm and the output projection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lens: Option<LensStage>,
    /// Logits after the last position of the text; absent unless it is among the positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logits: Option<LogitsStage>,
    /// How the next token is sampled; absent unless the last position is among the positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sampling: Option<SamplingStage>,
    /// Cost of each stage.
    pub(super) cost: Vec<CostOfStage>,
}

/// Positions from `from` up to, not including, `to`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InspectPage)]
pub(super) struct Page {
    /// First position.
    pub from: usize,
    /// Position after the last one.
    pub to: usize,
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InspectedToken {
    /// Token id.
    pub id: u32,
    /// Its bytes, in Base64.
    pub bytes: String,
    /// The merges of neighbouring parts that build the token from its bytes, in order.
    pub merges: Vec<MergeStep>,
}

/// A merge.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MergeStep {
    /// The parts after the merge, in Base64.
    pub parts: Vec<String>,
    /// Rank of the merge in the vocabulary; the lowest is applied first.
    pub rank: u32,
}

/// Embeddings.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbeddingStage {
    /// Token embeddings, rows by width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wte: Option<Matrix>,
    /// Position embeddings, rows by width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wpe: Option<Matrix>,
    /// Euclidean norms.
    pub norms: EmbeddingNorms,
    /// Per row, the tokens with the nearest embeddings and their cosines, the nearest first.
    pub nearest: Vec<Vec<(u32, f32)>>,
}

/// Euclidean norms, per row.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbeddingNorms {
    /// Norms of token embeddings.
    pub wte: Vec<f32>,
    /// Norms of position embeddings.
    pub wpe: Vec<f32>,
    /// Norms of their sums.
    pub sum: Vec<f32>,
}

/// Euclidean norms of the residual stream.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ResidualStage {
    /// Norms of the stream, per state and row.
    pub norms: Vec<Vec<f32>>,
    /// Norms of what attention adds, per layer and row.
    pub attention_write: Vec<Vec<f32>>,
    /// Norms of what the feed-forward network adds, per layer and row.
    pub mlp_write: Vec<Vec<f32>>,
}

/// Which rows of attention weights to show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum AttentionForm {
    /// The rows of the positions.
    #[default]
    Rows,
    /// All rows, for at most 4 heads.
    Map,
}

/// The attention of one head.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AttentionHead {
    /// Layer.
    pub layer: usize,
    /// Head.
    pub head: usize,
    /// Which rows of weights.
    pub form: AttentionForm,
    /// Position of the first row.
    pub from: usize,
    /// Position after the last row.
    pub to: usize,
    /// Weights, row by row: the row of position p has p + 1 weights.
    #[serde(flatten)]
    pub weights: Values,
    /// Queries, rows by width of a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q: Option<Matrix>,
    /// Keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<Matrix>,
    /// Values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v: Option<Matrix>,
}

/// The feed-forward network of one layer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MlpLayer {
    /// Layer.
    pub layer: usize,
    /// Per row, the number of neurons with an activation above 0.
    pub active: Vec<usize>,
    /// Per row, the neurons that add most to the residual stream, the strongest first.
    pub top: Vec<Vec<ActiveNeuron>>,
}

/// A neuron.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ActiveNeuron {
    /// Number of the neuron in the layer.
    pub neuron: usize,
    /// Activation.
    pub activation: f32,
    /// Norm of what it adds to the residual stream.
    pub write: f32,
    /// Ids of the tokens that it promotes most, the most promoted first.
    pub promotes: Vec<u32>,
}

/// The logit lens.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LensStage {
    /// Number of states.
    pub layers: usize,
    /// Per state and row, the most likely tokens with their probabilities, the most likely first.
    pub top: Vec<Vec<Vec<(u32, f32)>>>,
    /// Per state and row, the entropy in bits.
    pub entropy: Vec<Vec<f32>>,
}

/// Logits after the last position.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogitsStage {
    #[serde(flatten)]
    pub shown: ShownLogits,
    /// Logarithm of the sum of the exponentials of all logits; a logit minus this is a log-probability.
    pub lse: f32,
}

/// The logits of an answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ShownLogits {
    /// All logits, by token id, if the vocabulary has at most 65536 tokens.
    All(Values),
    /// Otherwise.
    Highest {
        /// The 4096 highest logits with their token ids.
        top: Vec<(u32, f32)>,
    },
}

/// How the next token is sampled.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SamplingStage {
    /// The seed.
    pub seed: u64,
    /// Number of tokens sampled before.
    pub n: usize,
    /// The steps that apply, in order.
    pub steps: Vec<FilterOfSampling>,
    /// The random number, at least 0 and below 1; null if the most likely token is taken.
    pub u: Option<f64>,
    /// The sampled token.
    pub token: u32,
    /// Its probability among the tokens left.
    pub probability: f64,
}

/// A step of sampling.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FilterOfSampling {
    /// The parameter.
    pub filter: &'static str,
    /// Number of logits that the step changed; absent for filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<usize>,
    /// Number of tokens left after the step.
    pub left: usize,
    /// Share of the probability that the step removed; absent for steps that are not filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed_mass: Option<f64>,
}

/// The cost of a stage, over the whole pass.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CostOfStage {
    /// `embedding`, `attention.N` or `mlp.N`.
    pub stage: String,
    /// Seconds.
    pub seconds: f64,
    /// Bytes of weights, keys and values that were read.
    pub bytes: usize,
}
