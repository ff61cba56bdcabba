//! Compares packed layers with candle's, over odd shapes, on every instruction set of the machine.

use std::num::NonZeroUsize;

use candle_core::{DType, Device};

use super::*;
use crate::backend::Linear;
use crate::backend::candle::CandleLinear;
use crate::kernels::stored::StoredType;

const SHAPES: [(usize, usize); 9] = [
    (1, 1),
    (3, 5),
    (17, 33),
    (63, 31),
    (128, 64),
    (129, 100),
    (256, 768),
    (300, 257),
    (1000, 97),
];
const DTYPES: [WeightDtype; 3] = [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::Q8];

const GELU: Epilogue<'static> = Epilogue::Activate(Activation::GeluTanh);

/// Returns pseudo-random numbers, about -1 to 1.
fn noise(count: usize, salt: u32) -> Vec<f32> {
    let mut state = salt.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

struct Case {
    bytes: Vec<u8>,
    bias: Vec<f32>,
    in_features: usize,
    out_features: usize,
}

impl Case {
    fn new((in_features, out_features): (usize, usize)) -> Self {
        let weights = noise(in_features * out_features, 1);
        Self {
            bytes: weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
            bias: noise(out_features, 2),
            in_features,
            out_features,
        }
    }

    fn raw(&self, order: MatrixOrder) -> RawWeight<'_> {
        RawWeight {
            bytes: &self.bytes,
            dtype: StoredType::F32,
            order,
            in_features: self.in_features,
            out_features: self.out_features,
        }
    }

    fn plain(&self) -> CandleLinear {
        CandleLinear::new(
            &Device::Cpu,
            &[self.raw(MatrixOrder::InOut)],
            Some(&self.bias),
        )
        .unwrap()
    }

    fn packed(&self, isa: Isa, dtype: WeightDtype) -> PackedLinear {
        let raw = self.raw(MatrixOrder::InOut);
        pack(isa, dtype, raw, Some(&self.bias)).unwrap()
    }

    fn x(&self, rows: usize) -> Tensor {
        let values = noise(rows * self.in_features, 3);
        Tensor::from_vec(values, (rows, self.in_features), &Device::Cpu).unwrap()
    }
}

fn pack(
    isa: Isa,
    dtype: WeightDtype,
    raw: RawWeight<'_>,
    bias: Option<&[f32]>,
) -> Result<PackedLinear> {
    PackedLinear::pack(&pool(), isa, &WeightMemory::default(), dtype, &[raw], bias)
}

fn pool() -> Arc<Pool> {
    Pool::new(NonZeroUsize::new(2).unwrap())
}

/// Asserts that a call failed with these words in its message.
#[track_caller]
fn assert_refused<T>(result: Result<T>, words: &str) {
    let error = result.err().expect("an error").to_string();
    assert!(error.contains(words), "{words} in {error}");
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// Returns the root mean square of the difference over that of the expected values.
fn relative_error(found: &Tensor, expected: &Tensor) -> f32 {
    let (found, expected) = (values(found), values(expected));
    let difference: f32 = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    (difference / expected.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

#[test]
fn every_dtype_is_as_near_to_plain_candle_as_its_precision_allows() {
    for shape in SHAPES {
        let case = Case::new(shape);
        let raw = case.raw(MatrixOrder::InOut);
        let plain = CandleLinear::new(&Device::Cpu, &[raw], None).unwrap();
        for rows in [1, 2, 5, 7, 13, 40] {
            let x = case.x(rows);
            let expected = plain.forward(&x, Epilogue::None).unwrap();
            for isa in Isa::available() {
                for (dtype, tolerance) in DTYPES.into_iter().zip([2e-6, 6e-3, 1.2e-2]) {
                    let linear = pack(isa, dtype, raw, None).unwrap();
                    let found = linear.forward(&x, Epilogue::None).unwrap();
                    assert_eq!(found.dims(), expected.dims());
                    let error = relative_error(&found, &expected);
                    assert!(
                        error < tolerance,
                        "{shape:?} {rows} {isa:?} {dtype:?}: {error}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_weights_of_an_output_are_those_it_was_packed_from() {
    for shape in SHAPES {
        let case = Case::new(shape);
        let raw = case.raw(MatrixOrder::InOut);
        let outputs: Vec<u32> = (0..shape.1 as u32).rev().chain([0]).collect();
        let added = |linear: &dyn Linear| {
            let mut x = noise(outputs.len() * shape.0, 5);
            linear.add_weights_of(&outputs, &mut x).unwrap();
            x
        };
        let expected = added(&CandleLinear::new(&Device::Cpu, &[raw], None).unwrap());
        for (dtype, tolerance) in DTYPES.into_iter().zip([0.0, 4e-3, 4.1e-3]) {
            let linear = pack(Isa::detect(), dtype, raw, None).unwrap();
            for (found, expected) in added(&linear).iter().zip(&expected) {
                assert!((found - expected).abs() <= tolerance, "{shape:?} {dtype:?}");
            }
            let refused = linear.add_weights_of(&[shape.1 as u32], &mut vec![0.0; shape.0]);
            assert_refused(refused, "is outside the vocabulary");
            let refused = linear.add_weights_of(&[0], &mut []);
            assert_refused(refused, "can't be added to 0 values");
        }
    }
}

#[test]
fn epilogues_are_applied_after_the_bias() {
    let case = Case::new((100, 70));
    let x = case.x(9);
    let residual = Tensor::from_vec(noise(9 * 70, 4), (9, 70), &Device::Cpu).unwrap();
    let gated = |activation| Epilogue::Gated {
        gate: &residual,
        activation,
    };
    for epilogue in [
        GELU,
        Epilogue::Activate(Activation::Silu),
        gated(Activation::GeluTanh),
        gated(Activation::Silu),
        Epilogue::Add(&residual),
        Epilogue::SoftCap(3.0),
    ] {
        let expected = case.plain().forward(&x, epilogue).unwrap();
        for isa in Isa::available() {
            let found = case
                .packed(isa, WeightDtype::F32)
                .forward(&x, epilogue)
                .unwrap();
            assert!(relative_error(&found, &expected) < 2e-6, "{isa:?}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let case = Case::new((300, 130));
    let x = case.x(70);
    for isa in Isa::available() {
        for dtype in DTYPES {
            let linear = case.packed(isa, dtype);
            let alone: Vec<Vec<u32>> = (0..70)
                .map(|r| x.narrow(0, r, 1).unwrap())
                .map(|row| bits(&linear.forward(&row, GELU).unwrap()))
                .collect();
            for rows in [2, 3, 6, 11, 12, 13, 25, 70] {
                let together = x.narrow(0, 0, rows).unwrap();
                let together = bits(&linear.forward(&together, GELU).unwrap());
                assert_eq!(together, alone[..rows].concat(), "{isa:?} {dtype:?} {rows}");
            }
        }
    }
}

#[test]
fn f32_and_q8_have_the_same_bits_on_every_instruction_set() {
    let case = Case::new((300, 130));
    let x = case.x(14);
    for dtype in [WeightDtype::F32, WeightDtype::Q8] {
        let of = |isa| bits(&case.packed(isa, dtype).forward(&x, GELU).unwrap());
        let expected = of(Isa::Portable);
        assert!(
            Isa::available().into_iter().all(|isa| of(isa) == expected),
            "{dtype:?}"
        );
    }
}

#[test]
fn the_order_and_type_on_disk_do_not_matter() {
    let case = Case::new((50, 37));
    let x = case.x(3);
    let expected = bits(
        &case
            .packed(Isa::detect(), WeightDtype::F32)
            .forward(&x, Epilogue::None)
            .unwrap(),
    );
    let weights = noise(50 * 37, 1);
    let transposed: Vec<u8> = (0..37)
        .flat_map(|n| (0..50).map(move |k| (n, k)))
        .flat_map(|(n, k)| weights[k * 37 + n].to_le_bytes())
        .collect();
    let raw = RawWeight {
        bytes: &transposed,
        ..case.raw(MatrixOrder::OutIn)
    };
    let linear = pack(Isa::detect(), WeightDtype::F32, raw, Some(&case.bias)).unwrap();
    assert_eq!(bits(&linear.forward(&x, Epilogue::None).unwrap()), expected);

    let halves: Vec<u8> = weights
        .iter()
        .flat_map(|&w| half::f16::from_f32(w).to_le_bytes())
        .collect();
    let raw = RawWeight {
        bytes: &halves,
        dtype: StoredType::F16,
        ..case.raw(MatrixOrder::InOut)
    };
    let packed = pack(Isa::detect(), WeightDtype::F32, raw, None).unwrap();
    let plain = CandleLinear::new(&Device::Cpu, &[raw], None).unwrap();
    let (found, expected) = (
        packed.forward(&x, Epilogue::None),
        plain.forward(&x, Epilogue::None),
    );
    assert!(relative_error(&found.unwrap(), &expected.unwrap()) < 2e-6);
}

#[test]
fn the_outputs_of_matrices_packed_together_are_those_of_each_alone() {
    let cases = [Case::new((50, 37)), Case::new((50, 5)), Case::new((50, 64))];
    let x = cases[0].x(3);
    let halves: Vec<u8> = noise(50 * 5, 1)
        .into_iter()
        .flat_map(|w| half::bf16::from_f32(w).to_le_bytes())
        .collect();
    let weights = [
        cases[0].raw(MatrixOrder::OutIn),
        RawWeight {
            bytes: &halves,
            dtype: StoredType::Bf16,
            ..cases[1].raw(MatrixOrder::OutIn)
        },
        cases[2].raw(MatrixOrder::InOut),
    ];
    let bias = cases.each_ref().map(|case| &case.bias[..]).concat();
    for isa in Isa::available() {
        for dtype in DTYPES {
            let memory = WeightMemory::default();
            let pack = |weights: &[RawWeight<'_>], bias| {
                PackedLinear::pack(&pool(), isa, &memory, dtype, weights, Some(bias)).unwrap()
            };
            let together = pack(&weights, &bias);
            let found = together.forward(&x, Epilogue::None).unwrap();
            let mut column = 0;
            for (weight, case) in weights.iter().zip(&cases) {
                let alone = pack(&[*weight], &case.bias);
                let alone = alone.forward(&x, Epilogue::None).unwrap();
                let found = found.narrow(1, column, weight.out_features).unwrap();
                assert_eq!(bits(&found), bits(&alone), "{isa:?} {dtype:?} {column}");
                column += weight.out_features;
            }
            let plain = CandleLinear::new(&Device::Cpu, &weights, Some(&bias)).unwrap();
            let plain = plain.forward(&x, Epilogue::None).unwrap();
            assert!(relative_error(&found, &plain) < 1.2e-2, "{isa:?} {dtype:?}");
        }
    }
    let other = Case::new((49, 4));
    let memory = WeightMemory::default();
    let pack = |weights: &[RawWeight<'_>]| {
        PackedLinear::pack(
            &pool(),
            Isa::Portable,
            &memory,
            WeightDtype::F32,
            weights,
            None,
        )
    };
    let refused = pack(&[weights[0], other.raw(MatrixOrder::OutIn)]);
    assert_refused(refused, "can't read both 50 and 49 features");
    assert_refused(pack(&[]), "at least one matrix");
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let case = Case::new((8, 4));
    let linear = case.packed(Isa::detect(), WeightDtype::F32);
    let wrong = Tensor::zeros((2, 7), DType::F32, &Device::Cpu).unwrap();
    let refused = linear.forward(&wrong, Epilogue::None);
    assert_refused(refused, "a linear layer of 8 features got 7");
    let doubles = Tensor::zeros((2, 8), DType::F64, &Device::Cpu).unwrap();
    let refused = linear.forward(&doubles, Epilogue::None);
    assert_refused(refused, "input must be f32, is f64");
    let x = case.x(2);
    let refused = linear.forward(&x, Epilogue::Add(&wrong));
    assert_refused(refused, "a residual of shape [2, 7] for [2, 4]");
    let gated = Epilogue::Gated {
        gate: &wrong,
        activation: Activation::Silu,
    };
    assert_refused(
        linear.forward(&x, gated),
        "a gate of shape [2, 7] for [2, 4]",
    );
    let transposed = case.x(4).t().unwrap().contiguous().unwrap();
    let refused = linear.forward(&transposed, Epilogue::None);
    assert_refused(refused, "a linear layer of 8 features got 4");
    let short = RawWeight {
        bytes: &case.bytes[4..],
        ..case.raw(MatrixOrder::InOut)
    };
    let refused = pack(Isa::detect(), WeightDtype::F32, short, None);
    assert_refused(refused, "take 128 bytes, got 124");
    let raw = case.raw(MatrixOrder::InOut);
    let refused = pack(Isa::detect(), WeightDtype::F32, raw, Some(&[0.0; 3]));
    assert_refused(refused, "of 4 outputs got 3 biases");
}
