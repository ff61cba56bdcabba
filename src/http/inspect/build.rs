//! From what the pass computed to the answer of an inspection.

use std::ops::Range;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::answer::{
    ActiveNeuron, AttentionForm, AttentionHead, CostOfStage, EmbeddingNorms, EmbeddingStage,
    FilterOfSampling, InspectAnswer, InspectedToken, LensStage, LogitsStage, MergeStep, MlpLayer,
    Page, ResidualStage, SamplingStage, ShownLogits,
};
use super::values::{Encoding, Matrix};
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
/// Number of the highest logits in an answer for larger vocabularies.
const SHOWN_LOGITS: usize = 4096;

/// Builds the answer from the record of the pass.
pub(super) struct AnswerBuilder {
    /// Name of the inspection.
    pub id: String,
    /// Tokens of the text.
    pub length: usize,
    /// Tokens of a session's history before the context.
    pub history: usize,
    /// Positions to show.
    pub rows: Range<usize>,
    /// Encoding of arrays.
    pub encoding: Encoding,
    /// Token ids, up to the last shown position or further, if tokens are shown.
    pub tokens: Option<Vec<u32>>,
    /// The requested stages.
    pub wanted: InspectionWanted,
    /// The seed of sampling.
    pub seed: u64,
}

impl AnswerBuilder {
    /// Returns the approximate size of the answer in bytes.
    pub(super) fn approximate_size(&self) -> usize {
        let heads = self.wanted.attention.as_ref();
        let heads = heads.map_or(0, |heads| heads.layers.len() * heads.heads.len());
        4 * heads * self.rows.len() * self.length + (64 << 10)
    }

    /// Builds the answer.
    pub(super) fn build(
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
