//! Attention in candle's operations.

use candle_core::{D, DType, Device, Result, Tensor};

use super::linear::soft_cap;
use crate::backend::Attention;
use crate::kernels::attention::{AttentionPlan, AttentionShape};
use crate::kernels::kv::{BLOCK_SIZE, LayerKv, SequenceSpan, StepSpans};

/// The attention of one layer.
pub struct CandleAttention {
    shape: AttentionShape,
}

impl CandleAttention {
    /// Creates attention of a shape.
    ///
    /// # Errors
    /// As [`AttentionShape::check`].
    pub fn new(shape: AttentionShape) -> Result<Self> {
        shape.check()?;
        Ok(Self { shape })
    }
}

impl Attention for CandleAttention {
    fn forward(&self, qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<Tensor> {
        self.shape.check_operands(qkv, kv, plan.spans())?;
        let width = self.shape.out_width();
        let spans = plan.spans();
        if spans.rows() == 0 {
            return qkv.narrow(1, 0, width);
        }
        self.write(qkv, kv, spans)?;
        let rows = spans
            .as_slice()
            .iter()
            .map(|span| {
                let q = qkv
                    .narrow(0, span.rows.start, span.rows.len())?
                    .narrow(1, 0, width)?; // [span rows, heads*head_width]
                self.attend(&q, kv, span)
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&rows, 0) // [rows, heads*head_width]
    }
}

impl CandleAttention {
    /// Scatters the keys and values of `qkv` into their slots.
    fn write(&self, qkv: &Tensor, kv: &LayerKv, spans: &StepSpans) -> Result<()> {
        let head_width = self.shape.head_width;
        let keys = self.shape.kv_heads * head_width; // values of a row's keys
        let cache = kv.shape();
        let per_word = per_word(kv);
        let rows = spans.rows();
        // The index of each element of a row's keys and values in the cache.
        let mut index = Vec::with_capacity(rows * 2 * keys);
        for (_, block, slot) in spans.written_slots(kv.part()) {
            for i in 0..2 * keys {
                let (head, d) = (i % keys / head_width, i % head_width);
                let half = (2 * head + i / keys) * cache.half();
                let within = if i < keys {
                    (d / per_word * BLOCK_SIZE + slot) * per_word + d % per_word
                } else {
                    (slot / per_word * head_width + d) * per_word + slot % per_word
                };
                index.push((block * cache.block_stride() + half + within) as i64);
            }
        }
        let index = Tensor::from_vec(index, rows * 2 * keys, qkv.device())?;
        let source = qkv
            .narrow(1, self.shape.out_width(), 2 * keys)?
            .to_dtype(kv.tensor().dtype())?
            .flatten_all()?
            .contiguous()?; // [rows * 2*keys]
        // The flattened view shares the cache's memory, as the cache is contiguous.
        kv.tensor().flatten_all()?.scatter_set(&index, &source, 0)
    }

    /// Computes `softmax(q k^T * scale) v` for one sequence's rows: `[rows, heads*head_width]` ->
    /// `[rows, heads*head_width]`.
    fn attend(&self, q: &Tensor, kv: &LayerKv, span: &SequenceSpan) -> Result<Tensor> {
        let AttentionShape {
            heads,
            kv_heads,
            head_width,
            scale,
            ..
        } = self.shape;
        let rows = span.rows.len();
        let (k, v) = keys_and_values(kv, span)?; // [kv_heads, head_width, context], [kv_heads, context, head_width]
        let q = q
            .reshape((rows, heads, head_width))?
            .transpose(0, 1)?
            .reshape((kv_heads, self.shape.group() * rows, head_width))?
            .contiguous()?; // [kv_heads, group*rows, head_width]
        let scores = (q.matmul(&k)? * f64::from(scale))?; // [kv_heads, group*rows, context]
        let scores = match self.shape.soft_cap {
            Some(cap) => soft_cap(&scores, cap)?,
            None => scores,
        };
        let scores = scores
            .reshape((heads, rows, span.context()))?
            .broadcast_add(&self.mask(span, q.device())?)?; // [heads, rows, context]
        softmax(&scores)?
            .reshape((kv_heads, self.shape.group() * rows, span.context()))?
            .matmul(&v)? // [kv_heads, group*rows, head_width]
            .reshape((heads, rows, head_width))?
            .transpose(0, 1)?
            .reshape((rows, heads * head_width))
    }

    /// Returns 0 where a row sees a position, negative infinity where it does not: `[rows, context]`.
    fn mask(&self, span: &SequenceSpan, device: &Device) -> Result<Tensor> {
        let (rows, context) = (span.rows.len(), span.context());
        let mut mask = Vec::with_capacity(rows * context);
        for own in span.first_position..context {
            let seen = self.shape.first_visible(own)..=own;
            mask.extend((0..context).map(|position| {
                if seen.contains(&position) {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            }));
        }
        Tensor::from_vec(mask, (rows, context), device)
    }
}

/// Reads a sequence's keys, `[kv_heads, head_width, context]`, and values,
/// `[kv_heads, context, head_width]`, from the cache.
fn keys_and_values(kv: &LayerKv, span: &SequenceSpan) -> Result<(Tensor, Tensor)> {
    let (heads, head_width) = (kv.shape().heads, kv.shape().head_width);
    let context = span.context();
    let blocks = context.div_ceil(BLOCK_SIZE);
    let table = Tensor::new(&span.table(kv.part())[..blocks], kv.tensor().device())?;
    let cached = kv.tensor().index_select(&table, 0)?; // [blocks, heads, 2, half]
    let cached = cached.to_dtype(DType::F32)?;
    let per_word = per_word(kv);
    let words = head_width.div_ceil(per_word);
    let k = cached
        .narrow(2, 0, 1)?
        .narrow(3, 0, words * BLOCK_SIZE * per_word)?
        .reshape(vec![blocks, heads, words, BLOCK_SIZE, per_word])?
        .permute(vec![1, 2, 4, 0, 3])?
        .reshape((heads, words * per_word, blocks * BLOCK_SIZE))?
        .narrow(1, 0, head_width)?
        .narrow(2, 0, context)?
        .contiguous()?; // [heads, head_width, context]
    let v = cached
        .narrow(2, 1, 1)?
        .narrow(3, 0, BLOCK_SIZE * head_width)?
        .reshape(vec![
            blocks,
            heads,
            BLOCK_SIZE / per_word,
            head_width,
            per_word,
        ])?
        .permute(vec![1, 0, 2, 4, 3])?
        .reshape((heads, blocks * BLOCK_SIZE, head_width))?
        .narrow(1, 0, context)?
        .contiguous()?; // [heads, context, head_width]
    Ok((k, v))
}

/// Computes the softmax over the last dimension.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let max = scores.max_keepdim(D::Minus1)?; // [.., context] -> [.., 1]
    let weights = scores.broadcast_sub(&max)?.exp()?; // [.., context]
    let sum = weights.sum_keepdim(D::Minus1)?; // [.., 1]
    weights.broadcast_div(&sum)
}

/// Returns the number of values in a 32-bit word of the cache.
fn per_word(kv: &LayerKv) -> usize {
    size_of::<u32>() / kv.tensor().dtype().size_in_bytes()
}
