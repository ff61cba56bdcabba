//! Attention in plain candle operations, for any device: the reference for the kernels.

use candle_core::{D, DType, Result, Tensor};

use super::plan::{AttentionPlan, SequenceSpan};
use crate::kernels::kv::{BLOCK_SIZE, KvShape, LayerKv};

/// Writes the rows' keys and values into the cache, then attends: `[rows, 3*n_embd]` ->
/// `[rows, n_embd]`.
pub(super) fn forward(qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<Tensor> {
    let shape = kv.shape;
    let n_embd = shape.n_head * shape.head_dim;
    if plan.rows() == 0 {
        return qkv.narrow(1, 0, n_embd);
    }
    write(qkv, kv, plan)?;
    let rows = plan
        .spans()
        .iter()
        .map(|span| {
            let q = qkv
                .narrow(0, span.rows.start, span.rows.len())?
                .narrow(1, 0, n_embd)?; // [span rows, n_embd]
            attend(&q, kv, span)
        })
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&rows, 0) // [rows, n_embd]
}

/// Scatters the keys and values of `[rows, 3*n_embd]` into their slots.
fn write(qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<()> {
    let KvShape {
        n_head, head_dim, ..
    } = kv.shape;
    let n_embd = n_head * head_dim;
    let per_word = per_word(kv);
    let rows = plan.rows();
    // Where each element of a row's keys and values goes.
    let mut index = Vec::with_capacity(rows * 2 * n_embd);
    for (_, block, slot) in plan.written_slots() {
        for i in 0..2 * n_embd {
            let (head, d) = (i % n_embd / head_dim, i % head_dim);
            let half = (2 * head + i / n_embd) * kv.shape.half();
            let within = if i < n_embd {
                (d / per_word * BLOCK_SIZE + slot) * per_word + d % per_word
            } else {
                (slot / per_word * head_dim + d) * per_word + slot % per_word
            };
            index.push((block * kv.shape.block_stride() + half + within) as i64);
        }
    }
    let index = Tensor::from_vec(index, (rows, 2 * n_embd), qkv.device())?;
    let source = qkv
        .narrow(1, n_embd, 2 * n_embd)?
        .to_dtype(kv.tensor.dtype())?
        .flatten_all()?
        .contiguous()?; // [rows * 2*n_embd]
    // The flattened view shares the cache's memory, as the cache is contiguous.
    kv.tensor
        .flatten_all()?
        .scatter_set(&index.flatten_all()?, &source, 0)
}

/// `softmax(q k^T / sqrt(head_dim)) v` of one sequence's rows: `[rows, n_embd]` ->
/// `[rows, n_embd]`.
fn attend(q: &Tensor, kv: &LayerKv, span: &SequenceSpan) -> Result<Tensor> {
    let KvShape {
        n_head, head_dim, ..
    } = kv.shape;
    let (rows, context) = (span.rows.len(), span.context());
    let n_blocks = context.div_ceil(BLOCK_SIZE);
    let table = Tensor::new(&span.block_table[..n_blocks], q.device())?;
    let blocks = kv.tensor.index_select(&table, 0)?; // [n_blocks, n_head, 2, half]
    let blocks = blocks.to_dtype(DType::F32)?;
    let per_word = per_word(kv);
    let words = head_dim.div_ceil(per_word);
    let k = blocks
        .narrow(2, 0, 1)?
        .narrow(3, 0, words * BLOCK_SIZE * per_word)?
        .reshape(vec![n_blocks, n_head, words, BLOCK_SIZE, per_word])?
        .permute(vec![1, 2, 4, 0, 3])?
        .reshape((n_head, words * per_word, n_blocks * BLOCK_SIZE))?
        .narrow(1, 0, head_dim)?
        .narrow(2, 0, context)?
        .contiguous()?; // [n_head, head_dim, context]
    let v = blocks
        .narrow(2, 1, 1)?
        .narrow(3, 0, BLOCK_SIZE * head_dim)?
        .reshape(vec![
            n_blocks,
            n_head,
            BLOCK_SIZE / per_word,
            head_dim,
            per_word,
        ])?
        .permute(vec![1, 0, 2, 4, 3])?
        .reshape((n_head, n_blocks * BLOCK_SIZE, head_dim))?
        .narrow(1, 0, context)?
        .contiguous()?; // [n_head, context, head_dim]
    let q = q
        .reshape((rows, n_head, head_dim))?
        .transpose(0, 1)?
        .contiguous()?; // [n_head, rows, head_dim]
    let scale = 1.0 / (head_dim as f64).sqrt();
    let scores = (q.matmul(&k)? * scale)?; // [n_head, rows, context]
    let scores = scores.broadcast_add(&mask(span, q.device())?)?;
    softmax(&scores)?
        .matmul(&v)? // [n_head, rows, head_dim]
        .transpose(0, 1)?
        .reshape((rows, n_head * head_dim))
}

/// Softmax over the last dimension.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let max = scores.max_keepdim(D::Minus1)?; // [.., context] -> [.., 1]
    let weights = scores.broadcast_sub(&max)?.exp()?; // [.., context]
    let sum = weights.sum_keepdim(D::Minus1)?; // [.., 1]
    weights.broadcast_div(&sum)
}

/// Values in a 32-bit word of the cache.
fn per_word(kv: &LayerKv) -> usize {
    size_of::<u32>() / kv.tensor.dtype().size_in_bytes()
}

/// 0 where a row sees a position, negative infinity where it does not: `[rows, context]`.
fn mask(span: &SequenceSpan, device: &candle_core::Device) -> Result<Tensor> {
    let (rows, context) = (span.rows.len(), span.context());
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| {
            let own = span.first_position + row;
            (0..context).map(move |position| {
                if position <= own {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
        })
        .collect();
    Tensor::from_vec(mask, (rows, context), device)
}
