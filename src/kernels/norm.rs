//! Layer normalization (Ba, Kiros and Hinton 2016, <https://arxiv.org/abs/1607.06450>):
//! `y = (x - mean) / sqrt(variance + eps) * weight + bias` over each row, with the variance of
//! the whole population, taken about the mean in a second pass.
//!
//! A row's result must never depend on the rows around it or on the number of threads.

#![allow(clippy::inline_always)] // the function must be compiled with its caller's features

use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::lanes::{accumulate, fold, per_isa};
use super::shared_slice::SharedSlice;
use super::storage::contiguous;
use super::{Isa, Pool};

/// Maximum number of elements normalized without the pool: below it, waking threads costs more than
/// it saves.
const INLINE_ELEMENTS: usize = 16 * 1024;
/// Approximate elements per task of the pool.
const TASK_ELEMENTS: usize = 4 * 1024;

/// Layer normalization over rows of a fixed length, computed by the kernel.
pub struct KernelLayerNorm {
    pool: Arc<Pool>,
    isa: Isa,
    weight: Box<[f32]>,
    bias: Box<[f32]>,
    eps: f32,
}

impl KernelLayerNorm {
    /// Creates a layer norm over rows of `weight.len()` elements that runs on `pool` with the
    /// kernels of `isa`. The result is the same bit for bit on all of them.
    ///
    /// # Errors
    /// As [`check_parameters`].
    pub fn new(pool: &Arc<Pool>, isa: Isa, weight: &[f32], bias: &[f32], eps: f64) -> Result<Self> {
        check_parameters(weight, bias, eps)?;
        Ok(Self {
            pool: Arc::clone(pool),
            isa,
            weight: weight.into(),
            bias: bias.into(),
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

    fn normalize(&self, x: &[f32]) -> Vec<f32> {
        let mut y = Vec::with_capacity(x.len());
        let uninitialized = &mut y.spare_capacity_mut()[..x.len()];
        let rows = |x: &[f32], y: &mut [MaybeUninit<f32>]| {
            normalize_rows(self.isa, x, y, &self.weight, &self.bias, self.eps);
        };
        if x.len() <= INLINE_ELEMENTS {
            rows(x, uninitialized);
            // SAFETY: every row has been written.
            unsafe { y.set_len(x.len()) };
            return y;
        }
        let n = self.weight.len();
        let task_len = (TASK_ELEMENTS / n).max(1) * n;
        let output = SharedSlice::new(uninitialized);
        self.pool.run(x.len().div_ceil(task_len), |task| {
            let start = task * task_len;
            let x = &x[start..x.len().min(start + task_len)];
            // SAFETY: the parts of two tasks do not overlap.
            rows(x, unsafe { output.part(start, x.len()) });
        });
        // SAFETY: every row has been written.
        unsafe { y.set_len(x.len()) };
        y
    }
}

/// Checks the parameters of a layer norm.
///
/// # Errors
/// If `weight` is empty or `bias` has a different length, or `eps` is negative or not finite.
pub fn check_parameters(weight: &[f32], bias: &[f32], eps: f64) -> Result<()> {
    if weight.is_empty() || weight.len() != bias.len() {
        bail!(
            "layer norm: weight has {} elements and bias {}; they must have the same number, at least 1",
            weight.len(),
            bias.len()
        );
    }
    if !(0.0..f64::INFINITY).contains(&eps) {
        bail!("layer norm: eps is {eps}, it must be finite and not negative");
    }
    Ok(())
}

/// Checks that `x` is `[rows, n]` f32.
///
/// # Errors
/// If `x` has a different shape or type.
pub fn check_input(x: &Tensor, n: usize) -> Result<()> {
    if x.dtype() != DType::F32 {
        bail!("layer norm: x is {:?}, it must be F32", x.dtype());
    }
    if x.rank() != 2 || x.dims()[1] != n {
        bail!(
            "layer norm: x has shape {:?}, it must be [rows, {n}]",
            x.dims()
        );
    }
    Ok(())
}

impl CustomOp1 for KernelLayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout, "a layer norm's input")?;
        Ok((CpuStorage::F32(self.normalize(x)), layout.shape().clone()))
    }
}

per_isa! {
    /// Normalizes each row of `x`, of the length of `weight`, into `y`.
    fn normalize_rows(
        x: &[f32], y: &mut [MaybeUninit<f32>], weight: &[f32], bias: &[f32], eps: f32,
    )
        => normalize_rows_body;
}

#[inline(always)]
fn normalize_rows_body(
    x: &[f32],
    y: &mut [MaybeUninit<f32>],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    let n = weight.len();
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let mean = fold(accumulate(x, 0.0, |sum, x| sum + x), |a, b| a + b) / n as f32;
        let squares = accumulate(x, 0.0, |sum: f32, x| (x - mean).mul_add(x - mean, sum));
        let variance = fold(squares, |a, b| a + b) / n as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            y.write(((x - mean) * scale).mul_add(weight, bias));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use candle_core::Device;

    use super::*;
    use crate::backend::LayerNorm;
    use crate::backend::candle::CandleLayerNorm;

    const EPS: f64 = 1e-5;

    /// Returns values in [-1, 1), from a linear congruential generator.
    fn noise(len: usize, mut state: u32) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// Returns rows like a transformer's: off center, with one feature much larger than the others.
    fn rows(rows: usize, n: usize) -> Vec<f32> {
        let mut x = noise(rows * n, 3);
        for row in x.chunks_mut(n) {
            for x in row.iter_mut() {
                *x += 0.5;
            }
            row[n / 2] *= 100.0;
        }
        x
    }

    fn pool(threads: usize) -> Arc<Pool> {
        Pool::new(NonZeroUsize::new(threads).unwrap())
    }

    fn forward(norm: &dyn LayerNorm, x: &[f32], n: usize) -> Vec<f32> {
        let x = Tensor::from_slice(x, (x.len() / n, n), &Device::Cpu).unwrap();
        let y = norm.forward(&x).unwrap();
        assert_eq!(y.dims(), x.dims());
        y.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn in_f64(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
        let n = weight.len() as f64;
        let mut y = Vec::new();
        for x in x.chunks(weight.len()) {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let square = |&x: &f32| (f64::from(x) - mean).powi(2);
            let variance = x.iter().map(square).sum::<f64>() / n;
            y.extend(x.iter().zip(weight).zip(bias).map(|((&x, &w), &b)| {
                (f64::from(x) - mean) / (variance + EPS).sqrt() * f64::from(w) + f64::from(b)
            }));
        }
        y
    }

    #[test]
    fn the_kernel_and_candle_are_both_right() {
        let pool = pool(2);
        for n in [1, 15, 16, 17, 63, 768, 1600] {
            let (x, weight, bias) = (rows(5, n), noise(n, 1), noise(n, 2));
            let truth = in_f64(&x, &weight, &bias);
            let kernel = KernelLayerNorm::new(&pool, Isa::detect(), &weight, &bias, EPS).unwrap();
            let candle = CandleLayerNorm::new(&Device::Cpu, &weight, &bias, EPS).unwrap();
            let norms: [(&str, &dyn LayerNorm); 2] = [("kernel", &kernel), ("candle", &candle)];
            for (name, norm) in norms {
                for (y, truth) in forward(norm, &x, n).iter().zip(&truth) {
                    let error = (f64::from(*y) - truth).abs();
                    assert!(
                        error <= 2e-6 * truth.abs().max(1.0),
                        "{name}, {n}: off by {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_or_among_others_on_all_instruction_sets() {
        let (one, three) = (pool(1), pool(3));
        for n in [1, 15, 16, 17, 63, 768, 1600] {
            // Enough rows that the pool is used, with a last task shorter than the others.
            let count = 2 * INLINE_ELEMENTS / n + 1;
            let (x, weight, bias) = (rows(count, n), noise(n, 1), noise(n, 2));
            let reference = KernelLayerNorm::new(&one, Isa::Portable, &weight, &bias, EPS).unwrap();
            let expected = forward(&reference, &x, n);
            for isa in Isa::available() {
                let norm = KernelLayerNorm::new(&three, isa, &weight, &bias, EPS).unwrap();
                assert!(forward(&norm, &x, n) == expected, "{n} on {}", isa.name());
                for row in [0, 1, count / 2, count - 1] {
                    let range = row * n..(row + 1) * n;
                    let alone = forward(&norm, &x[range.clone()], n);
                    assert!(
                        alone == expected[range],
                        "row {row} of {n} on {}",
                        isa.name()
                    );
                }
            }
        }
    }

    #[test]
    fn a_view_into_a_larger_tensor_is_read_where_it_lies() {
        let (x, weight, bias) = (rows(4, 17), noise(17, 1), noise(17, 2));
        let norm = KernelLayerNorm::new(&pool(1), Isa::detect(), &weight, &bias, EPS).unwrap();
        let all = Tensor::from_slice(&x, (4, 17), &Device::Cpu).unwrap();
        let middle = norm.forward(&all.narrow(0, 1, 2).unwrap()).unwrap();
        let middle: Vec<f32> = middle.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(middle, forward(&norm, &x, 17)[17..51]);
        assert_eq!(
            norm.forward(&all.narrow(0, 0, 0).unwrap()).unwrap().dims(),
            [0, 17]
        );
    }

    #[test]
    fn operands_that_do_not_fit_are_errors_with_the_reason() {
        let pool = pool(1);
        let kernel = |weight: &[f32], bias: &[f32], eps| {
            KernelLayerNorm::new(&pool, Isa::detect(), weight, bias, eps)
        };
        let error = |result: Result<KernelLayerNorm>| result.err().unwrap().to_string();
        assert!(error(kernel(&[], &[], EPS)).contains("at least 1"));
        assert!(error(kernel(&[1.0; 3], &[1.0; 2], EPS)).contains("3 elements and bias 2"));
        for eps in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(error(kernel(&[1.0], &[1.0], eps)).contains("eps"));
        }
        let candle = CandleLayerNorm::new(&Device::Cpu, &[1.0; 3], &[0.0; 3], EPS).unwrap();
        let kernel_norm = kernel(&[1.0; 3], &[0.0; 3], EPS).unwrap();
        let norms: [&dyn LayerNorm; 2] = [&kernel_norm, &candle];
        for norm in norms {
            let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
            let error = |x| norm.forward(&x).unwrap_err().to_string();
            assert!(error(zeros(&[2, 4], DType::F32)).contains("[2, 4]"));
            assert!(error(zeros(&[3], DType::F32)).contains("[rows, 3]"));
            assert!(error(zeros(&[2, 3], DType::F64)).contains("F64"));
        }
        let transposed = Tensor::zeros((3, 2), DType::F32, &Device::Cpu)
            .unwrap()
            .t()
            .unwrap();
        let norm = kernel(&[1.0; 3], &[0.0; 3], EPS).unwrap();
        assert!(
            norm.forward(&transposed)
                .unwrap_err()
                .to_string()
                .contains("contiguous")
        );
    }
}
