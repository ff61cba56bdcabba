//! Writes what every stage of a forward pass computed into the tables of a trace, chunk by chunk.
//!
//! It holds the rows of one chunk of one stage in memory at a time.

use anyhow::{Context, Result};
use candle_core::Tensor;
use rusqlite::{Connection, params};

use crate::kernels::attention::{scores, softmax};
use crate::kernels::kv::{BLOCK_SIZE, KvCache, SequenceSpan};
use crate::model::Model;
use crate::model::batch::Batch;
use crate::model::stage::Stage;

/// Maximum positions of one pass.
const CHUNK: usize = 64;

/// Writes the stages of the passes over one text.
pub(super) struct Recorder<'a> {
    pub db: &'a Connection,
    pub model: &'a Model,
    pub kv: &'a KvCache,
    /// Whether the logits of all positions are written, not of the last one only.
    pub all_logits: bool,
}

/// Writes the stages of one chunk of the text.
struct ChunkRecorder<'a> {
    recorder: &'a Recorder<'a>,
    span: SequenceSpan,
    is_last: bool,
    /// Queries, keys and values of the current layer, `[rows, qkv_width]`.
    qkv: Vec<f32>,
    /// Logits after the last position that has them, `[vocab_size]`.
    logits: Vec<f32>,
}

impl Recorder<'_> {
    /// Runs the model over `ids` and writes all stages; returns the logits after the last position,
    /// `[vocab_size]`.
    pub fn record(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        for (n, chunk) in ids.chunks(CHUNK).enumerate() {
            let first = n * CHUNK;
            let end = first + chunk.len();
            let span = SequenceSpan {
                rows: 0..chunk.len(),
                first_position: first,
                block_table: (0..end.div_ceil(BLOCK_SIZE) as u32).collect(),
                window_table: Vec::new(),
            };
            let batch = Batch {
                ids: chunk.to_vec(),
                positions: (first as u32..end as u32).collect(),
                spans: vec![span.clone()],
                ..Batch::default()
            };
            self.embeddings(chunk, first)?;
            let mut chunk_recorder = ChunkRecorder {
                recorder: self,
                span,
                is_last: end == ids.len(),
                qkv: Vec::new(),
                logits: Vec::new(),
            };
            self.model
                .forward_observed(batch, self.kv, &mut |stage, values| {
                    let written = chunk_recorder.observe(stage, values);
                    written.map_err(|error| candle_core::Error::msg(format!("{error:#}")))
                })?;
            logits = chunk_recorder.logits;
        }
        Ok(logits)
    }

    /// Writes the embeddings of tokens, the first of them at position `first`.
    fn embeddings(&self, ids: &[u32], first: usize) -> Result<()> {
        let width = self.model.spec().hidden_width;
        let tokens = self.model.token_embeddings(ids)?;
        let positions: Vec<u32> = (first as u32..).take(ids.len()).collect();
        let positions = self.model.position_embeddings(&positions)?;
        let mut row = self.db.prepare_cached(
            "INSERT INTO embeddings (position, dimension, token, position_value) VALUES (?, ?, ?, ?)",
        )?;
        for (n, token) in tokens.iter().enumerate() {
            let position = positions.as_ref().and_then(|values| values.get(n));
            row.execute(params![first + n / width, n % width, token, position])?;
        }
        Ok(())
    }
}

impl ChunkRecorder<'_> {
    fn observe(&mut self, stage: Stage, values: &Tensor) -> Result<()> {
        let layers = self.recorder.model.spec().layers;
        if let Stage::Residual(i) = stage
            && i == layers
        {
            self.end(values)?;
        }
        let values = values.flatten_all()?.to_vec1::<f32>()?;
        match stage {
            Stage::Residual(i) => {
                if i == 0 {
                    self.sums(&values)?;
                }
                self.residual(i, "input", &values)
            }
            Stage::AttentionInput(i) => self.normalized(i, "ln_1", &values),
            Stage::Qkv(i) => {
                self.heads(i, &values)?;
                self.qkv = values;
                Ok(())
            }
            Stage::Mixed(i) => {
                self.attention(i)?;
                self.mixed(i, &values)
            }
            Stage::Attended(i) => self.residual(i, "attended", &values),
            Stage::NeuronInput(i) => self.normalized(i, "ln_2", &values),
            Stage::Neurons(i) => self.neurons(i, &values),
        }
    }

    /// Writes the final norm of the last state of the residual stream, and the logits.
    fn end(&mut self, state: &Tensor) -> Result<()> {
        let Recorder {
            model,
            db,
            all_logits,
            ..
        } = *self.recorder;
        let rows = self.span.rows.len();
        let normalized = model.final_norm(state)?;
        let values = normalized.flatten_all()?.to_vec1::<f32>()?;
        self.normalized(model.spec().layers, "ln_f", &values)?;
        let first = match (all_logits, self.is_last) {
            (true, _) => 0,
            (false, true) => rows - 1,
            (false, false) => return Ok(()),
        };
        let mut insert = db.prepare_cached("INSERT INTO logits VALUES (?, ?, ?)")?;
        for n in first..rows {
            let logits = model.logits(&normalized.narrow(0, n, 1)?.contiguous()?)?;
            self.logits = logits.flatten_all()?.to_vec1::<f32>()?;
            for (id, logit) in self.logits.iter().enumerate() {
                insert.execute(params![self.span.first_position + n, id, logit])?;
            }
        }
        Ok(())
    }

    /// Writes the sums of token and position embeddings: `[rows, hidden_width]`.
    fn sums(&self, values: &[f32]) -> Result<()> {
        let width = self.recorder.model.spec().hidden_width;
        let first = self.span.first_position;
        let mut row = self.recorder.db.prepare_cached(
            "UPDATE embeddings SET sum = ?3 WHERE position = ?1 AND dimension = ?2",
        )?;
        for (n, value) in values.iter().enumerate() {
            row.execute(params![first + n / width, n % width, value])?;
        }
        Ok(())
    }

    fn residual(&self, layer: usize, stage: &str, values: &[f32]) -> Result<()> {
        self.states(
            "INSERT INTO residual VALUES (?, ?, ?, ?, ?)",
            layer,
            stage,
            values,
        )
    }

    fn normalized(&self, layer: usize, norm: &str, values: &[f32]) -> Result<()> {
        self.states(
            "INSERT INTO normalized VALUES (?, ?, ?, ?, ?)",
            layer,
            norm,
            values,
        )
    }

    /// Writes rows of the hidden width: `[rows, hidden_width]`.
    fn states(&self, insert: &str, layer: usize, name: &str, values: &[f32]) -> Result<()> {
        let width = self.recorder.model.spec().hidden_width;
        let first = self.span.first_position;
        let mut row = self.recorder.db.prepare_cached(insert)?;
        for (n, value) in values.iter().enumerate() {
            row.execute(params![layer, name, first + n / width, n % width, value])?;
        }
        Ok(())
    }

    /// Writes queries, keys and values: `[rows, (heads + 2 * kv_heads) * head_width]`.
    fn heads(&self, layer: usize, qkv: &[f32]) -> Result<()> {
        let spec = self.recorder.model.spec();
        let insert = "INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)";
        let mut row = self.recorder.db.prepare_cached(insert)?;
        for head in 0..spec.heads {
            for (n, values) in qkv.chunks_exact(spec.qkv_width()).enumerate() {
                let position = self.span.first_position + n;
                let [query, key, value] = spec.split_qkv(values, head);
                for (dimension, ((q, k), v)) in query.iter().zip(key).zip(value).enumerate() {
                    row.execute(params![layer, head, position, dimension, q, k, v])?;
                }
            }
        }
        Ok(())
    }

    /// Writes scores and weights of all heads. The keys of the chunk must be in the cache.
    fn attention(&self, layer: usize) -> Result<()> {
        let spec = self.recorder.model.spec();
        let shape = self.recorder.model.attention_shape(layer)?;
        let cached = self.recorder.kv.layer(layer)?;
        let first = self.span.first_position;
        let positions = first + self.span.rows.len();
        let insert = "INSERT INTO attention VALUES (?, ?, ?, ?, ?, ?)";
        let mut row = self.recorder.db.prepare_cached(insert)?;
        for head in 0..spec.heads {
            let keys = cached.keys(spec.kv_head(head), &self.span.block_table, positions)?;
            for (n, values) in self.qkv.chunks_exact(spec.qkv_width()).enumerate() {
                let [query, ..] = spec.split_qkv(values, head);
                let position = first + n;
                let seen = keys
                    .get(..(position + 1) * spec.head_width)
                    .context("the cache lacks keys")?;
                let scores = scores(&shape, query, seen, cached.dtype());
                let weights = softmax(&scores);
                for (key, (score, weight)) in scores.iter().zip(&weights).enumerate() {
                    row.execute(params![layer, head, position, key, score, weight])?;
                }
            }
        }
        Ok(())
    }

    /// Writes the mix of values of all heads: `[rows, heads * head_width]`.
    fn mixed(&self, layer: usize, values: &[f32]) -> Result<()> {
        let spec = self.recorder.model.spec();
        let (width, heads) = (spec.head_width, spec.heads);
        let first = self.span.first_position;
        let insert = "INSERT INTO mixed VALUES (?, ?, ?, ?, ?)";
        let mut row = self.recorder.db.prepare_cached(insert)?;
        for (n, value) in values.iter().enumerate() {
            let (position, head) = (first + n / (heads * width), n / width % heads);
            row.execute(params![layer, head, position, n % width, value])?;
        }
        Ok(())
    }
    /// Writes the activations of all neurons: `[rows, inner_width]`.
    fn neurons(&self, layer: usize, values: &[f32]) -> Result<()> {
        let width = self.recorder.model.spec().inner_width;
        let first = self.span.first_position;
        let insert = "INSERT INTO mlp VALUES (?, ?, ?, ?)";
        let mut row = self.recorder.db.prepare_cached(insert)?;
        for (n, value) in values.iter().enumerate() {
            row.execute(params![layer, first + n / width, n % width, value])?;
        }
        Ok(())
    }
}
