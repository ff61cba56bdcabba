//! Compares rotary positions with candle's operations and with themselves.

use std::num::NonZeroUsize;

use candle_core::Device;

use super::*;
use crate::backend::Rotary;
use crate::backend::candle::CandleRotary;

/// Query heads, key and value heads, head width.
const SIZES: [(usize, usize, usize); 6] = [
    (1, 1, 2),
    (4, 1, 256),
    (8, 2, 64),
    (3, 3, 80),
    (6, 2, 34),
    (2, 1, 16),
];

/// Returns repeatable numbers in -1..1.
fn noise(count: usize, mut state: u32) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn pool(threads: usize) -> Arc<Pool> {
    Pool::new(NonZeroUsize::new(threads).unwrap())
}

struct Case {
    sizes: (usize, usize, usize),
    frequencies: Vec<f32>,
    norms: Option<[Vec<f32>; 2]>,
}

impl Case {
    fn new(sizes: (usize, usize, usize), normed: bool) -> Self {
        let width = sizes.2;
        let frequency = |i: usize| 10_000f32.powf(-2.0 * i as f32 / width as f32);
        Self {
            sizes,
            frequencies: (0..width / 2).map(frequency).collect(),
            norms: normed.then(|| [noise(width, 1), noise(width, 2)]),
        }
    }

    fn settings(&self) -> RotarySettings<'_> {
        let (heads, kv_heads, head_width) = self.sizes;
        let norm = |i: usize| self.norms.as_ref().map(|norms| &norms[i][..]);
        RotarySettings {
            heads,
            kv_heads,
            head_width,
            frequencies: &self.frequencies,
            query_norm: norm(0),
            key_norm: norm(1),
            eps: 1e-6,
        }
    }

    fn qkv(&self, rows: usize) -> Tensor {
        let width = self.settings().qkv_width();
        Tensor::from_vec(noise(rows * width, 3), (rows, width), &Device::Cpu).unwrap()
    }

    fn kernel(&self, pool: &Arc<Pool>, isa: Isa) -> KernelRotary {
        KernelRotary::new(pool, isa, &RotaryTables::default(), self.settings()).unwrap()
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let cases = |sizes| [false, true].map(|normed| Case::new(sizes, normed));
    SIZES.into_iter().flat_map(cases)
}

fn positions(rows: usize) -> Vec<u32> {
    (0..rows as u32).map(|row| row * row * 7 % 40_009).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_kernel_agrees_with_candle_on_every_size_and_instruction_set() {
    let pool = pool(2);
    for case in cases() {
        for rows in [0, 1, 5, 70] {
            let positions = positions(rows);
            let candle = CandleRotary::new(&Device::Cpu, case.settings()).unwrap();
            let expected = values(&candle.forward(case.qkv(rows), &positions).unwrap());
            for isa in Isa::available() {
                let kernel = case.kernel(&pool, isa);
                let found = kernel.forward(&case.qkv(rows), &positions).unwrap();
                assert_eq!(found.dims(), [rows, case.settings().qkv_width()]);
                for (found, expected) in values(&found).iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() <= 2e-6 * expected.abs().max(1.0),
                        "{found} is not {expected}: {:?} {}",
                        case.sizes,
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_or_among_others_on_all_instruction_sets() {
    let (one, three) = (pool(1), pool(3));
    for case in cases() {
        let rows = 2 * INLINE_ELEMENTS / case.settings().qkv_width() + 3;
        let positions = positions(rows);
        let expected = case.kernel(&one, Isa::Portable);
        let expected = values(&expected.forward(&case.qkv(rows), &positions).unwrap());
        for isa in Isa::available() {
            let kernel = case.kernel(&three, isa);
            let found = values(&kernel.forward(&case.qkv(rows), &positions).unwrap());
            assert!(found == expected, "{:?} {}", case.sizes, isa.name());
            for row in [0, 1, rows / 2, rows - 1] {
                let alone = case.qkv(rows).narrow(0, row, 1).unwrap().copy().unwrap();
                let alone = kernel.forward(&alone, &positions[row..=row]).unwrap();
                let width = case.settings().qkv_width();
                assert!(values(&alone) == expected[row * width..(row + 1) * width]);
            }
        }
    }
}

#[test]
fn values_and_position_0_without_norms_are_left_as_they_are() {
    let case = Case::new((4, 2, 64), false);
    let kernel = case.kernel(&pool(1), Isa::detect());
    let before = values(&case.qkv(1));
    let after = values(&kernel.forward(&case.qkv(1), &[0]).unwrap());
    assert_eq!(after, before);
    let after = values(&kernel.forward(&case.qkv(1), &[9]).unwrap());
    assert_eq!(after[6 * 64..], before[6 * 64..]);
    assert!(after[..64] != before[..64]);
}

#[test]
fn layers_with_the_same_frequencies_share_their_tables() {
    let (case, tables) = (Case::new((4, 2, 64), false), RotaryTables::default());
    let layer = |settings| KernelRotary::new(&pool(1), Isa::detect(), &tables, settings).unwrap();
    let [first, second] = [case.settings(); 2].map(layer);
    let other: Vec<f32> = case.frequencies.iter().map(|f| f * 2.0).collect();
    let other = layer(RotarySettings {
        frequencies: &other,
        ..case.settings()
    });
    let turns = first.angles.turns(&[5, 6]);
    assert!(Arc::ptr_eq(&turns, &second.angles.turns(&[5, 6])));
    assert!(!Arc::ptr_eq(&turns, &other.angles.turns(&[5, 6])));
    assert_eq!(turns.sines.len(), 64);
}

#[test]
fn settings_and_operands_that_do_not_fit_are_errors_with_the_reason() {
    let case = Case::new((2, 1, 4), true);
    let good = case.settings();
    let refused = |settings, words: &str| {
        let kernel = KernelRotary::new(&pool(1), Isa::detect(), &RotaryTables::default(), settings);
        let candle = CandleRotary::new(&Device::Cpu, settings);
        for error in [kernel.err().unwrap(), candle.err().unwrap()] {
            assert!(error.to_string().contains(words), "{words} in {error}");
        }
    };
    let odd = RotarySettings {
        head_width: 3,
        ..good
    };
    refused(odd, "the width even");
    refused(
        RotarySettings {
            kv_heads: 0,
            ..good
        },
        "must be positive",
    );
    let few = RotarySettings {
        frequencies: &[1.0],
        ..good
    };
    refused(few, "need 2 frequencies, got 1");
    let short = RotarySettings {
        key_norm: Some(&[1.0; 3]),
        ..good
    };
    refused(short, "got 3 weights");
    refused(RotarySettings { eps: -1.0, ..good }, "eps");

    let kernel = case.kernel(&pool(1), Isa::detect());
    let candle = CandleRotary::new(&Device::Cpu, good).unwrap();
    let both: [&dyn Rotary; 2] = [&kernel, &candle];
    for rotary in both {
        let error = rotary.forward(case.qkv(2), &[0]).unwrap_err().to_string();
        assert!(error.contains("[1, 16], got f32 of [2, 16]"), "{error}");
    }
}
