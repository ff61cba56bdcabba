//! Code shared by the architectures: parts of blocks, the vocabulary, and the selection of rows.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::batch::Batch;
use crate::backend::{Attention, Linear, Rotary};
use crate::checkpoint::weights::Embedding;
use crate::kernels::attention::{AttentionPlan, AttentionShape};
use crate::kernels::kv::LayerKv;
use crate::kernels::linear::{Activation, Epilogue};

/// Embeddings that are widened at once.
const EMBEDDINGS: usize = 256;

/// Where the rows of a batch are: what rotary positions and attention need to know of them.
pub(super) struct Rows {
    /// Position of each row in its own context.
    positions: Vec<u32>,
    plan: AttentionPlan,
}

impl Rows {
    pub fn of(batch: Batch) -> Result<Self> {
        Ok(Self {
            plan: AttentionPlan::new(batch.spans, batch.ids.len())?,
            positions: batch.positions,
        })
    }
}

/// Causal grouped-query attention with rotary positions.
pub(super) struct SelfAttention {
    /// `q_proj`, `k_proj` and `v_proj`.
    pub qkv_proj: Box<dyn Linear>,
    /// Norms and rotation of queries and keys.
    pub rotary: Box<dyn Rotary>,
    pub shape: AttentionShape,
    pub attention: Box<dyn Attention>,
    pub o_proj: Box<dyn Linear>,
}

impl SelfAttention {
    /// Computes the queries, keys and values of normalized rows, as attention reads them:
    /// `[rows, hidden_width] -> [rows, (heads + 2*kv_heads) * head_width]`.
    pub fn qkv(&self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let qkv = self.qkv_proj.forward(x, Epilogue::None)?;
        self.rotary.forward(qkv, &rows.positions)
    }

    /// Computes attention over each row's own context, the mix of values:
    /// `[rows, (heads + 2*kv_heads) * head_width] -> [rows, heads*head_width]`.
    pub fn mix(&self, qkv: &Tensor, kv: &LayerKv, rows: &Rows) -> Result<Tensor> {
        self.attention.forward(qkv, kv, &rows.plan)
    }

    /// Returns the linear layers in the order of computation.
    pub fn linears(&self) -> Vec<&dyn Linear> {
        vec![&*self.qkv_proj, &*self.o_proj]
    }
}

/// A gated feed-forward network (Shazeer 2020, <https://arxiv.org/abs/2002.05202>):
/// `down_proj(activation(gate_proj(x)) * up_proj(x))`.
pub(super) struct GatedMlp {
    pub gate_proj: Box<dyn Linear>,
    pub up_proj: Box<dyn Linear>,
    pub activation: Activation,
    pub down_proj: Box<dyn Linear>,
}

impl GatedMlp {
    /// Computes `activation(gate_proj(x)) * up_proj(x)` of normalized rows:
    /// `[rows, hidden_width] -> [rows, inner_width]`.
    pub fn neurons(&self, x: &Tensor) -> Result<Tensor> {
        let gate = self.gate_proj.forward(x, Epilogue::None)?; // [rows, inner_width]
        let gated = Epilogue::Gated {
            gate: &gate,
            activation: self.activation,
        };
        self.up_proj.forward(x, gated)
    }

    /// Returns the linear layers in the order of computation.
    pub fn linears(&self) -> Vec<&dyn Linear> {
        vec![&*self.gate_proj, &*self.up_proj, &*self.down_proj]
    }
}

/// A model's first and last matrices, which may be the same: token embeddings and the output
/// projection.
pub(super) struct Vocabulary {
    /// Separate token embeddings. `None` if they are tied to the output projection; its weights are
    /// then used, so that the largest matrix is in memory only once.
    pub embedding: Option<Embedding>,
    /// Factor of the token embeddings, not of the projection: 1, or Gemma's `sqrt(hidden_width)`.
    pub embedding_scale: f32,
    /// `[hidden_width] -> [vocab_size]`
    pub projection: Box<dyn Linear>,
    /// Cap of the logits: `cap * tanh(logit / cap)`.
    pub soft_cap: Option<f32>,
    pub vocab_size: usize,
}

impl Vocabulary {
    /// Adds the tokens' embeddings to the rows of `x`, `[ids, hidden_width]`, which are zero if the embeddings
    /// are scaled.
    pub fn add_embeddings(&self, ids: &[u32], x: &mut [f32]) -> Result<()> {
        match &self.embedding {
            None => self.projection.add_weights_of(ids, x)?,
            Some(embedding) => embedding
                .add_rows(ids, x)
                .map_err(candle_core::Error::wrap)?,
        }
        if self.embedding_scale != 1.0 {
            for x in x {
                *x *= self.embedding_scale;
            }
        }
        Ok(())
    }

    /// Computes the dot products of rows with all token embeddings:
    /// `[rows, hidden_width] -> [rows, vocab_size]`.
    pub fn embedding_products(&self, x: &Tensor) -> Result<Tensor> {
        if self.embedding.is_none() {
            return self.push(x)? * f64::from(self.embedding_scale);
        }
        let (rows, width) = x.dims2()?;
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let mut products = vec![0.0; rows * self.vocab_size];
        self.for_embeddings(width, |id, embedding| {
            for (row, x) in values.chunks_exact(width).enumerate() {
                let dot: f32 = x.iter().zip(embedding).map(|(a, b)| a * b).sum();
                products[row * self.vocab_size + id] = dot;
            }
        })?;
        Tensor::from_vec(products, (rows, self.vocab_size), x.device())
    }

    /// Gives every token's embedding, `[width]` each.
    pub fn for_embeddings(&self, width: usize, mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        let ids: Vec<u32> = (0..self.vocab_size as u32).collect();
        for ids in ids.chunks(EMBEDDINGS) {
            let mut rows = vec![0.0; ids.len() * width];
            self.add_embeddings(ids, &mut rows)?;
            for (&id, row) in ids.iter().zip(rows.chunks_exact(width)) {
                take(id as usize, row);
            }
        }
        Ok(())
    }

    /// Computes the logits of rows: `[rows, hidden_width] -> [rows, vocab_size]`.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        if x.dim(0)? == 0 {
            return Tensor::zeros((0, self.vocab_size), DType::F32, x.device());
        }
        let cap = self.soft_cap.map_or(Epilogue::None, Epilogue::SoftCap);
        self.projection.forward(x, cap)
    }

    /// Computes the output projection of rows, without a soft cap:
    /// `[rows, hidden_width] -> [rows, vocab_size]`.
    pub fn push(&self, x: &Tensor) -> Result<Tensor> {
        self.projection.forward(x, Epilogue::None)
    }
}

/// Appends row `row` of a table of `width` columns to `x`.
pub(super) fn extend_with_row(
    x: &mut Vec<f32>,
    table: &[f32],
    width: usize,
    row: u32,
) -> Result<()> {
    let at = row as usize * width;
    let Some(values) = table.get(at..at + width) else {
        bail!("position {row} is outside the model's context window");
    };
    x.extend_from_slice(values);
    Ok(())
}

/// Returns the `wanted` rows of `x`, in order: `[rows, width] -> [wanted, width]`.
pub(super) fn select_rows(x: &Tensor, wanted: &[u32], device: &Device) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if wanted.is_empty() {
        return Tensor::zeros((0, width), DType::F32, device);
    }
    // A batch names rows at most once and in order, so as many as the rows of `x` are all of them.
    if wanted.len() == rows {
        return Ok(x.clone());
    }
    x.index_select(&Tensor::new(wanted, device)?, 0)
}
