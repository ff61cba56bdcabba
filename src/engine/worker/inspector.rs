//! Records the stages of the pass over one request's prompt, chunk by chunk.
//!
//! A row is recorded once: rows that are computed again after a preemption have the same values and are
//! skipped. The recording must never change what the pass computes.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor};

use crate::engine::inspection::{
    BlockNeurons, EmbeddingRows, HeadAttention, HeadQkv, Inspection, LensReading, Neuron,
    ResidualNorms, StageCost,
};
use crate::engine::logprobs;
use crate::engine::sampler::{Allowed, Sampler};
use crate::engine::values::with_values;
use crate::kernels::attention::weights;
use crate::kernels::kv::{KvCache, SequenceSpan};
use crate::kernels::rows;
use crate::model::stage::Stage;
use crate::model::{Model, ModelSpec};
use crate::request::{AttentionWanted, GenerateRequest, InspectionWanted, SamplingWanted};

/// Number of promoted tokens recorded per neuron.
const PROMOTED: usize = 4;

/// The record of one request's pass.
pub(super) struct Inspector {
    wanted: Arc<InspectionWanted>,
    /// Position after the last recorded one.
    recorded: usize,
    found: Inspection,
}

/// Records the stages of one chunk of the pass.
pub(super) struct ChunkObserver<'a> {
    inspector: &'a mut Inspector,
    model: &'a Model,
    kv: &'a KvCache,
    request: &'a GenerateRequest,
    /// The chunk's positions and cache blocks; its rows are the whole batch.
    span: SequenceSpan,
    /// Number of first rows that were recorded before.
    skipped: usize,
    /// State of the residual stream that the next stage adds to.
    before: Option<Tensor>,
    qkv: Option<Tensor>,
    clock: Instant,
}

impl Inspector {
    /// Creates an empty record of the requested stages.
    pub fn new(wanted: Arc<InspectionWanted>, spec: &ModelSpec) -> Self {
        let mut found = Inspection::default();
        if wanted.embedding.is_some() {
            found.embedding = Some(EmbeddingRows::default());
        }
        if wanted.residual {
            found.residual = Some(ResidualNorms {
                states: vec![Vec::new(); spec.layers + 1],
                attention_writes: vec![Vec::new(); spec.layers],
                mlp_writes: vec![Vec::new(); spec.layers],
            });
        }
        if wanted.lens.is_some() {
            found.lens = vec![LensReading::default(); spec.layers + 1];
        }
        if let Some(attention) = &wanted.attention {
            found.attention = heads(attention);
        }
        if let Some(neurons) = &wanted.neurons {
            let blocks = neurons.layers.iter();
            let empty = |&layer: &usize| BlockNeurons {
                layer,
                active: Vec::new(),
                strongest: Vec::new(),
            };
            found.neurons = blocks.map(empty).collect();
        }
        found.costs = costs(spec.layers);
        Self {
            recorded: wanted.observed_from(),
            wanted,
            found,
        }
    }

    /// Returns the observer of a chunk whose rows are those of `span`.
    pub fn chunk<'a>(
        &'a mut self,
        model: &'a Model,
        kv: &'a KvCache,
        request: &'a GenerateRequest,
        span: SequenceSpan,
    ) -> ChunkObserver<'a> {
        ChunkObserver {
            skipped: self.recorded.saturating_sub(span.first_position),
            inspector: self,
            model,
            kv,
            request,
            span,
            before: None,
            qkv: None,
            clock: Instant::now(),
        }
    }

    /// Returns the record.
    pub fn finish(self) -> Inspection {
        self.found
    }
}

/// Returns an empty entry for every requested head.
fn heads(wanted: &AttentionWanted) -> Vec<HeadAttention> {
    let all = wanted.layers.iter().flat_map(|&layer| {
        wanted.heads.iter().map(move |&head| HeadAttention {
            layer,
            head,
            weights: Vec::new(),
            qkv: wanted.qkv.then(HeadQkv::default),
        })
    });
    all.collect()
}

/// Returns an empty cost of every stage.
fn costs(layers: usize) -> Vec<StageCost> {
    let names = (0..layers).flat_map(|i| [format!("attention.{i}"), format!("mlp.{i}")]);
    let all = ["embedding".to_owned()].into_iter().chain(names);
    let empty = |stage| StageCost {
        stage,
        time: Duration::ZERO,
        bytes: 0,
    };
    all.map(empty).collect()
}

impl ChunkObserver<'_> {
    /// Records a stage of the chunk's rows.
    ///
    /// # Errors
    /// If a value can't be read from the model or the cache.
    pub fn observe(&mut self, stage: Stage, values: &Tensor) -> Result<()> {
        self.count(stage)?;
        match stage {
            Stage::Residual(i) => {
                self.residual(i, values)?;
                self.before = Some(values.clone());
            }
            Stage::Qkv(_) => self.qkv = Some(values.clone()),
            Stage::Attended(i) => {
                self.attention(i)?;
                let writes = self.writes(values)?;
                if let Some(norms) = &mut self.inspector.found.residual {
                    norms.attention_writes[i].extend(writes);
                }
                self.before = Some(values.clone());
            }
            Stage::Neurons(i) => self.neurons(i, values)?,
            Stage::AttentionInput(_) | Stage::Mixed(_) | Stage::NeuronInput(_) => (),
        }
        // The time of the recording is not part of the next stage.
        self.clock = Instant::now();
        Ok(())
    }

    /// Marks the chunk's rows as recorded.
    pub fn end(self) {
        let end = self.span.first_position + self.span.rows.len();
        let recorded = &mut self.inspector.recorded;
        *recorded = end.max(*recorded);
    }

    /// Returns the rows of the batch that are not recorded yet.
    fn new_rows(&self) -> Range<usize> {
        self.skipped.min(self.span.rows.len())..self.span.rows.len()
    }

    /// Returns the new rows to show.
    fn shown(&self) -> Range<usize> {
        let Range { start, end } = self.inspector.wanted.rows;
        let to_row = |position: usize| position.saturating_sub(self.span.first_position);
        let new = self.new_rows();
        let start = to_row(start).max(new.start).min(new.end);
        start..to_row(end).min(new.end).max(start)
    }

    /// Adds the time since the last stage and the bytes read by this one to the costs.
    fn count(&mut self, stage: Stage) -> Result<()> {
        let spec = self.model.spec();
        let rows = self.span.rows.len();
        let (place, bytes) = match stage {
            Stage::Residual(0) => (0, 2 * rows * spec.hidden_width * size_of::<f32>()),
            Stage::Residual(i) => (2 * i, self.model.block_bytes(i - 1)?.1),
            Stage::AttentionInput(i) | Stage::Qkv(i) | Stage::Mixed(i) => (2 * i + 1, 0),
            Stage::Attended(i) => {
                let positions = self.span.first_position + rows;
                let width = 2 * spec.kv_heads * spec.head_width;
                let element = self.kv.layer(i)?.dtype().dtype().size_in_bytes();
                let weights = self.model.block_bytes(i)?.0;
                (2 * i + 1, weights + positions * width * element)
            }
            Stage::NeuronInput(i) | Stage::Neurons(i) => (2 * i + 2, 0),
        };
        if let Some(cost) = self.inspector.found.costs.get_mut(place) {
            cost.time += self.clock.elapsed();
            cost.bytes += bytes;
        }
        Ok(())
    }

    /// Records a state of the residual stream, after block `i - 1`.
    fn residual(&mut self, i: usize, x: &Tensor) -> Result<()> {
        let shown = self.shown();
        if i == 0 {
            self.embedding(shown.clone())?;
        } else {
            let writes = self.writes(x)?;
            if let Some(norms) = &mut self.inspector.found.residual {
                norms.mlp_writes[i - 1].extend(writes);
            }
        }
        if let Some(norms) = &mut self.inspector.found.residual {
            norms.states[i].extend(row_norms(&rows_of(x, shown.clone())?)?);
        }
        if shown.is_empty() {
            return Ok(());
        }
        let wants_last = i == self.model.spec().layers && self.wants_last_logits(&shown);
        let first = match self.inspector.wanted.lens {
            Some(_) => shown.start,
            None if wants_last => shown.end - 1,
            None => return Ok(()),
        };
        let logits = self.model.read_off(&rows_of(x, first..shown.end)?)?;
        let vocab_size = self.model.spec().vocab_size;
        with_values(&logits, |logits| {
            let rows = logits.chunks_exact(vocab_size);
            if let Some(top) = self.inspector.wanted.lens {
                let lens = &mut self.inspector.found.lens[i];
                for row in rows.clone() {
                    let (tokens, entropy) = lens_reading(row, top)?;
                    lens.top.push(tokens);
                    lens.entropy.push(entropy);
                }
            }
            match rows.last() {
                Some(row) if wants_last => self.last_logits(row),
                _ => Ok(()),
            }
        })?
    }

    /// Returns whether these rows end with the last one of the prompt, and its logits are requested.
    fn wants_last_logits(&self, rows: &Range<usize>) -> bool {
        let wanted = &self.inspector.wanted;
        let is_last = self.span.first_position + rows.end == self.request.prompt.len();
        is_last && (wanted.logits || wanted.sampling.is_some())
    }

    /// Records the logits after the last position, and how a token is sampled from them.
    fn last_logits(&mut self, logits: &[f32]) -> Result<()> {
        let wanted = &self.inspector.wanted;
        if let Some(SamplingWanted { sampled, earlier }) = &wanted.sampling {
            let tokens = &self.request.prompt;
            let (before, generated) = tokens.split_at(tokens.len().saturating_sub(*sampled));
            let params = self.request.sampling.clone();
            let before = [&earlier[..], before].concat();
            let mut sampler = Sampler::new(params, &before, logits.len());
            for &token in generated {
                sampler.accept(token);
            }
            let trace = sampler.trace(logits, *sampled, Allowed::AllBut(&[]));
            self.inspector.found.sampling = Some(trace.map_err(candle_core::Error::wrap)?);
        }
        if self.inspector.wanted.logits {
            self.inspector.found.logits = Some(logits.to_vec());
        }
        Ok(())
    }

    /// Records the embeddings of rows.
    fn embedding(&mut self, shown: Range<usize>) -> Result<()> {
        let Some(wanted) = self.inspector.wanted.embedding else {
            return Ok(());
        };
        let positions =
            self.span.first_position + shown.start..self.span.first_position + shown.end;
        let Some(ids) = self.request.prompt.get(positions.clone()) else {
            return Ok(());
        };
        let tokens = self.model.token_embeddings(ids)?;
        let nearest = if wanted.nearest == 0 || ids.is_empty() {
            vec![Vec::new(); ids.len()]
        } else {
            self.nearest(ids, &tokens, wanted.nearest)?
        };
        let positions: Vec<u32> = positions.map(|position| position as u32).collect();
        let positions = self.model.position_embeddings(&positions)?;
        if let Some(found) = &mut self.inspector.found.embedding {
            found.tokens.extend(tokens);
            found.nearest.extend(nearest);
            if let Some(positions) = positions {
                found.positions.get_or_insert_default().extend(positions);
            }
        }
        Ok(())
    }

    /// Returns the tokens with the embeddings nearest to those of `ids`, `[ids, hidden_width]`.
    fn nearest(&self, ids: &[u32], embeddings: &[f32], n: usize) -> Result<Vec<Vec<(u32, f32)>>> {
        let width = self.model.spec().hidden_width;
        let rows = Tensor::from_slice(embeddings, (ids.len(), width), &Device::Cpu)?;
        let products = self.model.embedding_products(&rows)?;
        let norms = self.model.embedding_norms()?;
        with_values(&products, |products| {
            let rows = ids.iter().zip(products.chunks_exact(norms.len()));
            let nearest = rows.map(|(&id, products)| {
                let own = norms.get(id as usize).copied().unwrap_or_default();
                let cosines = products.iter().zip(norms).map(|(&product, &norm)| {
                    let both = own * norm;
                    if both > 0.0 { product / both } else { 0.0 }
                });
                let others = (0u32..).zip(cosines).filter(|(other, _)| *other != id);
                greatest(others.collect(), n, |&(_, cosine)| cosine)
            });
            nearest.collect()
        })
    }

    /// Returns the norms of what was added to the residual stream since the state before, for the rows to
    /// show; empty if they are not requested.
    fn writes(&self, x: &Tensor) -> Result<Vec<f32>> {
        let shown = self.shown();
        match &self.before {
            Some(before) if self.inspector.wanted.residual && !shown.is_empty() => {
                let (x, before) = (rows_of(x, shown.clone())?, rows_of(before, shown)?);
                row_norms(&(x - before)?)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Records the attention of the requested heads of a block. Its keys must be in the cache.
    fn attention(&mut self, block: usize) -> Result<()> {
        let Some(qkv) = self.qkv.take() else {
            return Ok(());
        };
        let is_map = matches!(&self.inspector.wanted.attention, Some(wanted) if wanted.map);
        let (new, shown) = (self.new_rows(), self.shown());
        let weighed = if is_map { new } else { shown.clone() };
        let spec = self.model.spec();
        let shape = self.model.attention_shape(block)?;
        let layer = self.kv.layer(block)?;
        let (first, table) = (self.span.first_position, self.span.table(layer.part()));
        let positions = first + self.span.rows.len();
        let found = self.inspector.found.attention.iter_mut();
        for head in found.filter(|head| head.layer == block) {
            let keys = layer.keys(spec.kv_head(head.head), table, positions)?;
            with_values(&qkv, |qkv| {
                for (n, row) in qkv.chunks_exact(spec.qkv_width()).enumerate() {
                    let [query, key, value] = spec.split_qkv(row, head.head);
                    if weighed.contains(&n) {
                        let seen = &keys[..(first + n + 1) * spec.head_width];
                        head.weights
                            .extend(weights(&shape, query, seen, layer.dtype()));
                    }
                    if shown.contains(&n)
                        && let Some(qkv) = &mut head.qkv
                    {
                        qkv.q.extend_from_slice(query);
                        qkv.k.extend_from_slice(key);
                        qkv.v.extend_from_slice(value);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Records the strongest neurons of a block.
    fn neurons(&mut self, block: usize, activations: &Tensor) -> Result<()> {
        let shown = self.shown();
        let Some(wanted) = &self.inspector.wanted.neurons else {
            return Ok(());
        };
        let place = wanted.layers.iter().position(|&layer| layer == block);
        let Some(place) = place.filter(|_| !shown.is_empty()) else {
            return Ok(());
        };
        let top = wanted.top;
        let norms = self.model.neuron_norms(block)?;
        let rows = rows_of(activations, shown)?;
        let (active, mut strongest): (Vec<usize>, Vec<Vec<Neuron>>) = with_values(&rows, |rows| {
            let rows = rows.chunks_exact(norms.len());
            rows.map(|row| strongest(row, norms, top)).unzip()
        })?;
        self.promote(block, &mut strongest)?;
        let found = &mut self.inspector.found.neurons[place];
        found.active.extend(active);
        found.strongest.extend(strongest);
        Ok(())
    }

    /// Fills in the tokens that the neurons of every row promote most.
    fn promote(&self, block: usize, rows: &mut [Vec<Neuron>]) -> Result<()> {
        let spec = self.model.spec();
        let width = spec.hidden_width;
        let numbers: Vec<usize> = rows.iter().flatten().map(|found| found.neuron).collect();
        let outputs = self.model.neuron_outputs(block, &numbers)?;
        let mut outputs = outputs.chunks_exact(width);
        for neurons in rows {
            let signed = neurons
                .iter()
                .zip(outputs.by_ref())
                .flat_map(|(found, output)| {
                    let sign = if found.activation < 0.0 { -1.0 } else { 1.0 };
                    output.iter().map(move |x| sign * x)
                });
            let directions: Vec<f32> = signed.collect();
            let directions = Tensor::from_vec(directions, (neurons.len(), width), &Device::Cpu)?;
            with_values(&self.model.push(&directions)?, |pushes| {
                let pushes = pushes.chunks_exact(spec.vocab_size);
                for (neuron, pushes) in neurons.iter_mut().zip(pushes) {
                    neuron.promotes = logprobs::most_likely(pushes, PROMOTED);
                }
            })?;
        }
        Ok(())
    }
}

/// Returns a range of the rows of `x`.
fn rows_of(x: &Tensor, rows: Range<usize>) -> Result<Tensor> {
    x.narrow(0, rows.start, rows.len())?.contiguous()
}

/// Returns the Euclidean norm of every row: `[rows]`.
fn row_norms(x: &Tensor) -> Result<Vec<f32>> {
    let width = x.dim(1)?.max(1);
    with_values(x, |values| {
        values.chunks_exact(width).map(rows::norm).collect()
    })
}

/// Returns the most likely tokens of a row of logits with their probabilities, and the entropy in bits.
fn lens_reading(logits: &[f32], top: usize) -> Result<(Vec<(u32, f32)>, f32)> {
    let tokens = logprobs::ranked(logits, top).map_err(candle_core::Error::wrap)?;
    let tokens = tokens
        .into_iter()
        .map(|token| (token.id, token.logprob.exp()));
    let tokens = tokens.collect();
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut logits, mut weights) = (logits.to_vec(), Vec::new());
    rows::weigh(&mut logits, highest, 1.0, &mut weights);
    let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let products = weights
        .iter()
        .zip(&logits)
        .filter(|(weight, _)| **weight > 0.0);
    let mean: f64 = products
        .map(|(&weight, &logit)| f64::from(weight) * f64::from(logit))
        .sum();
    #[expect(clippy::cast_possible_truncation, reason = "at most 24 bits")]
    let entropy = ((total.ln() - mean / total) / std::f64::consts::LN_2) as f32;
    Ok((tokens, entropy))
}

/// Returns the number of active neurons of a row, and the neurons that add most to the residual stream.
fn strongest(activations: &[f32], norms: &[f32], top: usize) -> (usize, Vec<Neuron>) {
    let active = activations.iter().filter(|&&a| a > 0.0).count();
    let neurons = activations.iter().zip(norms).enumerate();
    let neurons = neurons.map(|(neuron, (&activation, &norm))| Neuron {
        neuron,
        activation,
        write: activation.abs() * norm,
        promotes: Vec::new(),
    });
    (
        active,
        greatest(neurons.collect(), top, |neuron| neuron.write),
    )
}

/// Returns the `n` greatest items in descending order; equal ones keep their order.
fn greatest<T>(mut all: Vec<T>, n: usize, by: impl Fn(&T) -> f32) -> Vec<T> {
    all.sort_by(|a, b| by(b).total_cmp(&by(a)));
    all.truncate(n);
    all
}
