//! Rotary position embeddings (Su et al. 2021, <https://arxiv.org/abs/2104.09864>) of queries and keys,
//! after an optional RMS norm of each head (QK-norm, Henry et al. 2020,
//! <https://arxiv.org/abs/2010.04245>).
//!
//! The pairs that are rotated are a head's value `i` and its value `i + head_width / 2`, by the angle
//! `position * frequency[i]`, taken in f32 (the "rotate half" order of the checkpoints). Every value
//! is computed in one order of operations, so it has the same bits on every instruction set and
//! does not depend on other rows.
//!
//! | module | what it is for |
//! |---|---|
//! | `angles` | sines and cosines of a step's positions, shared by the layers |
//! | `sine` | sine and cosine |

#![allow(clippy::inline_always)] // the functions must be compiled with their caller's features

mod angles;
mod sine;

use std::sync::Arc;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};

pub use self::angles::RotaryTables;
use self::angles::{Angles, Turns};
use super::lanes::per_isa;
use super::norm::{check_eps, rms_scale};
use super::shared_slice::SharedSlice;
use super::{Isa, Pool};

/// Maximum number of elements rotated without the pool: below it, waking threads costs more than
/// it saves.
const INLINE_ELEMENTS: usize = 8 * 1024;
/// Approximate elements per task of the pool.
const TASK_ELEMENTS: usize = 4 * 1024;

/// The rotary positions of one layer, and the norms before them.
#[derive(Debug, Clone, Copy)]
pub struct RotarySettings<'a> {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_width: usize,
    /// Radians per position of each rotated pair, `[head_width / 2]`, with all scaling applied.
    pub frequencies: &'a [f32],
    /// Weights of the RMS norm of each query, `[head_width]`; Gemma's 1 added.
    pub query_norm: Option<&'a [f32]>,
    /// Weights of the RMS norm of each key, `[head_width]`.
    pub key_norm: Option<&'a [f32]>,
    /// Epsilon of both norms.
    pub eps: f64,
}

impl RotarySettings<'_> {
    /// Returns the number of values in a row of queries, keys and values.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_width
    }

    /// Checks that the sizes are valid and match.
    ///
    /// # Errors
    /// If a size is zero, the width odd, or a length does not match.
    pub fn check(&self) -> Result<()> {
        let width = self.head_width;
        if self.heads == 0 || self.kv_heads == 0 || width == 0 || !width.is_multiple_of(2) {
            bail!(
                "rotary positions of {} query and {} key heads of {width}: sizes must be positive, and the width even",
                self.heads,
                self.kv_heads
            );
        }
        if self.frequencies.len() != width / 2 {
            bail!(
                "rotary positions of heads of {width} need {} frequencies, got {}",
                width / 2,
                self.frequencies.len()
            );
        }
        for norm in [self.query_norm, self.key_norm].into_iter().flatten() {
            if norm.len() != width {
                bail!("the norm of heads of {width} got {} weights", norm.len());
            }
        }
        check_eps(self.eps)
    }

    /// Checks that `qkv` has a row of queries, keys and values for every position.
    ///
    /// # Errors
    /// If it has a different shape or type.
    pub fn check_operands(&self, qkv: &Tensor, positions: &[u32]) -> Result<()> {
        let expected = [positions.len(), self.qkv_width()];
        if qkv.dims() != expected || qkv.dtype() != DType::F32 {
            bail!(
                "rotary positions take f32 queries, keys and values of {expected:?}, got {} of {:?}",
                qkv.dtype().as_str(),
                qkv.dims()
            );
        }
        Ok(())
    }
}

/// The rotary positions of one layer, computed by the kernels.
pub struct KernelRotary {
    pool: Arc<Pool>,
    isa: Isa,
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    query_norm: Option<Box<[f32]>>,
    key_norm: Option<Box<[f32]>>,
    eps: f32,
    angles: Arc<Angles>,
}

impl KernelRotary {
    /// Creates rotary positions that run on `pool` with the kernels of `isa`, and share sines and
    /// cosines with the other layers of `tables`.
    ///
    /// # Errors
    /// As [`RotarySettings::check`].
    pub fn new(
        pool: &Arc<Pool>,
        isa: Isa,
        tables: &RotaryTables,
        settings: RotarySettings<'_>,
    ) -> Result<Self> {
        settings.check()?;
        Ok(Self {
            pool: Arc::clone(pool),
            isa,
            heads: settings.heads,
            kv_heads: settings.kv_heads,
            head_width: settings.head_width,
            query_norm: settings.query_norm.map(Into::into),
            key_norm: settings.key_norm.map(Into::into),
            eps: settings.eps as f32,
            angles: tables.angles(isa, settings.frequencies),
        })
    }

    /// Normalizes and rotates the queries and keys of `qkv`, in place: other tensors that share its
    /// memory change too. Values are left as they are.
    ///
    /// # Errors
    /// If `qkv` has a different shape or type, or is not on the CPU.
    pub fn forward(&self, qkv: &Tensor, positions: &[u32]) -> Result<Tensor> {
        self.settings().check_operands(qkv, positions)?;
        let qkv = qkv.contiguous()?;
        let turns = self.angles.turns(positions);
        let rotate = Rotate {
            layer: self,
            turns: &turns,
        };
        qkv.inplace_op1(&rotate)?;
        Ok(qkv)
    }

    /// Returns the sizes.
    fn settings(&self) -> RotarySettings<'_> {
        RotarySettings {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_width: self.head_width,
            frequencies: &[],
            query_norm: self.query_norm.as_deref(),
            key_norm: self.key_norm.as_deref(),
            eps: f64::from(self.eps),
        }
    }

    fn rotate(&self, qkv: &mut [f32], turns: &Turns) {
        let (width, half) = (self.settings().qkv_width(), self.head_width / 2);
        let elements = qkv.len();
        let shared = SharedSlice::new(qkv);
        let rows = |first: usize, count: usize| {
            // SAFETY: every row belongs to one task.
            let qkv = unsafe { shared.part(first * width, count * width) };
            let angles = first * half..(first + count) * half;
            let (sines, cosines) = (&turns.sines[angles.clone()], &turns.cosines[angles]);
            rotate_rows(self.isa, self, qkv, sines, cosines);
        };
        let count = elements / width;
        if elements <= INLINE_ELEMENTS {
            rows(0, count);
        } else {
            let per_task = (TASK_ELEMENTS / width).max(1);
            self.pool.run(count.div_ceil(per_task), |task| {
                let first = task * per_task;
                rows(first, per_task.min(count - first));
            });
        }
    }
}

/// The candle operation.
struct Rotate<'a> {
    layer: &'a KernelRotary,
    turns: &'a Turns,
}

impl InplaceOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            bail!("rotary positions take contiguous f32 queries and keys");
        };
        self.layer.rotate(&mut values[start..end], self.turns);
        Ok(())
    }
}

per_isa! {
    /// Normalizes and rotates the queries and keys of rows.
    fn rotate_rows(layer: &KernelRotary, qkv: &mut [f32], sines: &[f32], cosines: &[f32])
        => rotate_rows_body;
}

#[inline(always)]
fn rotate_rows_body(layer: &KernelRotary, qkv: &mut [f32], sines: &[f32], cosines: &[f32]) {
    let (width, half) = (layer.head_width, layer.head_width / 2);
    let rows = qkv.chunks_exact_mut((layer.heads + 2 * layer.kv_heads) * width);
    let angles = sines.chunks_exact(half).zip(cosines.chunks_exact(half));
    for (row, (sines, cosines)) in rows.zip(angles) {
        let (queries, rest) = row.split_at_mut(layer.heads * width);
        let keys = &mut rest[..layer.kv_heads * width];
        for (heads, norm) in [(queries, &layer.query_norm), (keys, &layer.key_norm)] {
            for head in heads.chunks_exact_mut(width) {
                if let Some(weight) = norm {
                    let scale = rms_scale(head, layer.eps);
                    for (x, &weight) in head.iter_mut().zip(weight) {
                        *x = *x * scale * weight;
                    }
                }
                let (low, high) = head.split_at_mut(half);
                let pairs = low.iter_mut().zip(high);
                for ((low, high), (&sine, &cosine)) in pairs.zip(sines.iter().zip(cosines)) {
                    let (x, y) = (*low, *high);
                    *low = y.mul_add(-sine, x * cosine);
                    *high = x.mul_add(sine, y * cosine);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
