//! Normalization of rows, with an optional residual added to the result.
//!
//! - Layer norm (Ba, Kiros and Hinton 2016, <https://arxiv.org/abs/1607.06450>):
//!   `y = (x - mean) / sqrt(variance + eps) * weight + bias` over each row, with the variance of the
//!   whole population, taken about the mean in a second pass.
//! - RMS norm (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>):
//!   `y = x / sqrt(mean(x^2) + eps) * weight`.
//!
//! A row's result must never depend on the rows around it or on the number of threads.

#![allow(clippy::inline_always)] // the functions must be compiled with their caller's features

use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use super::lanes::{accumulate, fold, per_isa};
use super::shared_slice::SharedSlice;
use super::storage::contiguous;
use super::{Isa, Pool};

/// Maximum number of elements normalized without the pool: below it, waking threads costs more than
/// it saves.
const INLINE_ELEMENTS: usize = 16 * 1024;
/// Approximate elements per task of the pool.
const TASK_ELEMENTS: usize = 4 * 1024;

/// Normalization of rows of a fixed length, computed by the kernels.
pub struct KernelNorm {
    pool: Arc<Pool>,
    isa: Isa,
    weight: Box<[f32]>,
    /// Bias of a layer norm; `None` for an RMS norm.
    bias: Option<Box<[f32]>>,
    eps: f32,
}

impl KernelNorm {
    /// Creates a layer norm over rows of `weight.len()` elements that runs on `pool` with the
    /// kernels of `isa`. The result is the same bit for bit on all of them.
    ///
    /// # Errors
    /// As [`check_parameters`].
    pub fn layer(
        pool: &Arc<Pool>,
        isa: Isa,
        weight: &[f32],
        bias: &[f32],
        eps: f64,
    ) -> Result<Self> {
        check_parameters(weight, Some(bias), eps)?;
        Ok(Self {
            bias: Some(bias.into()),
            ..Self::rms(pool, isa, weight, eps)?
        })
    }

    /// Creates an RMS norm in the same way.
    ///
    /// # Errors
    /// As [`check_parameters`].
    pub fn rms(pool: &Arc<Pool>, isa: Isa, weight: &[f32], eps: f64) -> Result<Self> {
        check_parameters(weight, None, eps)?;
        Ok(Self {
            pool: Arc::clone(pool),
            isa,
            weight: weight.into(),
            bias: None,
            eps: eps as f32,
        })
    }

    /// Normalizes each row of `x`, `[rows, n]` f32, into a tensor of the same shape.
    ///
    /// # Errors
    /// As [`check_input`], or if `x` is not contiguous on the CPU.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_input(x, self.weight.len())?;
        x.apply_op1_no_bwd(self)
    }

    /// Computes `residual + norm(x)`, both `[rows, n]` f32.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), or if the residual has a different shape.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        check_input(x, self.weight.len())?;
        check_residual(x, residual)?;
        x.apply_op2_no_bwd(residual, self)
    }

    /// Normalizes rows; `residual` has the length of `x`, or is empty if there is none.
    fn normalize(&self, x: &[f32], residual: &[f32]) -> Vec<f32> {
        let mut y = Vec::with_capacity(x.len());
        let uninitialized = &mut y.spare_capacity_mut()[..x.len()];
        let rows = |start: usize, y: &mut [MaybeUninit<f32>]| {
            let end = start + y.len();
            let residual = residual.get(start..end).unwrap_or_default();
            let rows = Rows {
                x: &x[start..end],
                residual,
                weight: &self.weight,
                eps: self.eps,
            };
            match &self.bias {
                Some(bias) => layer_norm_rows(self.isa, &rows, bias, y),
                None => rms_norm_rows(self.isa, &rows, y),
            }
        };
        if x.len() <= INLINE_ELEMENTS {
            rows(0, uninitialized);
        } else {
            let n = self.weight.len();
            let task_len = (TASK_ELEMENTS / n).max(1) * n;
            let output = SharedSlice::new(uninitialized);
            self.pool.run(x.len().div_ceil(task_len), |task| {
                let start = task * task_len;
                let len = task_len.min(x.len() - start);
                // SAFETY: the parts of two tasks do not overlap.
                rows(start, unsafe { output.part(start, len) });
            });
        }
        // SAFETY: every row has been written.
        unsafe { y.set_len(x.len()) };
        y
    }
}

/// Checks the parameters of a norm; `bias` is that of a layer norm.
///
/// # Errors
/// If `weight` is empty or `bias` has a different length, or `eps` is negative or not finite.
pub fn check_parameters(weight: &[f32], bias: Option<&[f32]>, eps: f64) -> Result<()> {
    if weight.is_empty() {
        bail!("norm: the weight must have at least 1 element");
    }
    if let Some(bias) = bias
        && bias.len() != weight.len()
    {
        bail!(
            "norm: weight has {} elements and bias {}; they must have the same number",
            weight.len(),
            bias.len()
        );
    }
    check_eps(eps)
}

/// Checks the epsilon of a norm.
///
/// # Errors
/// If it is negative or not finite.
pub fn check_eps(eps: f64) -> Result<()> {
    if !(0.0..f64::INFINITY).contains(&eps) {
        bail!("norm: eps is {eps}, it must be finite and not negative");
    }
    Ok(())
}

/// Checks that `x` is `[rows, n]` f32.
///
/// # Errors
/// If `x` has a different shape or type.
pub fn check_input(x: &Tensor, n: usize) -> Result<()> {
    if x.dtype() != DType::F32 {
        bail!("norm: x is {:?}, it must be F32", x.dtype());
    }
    if x.rank() != 2 || x.dims()[1] != n {
        bail!("norm: x has shape {:?}, it must be [rows, {n}]", x.dims());
    }
    Ok(())
}

/// Checks that a residual has the shape of `x`.
///
/// # Errors
/// If it has a different one.
pub fn check_residual(x: &Tensor, residual: &Tensor) -> Result<()> {
    if residual.shape() != x.shape() {
        bail!(
            "norm: a residual of shape {:?} for x of shape {:?}",
            residual.dims(),
            x.dims()
        );
    }
    Ok(())
}

impl CustomOp1 for KernelNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout, "a norm's input")?;
        let y = self.normalize(x, &[]);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

impl CustomOp2 for KernelNorm {
    fn name(&self) -> &'static str {
        "norm-add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout, "a norm's input")?;
        let residual = contiguous(residual, residual_layout, "a norm's residual")?;
        let y = self.normalize(x, residual);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// Operands of a few rows.
struct Rows<'a> {
    x: &'a [f32],
    /// As long as `x`, or empty.
    residual: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

per_isa! {
    /// Writes the layer norm of each row, of the length of `weight`, to `y`.
    fn layer_norm_rows(rows: &Rows<'_>, bias: &[f32], y: &mut [MaybeUninit<f32>])
        => layer_norm_rows_body;
}

per_isa! {
    /// Writes the RMS norm of each row, of the length of `weight`, to `y`.
    fn rms_norm_rows(rows: &Rows<'_>, y: &mut [MaybeUninit<f32>]) => rms_norm_rows_body;
}

#[inline(always)]
fn layer_norm_rows_body(rows: &Rows<'_>, bias: &[f32], y: &mut [MaybeUninit<f32>]) {
    let n = rows.weight.len();
    for (start, (x, y)) in (0..)
        .step_by(n)
        .zip(rows.x.chunks_exact(n).zip(y.chunks_exact_mut(n)))
    {
        let mean = fold(accumulate(x, 0.0, |sum, x| sum + x), |a, b| a + b) / n as f32;
        let squares = accumulate(x, 0.0, |sum: f32, x| (x - mean).mul_add(x - mean, sum));
        let variance = fold(squares, |a, b| a + b) / n as f32;
        let scale = 1.0 / (variance + rows.eps).sqrt();
        let operands = x.iter().zip(rows.weight).zip(bias);
        let normalized =
            operands.map(|((&x, &weight), &bias)| ((x - mean) * scale).mul_add(weight, bias));
        write_row(normalized, rows.residual.get(start..start + n), y);
    }
}

#[inline(always)]
fn rms_norm_rows_body(rows: &Rows<'_>, y: &mut [MaybeUninit<f32>]) {
    let n = rows.weight.len();
    for (start, (x, y)) in (0..)
        .step_by(n)
        .zip(rows.x.chunks_exact(n).zip(y.chunks_exact_mut(n)))
    {
        let scale = rms_scale(x, rows.eps);
        let normalized = x
            .iter()
            .zip(rows.weight)
            .map(|(&x, &weight)| x * scale * weight);
        write_row(normalized, rows.residual.get(start..start + n), y);
    }
}

/// Returns `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(super) fn rms_scale(x: &[f32], eps: f32) -> f32 {
    let squares = accumulate(x, 0.0, |sum: f32, x| x.mul_add(x, sum));
    1.0 / (fold(squares, |a, b| a + b) / x.len() as f32 + eps).sqrt()
}

/// Writes a row, added to its residual.
#[inline(always)]
fn write_row(
    normalized: impl Iterator<Item = f32>,
    residual: Option<&[f32]>,
    y: &mut [MaybeUninit<f32>],
) {
    match residual {
        None => {
            for (y, normalized) in y.iter_mut().zip(normalized) {
                y.write(normalized);
            }
        }
        Some(residual) => {
            for ((y, normalized), &residual) in y.iter_mut().zip(normalized).zip(residual) {
                y.write(residual + normalized);
            }
        }
    }
}

#[cfg(test)]
mod tests;
