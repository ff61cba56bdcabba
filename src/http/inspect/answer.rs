//! The answer of an inspection.

use std::ops::Range;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::values::{Encoding, Matrix, Values};
use crate::engine::PromptReport;
use crate::engine::inspection::{
    BlockNeurons, EmbeddingRows, HeadAttention, LensReading, Neuron, ResidualNorms, SamplingTrace,
    StageCost,
};
use crate::kernels::rows;
use crate::request::InspectionWanted;
use crate::serving::ModelInfo;
use crate::text::Tokenizer;

/// Vocabularies up to this size have all their logits in an answer.
const WHOLE_VOCABULARY: usize = 1 << 16;
/// Most likely tokens whose logits are shown of larger vocabularies.
const SHOWN_LOGITS: usize = 4096;

/// What the answer shows, but for the values.
pub(super) struct Shown {
    /// Name of the inspection.
    pub id: String,
    /// Tokens of the text.
    pub length: usize,
    /// Tokens of a session's history before the context.
    pub history: usize,
    /// Positions.
    pub rows: Range<usize>,
    /// How arrays are written.
    pub encoding: Encoding,
    /// Token ids up to the last shown position at least, if tokens are shown.
    pub tokens: Option<Vec<u32>>,
    /// What was asked for.
    pub wanted: InspectionWanted,
    /// The seed of sampling.
    pub seed: u64,
}

/// The stages of a forward pass. Rows are the positions asked for; stages not asked for are absent. States of
/// the residual stream are counted from the embedding, so there is one more than layers. Arrays of numbers are
/// `f16` or `f32` (Base64, little-endian), or `values` with `encoding: "json"`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct InspectAnswer {
    /// Name of the inspection.
    id: String,
    /// The model.
    model: String,
    /// Changes whenever the values could be others.
    fingerprint: String,
    /// Tokens of the text.
    length: usize,
    /// Tokens of a session's history before the context, which positions count from.
    history: usize,
    /// Positions shown.
    positions: Page,
    /// The positions of the page before this one; null at the beginning.
    next: Option<Page>,
    /// Tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<InspectedToken>>,
    /// Embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<EmbeddingStage>,
    /// The residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    residual: Option<ResidualStage>,
    /// Attention heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<Vec<AttentionHead>>,
    /// Feed-forward networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    mlp: Option<Vec<MlpLayer>>,
    /// The next token, read off after each layer through the final norm and the output projection.
    #[serde(skip_serializing_if = "Option::is_none")]
    lens: Option<LensStage>,
    /// Logits after the last position of the text; absent unless it is among the positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<LogitsStage>,
    /// How the next token is sampled; absent unless the last position is among the positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling: Option<SamplingStage>,
    /// Cost of each stage.
    cost: Vec<CostOfStage>,
}

/// Positions from `from` up to, not including, `to`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InspectPage)]
struct Page {
    /// First position.
    from: usize,
    /// Position after the last one.
    to: usize,
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
struct InspectedToken {
    /// Token id.
    id: u32,
    /// Its bytes, in Base64.
    bytes: String,
    /// The merges of neighbouring parts that make the token of its bytes, in order.
    merges: Vec<MergeStep>,
}

/// A merge.
#[derive(Debug, Serialize, ToSchema)]
struct MergeStep {
    /// The parts after the merge, in Base64.
    parts: Vec<String>,
    /// Rank of the merge in the vocabulary; the lowest goes first.
    rank: u32,
}

/// Embeddings.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingStage {
    /// Token embeddings, rows by width.
    #[serde(skip_serializing_if = "Option::is_none")]
    wte: Option<Matrix>,
    /// Position embeddings, rows by width.
    #[serde(skip_serializing_if = "Option::is_none")]
    wpe: Option<Matrix>,
    /// Euclidean norms.
    norms: EmbeddingNorms,
    /// Per row the tokens with the nearest embeddings and the cosine.
    nearest: Vec<Vec<(u32, f32)>>,
}

/// Euclidean norms, per row.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingNorms {
    /// Of token embeddings.
    wte: Vec<f32>,
    /// Of position embeddings.
    wpe: Vec<f32>,
    /// Of their sums.
    sum: Vec<f32>,
}

/// Euclidean norms of the residual stream.
#[derive(Debug, Serialize, ToSchema)]
struct ResidualStage {
    /// Per state and row.
    norms: Vec<Vec<f32>>,
    /// Of what attention adds, per layer and row.
    attention_write: Vec<Vec<f32>>,
    /// Of what the feed-forward network adds, per layer and row.
    mlp_write: Vec<Vec<f32>>,
}

/// Which rows of attention weights to show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum AttentionForm {
    /// Those of the positions.
    #[default]
    Rows,
    /// All of them; of at most 4 heads.
    Map,
}

/// The attention of one head.
#[derive(Debug, Serialize, ToSchema)]
struct AttentionHead {
    /// Layer.
    layer: usize,
    /// Head.
    head: usize,
    /// Which rows of weights.
    form: AttentionForm,
    /// Position of the first row.
    from: usize,
    /// Position after the last row.
    to: usize,
    /// Weights, row by row: the row of position p has p + 1.
    #[serde(flatten)]
    weights: Values,
    /// Queries, rows by width of a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    q: Option<Matrix>,
    /// Keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<Matrix>,
    /// Values.
    #[serde(skip_serializing_if = "Option::is_none")]
    v: Option<Matrix>,
}

/// The feed-forward network of one layer.
#[derive(Debug, Serialize, ToSchema)]
struct MlpLayer {
    /// Layer.
    layer: usize,
    /// Per row the number of neurons with an activation above 0.
    active: Vec<usize>,
    /// Per row the neurons that write most, the strongest first.
    top: Vec<Vec<ActiveNeuron>>,
}

/// A neuron.
#[derive(Debug, Serialize, ToSchema)]
struct ActiveNeuron {
    /// Its number in the layer.
    neuron: usize,
    /// Its activation.
    activation: f32,
    /// Norm of what it adds to the residual stream.
    write: f32,
    /// Ids of the tokens that it pushes most.
    promotes: Vec<u32>,
}

/// The logit lens.
#[derive(Debug, Serialize, ToSchema)]
struct LensStage {
    /// Number of states.
    layers: usize,
    /// Per state and row the most likely tokens with their probabilities.
    top: Vec<Vec<Vec<(u32, f32)>>>,
    /// Per state and row the entropy in bits.
    entropy: Vec<Vec<f32>>,
}

/// Logits after the last position.
#[derive(Debug, Serialize, ToSchema)]
struct LogitsStage {
    #[serde(flatten)]
    shown: ShownLogits,
    /// Logarithm of the sum of their exponentials: a log-probability is a logit less this.
    lse: f32,
}

/// The logits of an answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum ShownLogits {
    /// All of them, in the order of token ids.
    All(Values),
    /// In vocabularies of more than 65536 tokens.
    Highest {
        /// The highest with their tokens.
        top: Vec<(u32, f32)>,
    },
}

/// How the next token is sampled.
#[derive(Debug, Serialize, ToSchema)]
struct SamplingStage {
    /// The seed.
    seed: u64,
    /// Number of tokens sampled before.
    n: usize,
    /// The steps that change something, in order.
    steps: Vec<FilterOfSampling>,
    /// The random number, from 0 up to 1; null if the most likely token is taken.
    u: Option<f64>,
    /// The sampled token.
    token: u32,
    /// Its probability among the tokens left.
    probability: f64,
}

/// A step of sampling.
#[derive(Debug, Serialize, ToSchema)]
struct FilterOfSampling {
    /// The parameter.
    filter: &'static str,
    /// Number of logits that it changed; absent for filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<usize>,
    /// Number of tokens left after it.
    left: usize,
    /// Share of the probability that it removed; absent for steps that remove no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_mass: Option<f64>,
}

/// The cost of a stage, over the whole pass.
#[derive(Debug, Serialize, ToSchema)]
struct CostOfStage {
    /// `embedding`, `attention.N` or `mlp.N`.
    stage: String,
    /// Seconds.
    seconds: f64,
    /// Bytes of weights, keys and values that were read.
    bytes: usize,
}

impl Shown {
    /// Returns about how many bytes the answer takes.
    pub(super) fn values(&self) -> usize {
        let heads = self.wanted.attention.as_ref();
        let heads = heads.map_or(0, |heads| heads.layers.len() * heads.heads.len());
        4 * heads * self.rows.len() * self.length + (64 << 10)
    }

    /// Returns the answer.
    pub(super) fn answer(
        self,
        report: PromptReport,
        tokenizer: &Tokenizer,
        model: &ModelInfo,
    ) -> InspectAnswer {
        let found = report.inspection.map(|found| *found).unwrap_or_default();
        let (rows, encoding) = (self.rows.clone(), self.encoding);
        let before = rows.start.saturating_sub(rows.len());
        let shown = self.tokens.as_deref().and_then(|ids| ids.get(rows.clone()));
        let tokens = shown.map(|ids| {
            let tokens = ids.iter().map(|&id| token(tokenizer, id));
            tokens.collect()
        });
        let width = model.spec.hidden_width;
        let embedding = self.wanted.embedding.zip(found.embedding);
        let heads = self.wanted.attention.as_ref();
        let map = heads.is_some_and(|heads| heads.map);
        let attention = found.attention.into_iter();
        let attention = attention.map(|head| self.head(head, map, model.spec.head_width));
        InspectAnswer {
            model: model.id.clone(),
            fingerprint: model.fingerprint.clone(),
            length: self.length,
            history: self.history,
            next: (rows.start > 0).then_some(Page {
                from: before,
                to: rows.start,
            }),
            positions: Page {
                from: rows.start,
                to: rows.end,
            },
            tokens,
            embedding: embedding
                .map(|(wanted, rows)| embeddings(rows, wanted.values, width, encoding)),
            residual: found.residual.map(residual),
            attention: heads.is_some().then(|| attention.collect()),
            mlp: self
                .wanted
                .neurons
                .is_some()
                .then(|| found.neurons.into_iter().map(mlp).collect()),
            lens: self.wanted.lens.is_some().then(|| lens(found.lens)),
            logits: found.logits.map(|logits| self::logits(logits, encoding)),
            sampling: found
                .sampling
                .zip(self.wanted.sampling)
                .map(|(trace, wanted)| sampling(trace, self.seed, wanted.sampled)),
            cost: found.costs.into_iter().map(cost).collect(),
            id: self.id,
        }
    }

    fn head(&self, found: HeadAttention, map: bool, width: usize) -> AttentionHead {
        let encoding = self.encoding;
        let rows = self.rows.len();
        let matrix = |values| Matrix::new(rows, width, encoding.exact(values));
        let (q, k, v) = match found.qkv {
            Some(qkv) => (
                Some(matrix(qkv.q)),
                Some(matrix(qkv.k)),
                Some(matrix(qkv.v)),
            ),
            None => (None, None, None),
        };
        let (form, from, to) = if map {
            (AttentionForm::Map, 0, self.length)
        } else {
            (AttentionForm::Rows, self.rows.start, self.rows.end)
        };
        AttentionHead {
            layer: found.layer,
            head: found.head,
            form,
            from,
            to,
            weights: encoding.half(found.weights),
            q,
            k,
            v,
        }
    }
}

fn token(tokenizer: &Tokenizer, id: u32) -> InspectedToken {
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let merges = tokenizer.merges(id).into_iter();
    InspectedToken {
        id,
        bytes: encode(tokenizer.token_bytes(id).unwrap_or_default()),
        merges: merges
            .map(|merge| MergeStep {
                parts: merge.parts.iter().map(|part| encode(part)).collect(),
                rank: merge.rank,
            })
            .collect(),
    }
}

fn embeddings(
    found: EmbeddingRows,
    values: bool,
    width: usize,
    encoding: Encoding,
) -> EmbeddingStage {
    let EmbeddingRows {
        tokens,
        positions,
        nearest,
    } = found;
    let norms = |values: &[f32]| -> Vec<f32> {
        values.chunks_exact(width.max(1)).map(rows::norm).collect()
    };
    let sum: Vec<f32> = match &positions {
        Some(positions) => tokens.iter().zip(positions).map(|(a, b)| a + b).collect(),
        None => tokens.clone(),
    };
    let matrix = |numbers: Vec<f32>| {
        let rows = numbers.len() / width.max(1);
        Matrix::new(rows, width, encoding.half(numbers))
    };
    EmbeddingStage {
        norms: EmbeddingNorms {
            wte: norms(&tokens),
            wpe: positions.as_deref().map(norms).unwrap_or_default(),
            sum: norms(&sum),
        },
        wte: values.then(|| matrix(tokens)),
        wpe: positions.filter(|_| values).map(matrix),
        nearest,
    }
}

fn residual(found: ResidualNorms) -> ResidualStage {
    ResidualStage {
        norms: found.states,
        attention_write: found.attention_writes,
        mlp_write: found.mlp_writes,
    }
}

fn mlp(found: BlockNeurons) -> MlpLayer {
    let neuron = |found: Neuron| ActiveNeuron {
        neuron: found.neuron,
        activation: found.activation,
        write: found.write,
        promotes: found.promotes,
    };
    let rows = found.strongest.into_iter();
    MlpLayer {
        layer: found.layer,
        active: found.active,
        top: rows
            .map(|row| row.into_iter().map(neuron).collect())
            .collect(),
    }
}

fn lens(found: Vec<LensReading>) -> LensStage {
    let layers = found.len();
    let readings = found.into_iter();
    let (top, entropy) = readings
        .map(|reading| (reading.top, reading.entropy))
        .unzip();
    LensStage {
        layers,
        top,
        entropy,
    }
}

fn logits(logits: Vec<f32>, encoding: Encoding) -> LogitsStage {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps = logits.iter().map(|&x| f64::from(x - highest).exp());
    #[expect(clippy::cast_possible_truncation, reason = "the precision of logits")]
    let lse = (f64::from(highest) + exps.sum::<f64>().ln()) as f32;
    let shown = if logits.len() <= WHOLE_VOCABULARY {
        ShownLogits::All(encoding.exact(logits))
    } else {
        let mut top: Vec<(u32, f32)> = (0..).zip(logits).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        top.truncate(SHOWN_LOGITS);
        ShownLogits::Highest { top }
    };
    LogitsStage { shown, lse }
}

fn sampling(trace: SamplingTrace, seed: u64, n: usize) -> SamplingStage {
    let steps = trace.steps.into_iter().map(|step| FilterOfSampling {
        filter: step.parameter,
        changed: step.changed,
        left: step.left,
        removed_mass: step.removed,
    });
    SamplingStage {
        seed,
        n,
        steps: steps.collect(),
        u: trace.random,
        token: trace.token,
        probability: trace.probability,
    }
}

fn cost(found: StageCost) -> CostOfStage {
    CostOfStage {
        stage: found.stage,
        seconds: found.time.as_secs_f64(),
        bytes: found.bytes,
    }
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;

    /// Validators refuse an answer in which a part of a composed schema is missing.
    #[test]
    fn logits_are_all_of_a_small_vocabulary_or_the_highest_of_a_large_one() {
        let json = |count: usize| {
            let stage = logits(vec![0.0; count], Encoding::Json);
            serde_json::to_value(stage).unwrap()
        };
        let (small, large) = (json(3), json(WHOLE_VOCABULARY + 1));
        assert_eq!(small["values"], serde_json::json!([0.0, 0.0, 0.0]));
        assert!(small.get("top").is_none() && large.get("values").is_none());
        assert_eq!(large["top"].as_array().unwrap().len(), SHOWN_LOGITS);
        let schema = serde_json::to_string(&LogitsStage::schema()).unwrap();
        assert!(!schema.contains("null"), "{schema}");
    }
}
