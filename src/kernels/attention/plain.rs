//! Attention in plain candle operations, for any device: the reference for the kernels.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::softmax;

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
    let device = qkv.device();
    let n_embd = n_head * head_dim;
    // A row's element goes to `block * block_stride + offset + slot * step`.
    let mut offsets = Vec::with_capacity(2 * n_embd);
    let mut steps = Vec::with_capacity(2 * n_embd);
    for i in 0..2 * n_embd {
        let (head, d) = (i % n_embd / head_dim, i % head_dim);
        let half = (2 * head + i / n_embd) * kv.shape.half();
        let (within, step) = if i < n_embd {
            (d * BLOCK_SIZE, 1)
        } else {
            (d, head_dim)
        };
        offsets.push((half + within) as i64);
        steps.push(step as i64);
    }
    let (blocks, slots): (Vec<i64>, Vec<i64>) = plan
        .written_slots()
        .map(|(_, block, slot)| ((block * kv.shape.block_stride()) as i64, slot as i64))
        .unzip();
    let rows = plan.rows();
    let blocks = Tensor::from_vec(blocks, (rows, 1), device)?;
    let slots = Tensor::from_vec(slots, (rows, 1), device)?;
    let offsets = Tensor::from_vec(offsets, (1, 2 * n_embd), device)?;
    let steps = Tensor::from_vec(steps, (1, 2 * n_embd), device)?;
    let index = slots
        .broadcast_mul(&steps)?
        .broadcast_add(&offsets)?
        .broadcast_add(&blocks)?; // [rows, 2*n_embd]
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
    let k = blocks
        .narrow(2, 0, 1)?
        .reshape((n_blocks, n_head, head_dim, BLOCK_SIZE))?
        .permute((1, 2, 0, 3))?
        .reshape((n_head, head_dim, n_blocks * BLOCK_SIZE))?
        .narrow(2, 0, context)?
        .contiguous()?; // [n_head, head_dim, context]
    let v = blocks
        .narrow(2, 1, 1)?
        .reshape((n_blocks, n_head, BLOCK_SIZE, head_dim))?
        .permute((1, 0, 2, 3))?
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
    softmax(&scores, D::Minus1)?
        .matmul(&v)? // [n_head, rows, head_dim]
        .transpose(0, 1)?
        .reshape((rows, n_head * head_dim))
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
