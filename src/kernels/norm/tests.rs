//! Compares the norms with candle's operations and with themselves.

use std::num::NonZeroUsize;

use candle_core::Device;

use super::*;
use crate::backend::Norm;
use crate::backend::candle::CandleNorm;

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

fn forward(norm: &dyn Norm, x: &[f32], n: usize) -> Vec<f32> {
    let x = Tensor::from_slice(x, (x.len() / n, n), &Device::Cpu).unwrap();
    let y = norm.forward(&x).unwrap();
    assert_eq!(y.dims(), x.dims());
    y.flatten_all().unwrap().to_vec1().unwrap()
}

fn forward_add(norm: &dyn Norm, x: &[f32], residual: &[f32], n: usize) -> Vec<f32> {
    let tensor = |x| Tensor::from_slice(x, (x.len() / n, n), &Device::Cpu).unwrap();
    let y = norm.forward_add(&tensor(x), &tensor(residual)).unwrap();
    y.flatten_all().unwrap().to_vec1().unwrap()
}

/// Returns the norm in f64: a layer norm with a bias, else an RMS norm.
fn in_f64(x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let n = weight.len() as f64;
    let mut y = Vec::new();
    for x in x.chunks(weight.len()) {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let mean = if bias.is_some() { mean } else { 0.0 };
        let square = |&x: &f32| (f64::from(x) - mean).powi(2);
        let variance = x.iter().map(square).sum::<f64>() / n;
        y.extend(x.iter().zip(weight).enumerate().map(|(i, (&x, &w))| {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
            (f64::from(x) - mean) / (variance + EPS).sqrt() * f64::from(w) + bias
        }));
    }
    y
}

const WIDTHS: [usize; 9] = [1, 15, 16, 17, 63, 256, 640, 768, 1600];

#[test]
fn the_kernel_and_candle_are_both_right() {
    let pool = pool(2);
    let isa = Isa::detect();
    for n in WIDTHS {
        let (x, weight, bias) = (rows(5, n), noise(n, 1), noise(n, 2));
        let residual = noise(5 * n, 4);
        let layer = KernelNorm::layer(&pool, isa, &weight, &bias, EPS).unwrap();
        let rms = KernelNorm::rms(&pool, isa, &weight, EPS).unwrap();
        let candle_layer = CandleNorm::layer(&Device::Cpu, &weight, &bias, EPS).unwrap();
        let candle_rms = CandleNorm::rms(&Device::Cpu, &weight, EPS).unwrap();
        let norms: [(&str, &dyn Norm, _); 4] = [
            ("layer kernel", &layer, Some(&bias[..])),
            ("layer candle", &candle_layer, Some(&bias)),
            ("RMS kernel", &rms, None),
            ("RMS candle", &candle_rms, None),
        ];
        for (name, norm, bias) in norms {
            let truth = in_f64(&x, &weight, bias);
            let added = forward_add(norm, &x, &residual, n);
            for (i, (y, truth)) in forward(norm, &x, n).iter().zip(&truth).enumerate() {
                let error = (f64::from(*y) - truth).abs();
                assert!(
                    error <= 2e-6 * truth.abs().max(1.0),
                    "{name}, {n}: off by {error}"
                );
                assert_eq!(added[i], residual[i] + y, "{name}, {n}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_or_among_others_on_all_instruction_sets() {
    let (one, three) = (pool(1), pool(3));
    for (n, is_rms) in WIDTHS.into_iter().flat_map(|n| [(n, false), (n, true)]) {
        // Enough rows that the pool is used, with a last task shorter than the others.
        let count = 2 * INLINE_ELEMENTS / n + 1;
        let (x, weight, bias) = (rows(count, n), noise(n, 1), noise(n, 2));
        let residual = noise(count * n, 4);
        let norm = |pool, isa| {
            if is_rms {
                KernelNorm::rms(pool, isa, &weight, EPS).unwrap()
            } else {
                KernelNorm::layer(pool, isa, &weight, &bias, EPS).unwrap()
            }
        };
        let reference = norm(&one, Isa::Portable);
        let expected = forward(&reference, &x, n);
        let expected_sum = forward_add(&reference, &x, &residual, n);
        for isa in Isa::available() {
            let norm = norm(&three, isa);
            assert!(forward(&norm, &x, n) == expected, "{n} on {}", isa.name());
            let sum = forward_add(&norm, &x, &residual, n);
            assert!(sum == expected_sum, "{n} on {}", isa.name());
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
    let norm = KernelNorm::layer(&pool(1), Isa::detect(), &weight, &bias, EPS).unwrap();
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
        KernelNorm::layer(&pool, Isa::detect(), weight, bias, eps)
    };
    let error = |result: Result<KernelNorm>| result.err().unwrap().to_string();
    assert!(error(kernel(&[], &[], EPS)).contains("at least 1"));
    assert!(error(kernel(&[1.0; 3], &[1.0; 2], EPS)).contains("3 elements and bias 2"));
    for eps in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(error(kernel(&[1.0], &[1.0], eps)).contains("eps"));
    }
    let candle = CandleNorm::layer(&Device::Cpu, &[1.0; 3], &[0.0; 3], EPS).unwrap();
    let kernel_norm = kernel(&[1.0; 3], &[0.0; 3], EPS).unwrap();
    let norms: [&dyn Norm; 2] = [&kernel_norm, &candle];
    for norm in norms {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let error = |x| norm.forward(&x).unwrap_err().to_string();
        assert!(error(zeros(&[2, 4], DType::F32)).contains("[2, 4]"));
        assert!(error(zeros(&[3], DType::F32)).contains("[rows, 3]"));
        assert!(error(zeros(&[2, 3], DType::F64)).contains("F64"));
        let x = zeros(&[2, 3], DType::F32);
        let added = norm.forward_add(&x, &zeros(&[3, 3], DType::F32));
        assert!(
            added
                .unwrap_err()
                .to_string()
                .contains("a residual of shape [3, 3]")
        );
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
