//! Compares the kernels with candle's operations and with themselves: a result must not depend on
//! chunks, batch composition, instruction set or stale memory.

use std::num::NonZeroUsize;

use candle_core::{DType, Device};

use super::*;
use crate::backend::Attention;
use crate::backend::candle::CandleAttention;
use crate::kernels::kv::{KvCache, KvDtype, SequenceSpan};

const BLOCKS: usize = 64;

fn pool() -> Arc<Pool> {
    Pool::new(NonZeroUsize::new(2).unwrap())
}

/// Returns repeatable numbers in -1..1, one stream per seed.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// One layer's attention, with a separate cache for each run.
#[derive(Debug, Clone, Copy)]
struct Setup {
    shape: AttentionShape,
    dtype: KvDtype,
}

/// A sequence: a seed for its q, k and v, and its number of positions.
#[derive(Clone, Copy)]
struct Sequence {
    seed: u64,
    len: usize,
}

impl Setup {
    /// Creates multi-head attention without a window.
    fn multi_head((heads, head_width): (usize, usize), dtype: KvDtype) -> Self {
        Self {
            shape: AttentionShape::multi_head(heads, head_width),
            dtype,
        }
    }

    fn cache(self) -> KvCache {
        let shape = KvShape {
            blocks: BLOCKS,
            heads: self.shape.kv_heads,
            head_width: self.shape.head_width,
        };
        KvCache::new(&Device::Cpu, self.dtype, 1, shape).unwrap()
    }

    /// Returns rows of q, k and v, some of them large, so that the softmax is not flat.
    fn qkv(self, sequence: Sequence) -> Vec<f32> {
        let mut rows = numbers(sequence.seed, sequence.len * self.shape.qkv_width());
        for (i, x) in rows.iter_mut().enumerate() {
            if i % 7 == 0 {
                *x *= 4.0;
            }
        }
        rows
    }

    /// Runs steps of (sequence, number of its next positions) and returns each sequence's rows in order.
    fn run(
        self,
        attention: &dyn Attention,
        cache: &KvCache,
        sequences: &[Sequence],
        steps: &[Vec<(usize, usize)>],
    ) -> Vec<Vec<f32>> {
        let width = self.shape.qkv_width();
        let inputs: Vec<_> = sequences.iter().map(|&s| self.qkv(s)).collect();
        let mut outputs = vec![Vec::new(); sequences.len()];
        let mut done = vec![0; sequences.len()];
        for step in steps {
            let mut qkv = Vec::new();
            let mut spans = Vec::new();
            for &(s, n) in step {
                let first_row = qkv.len() / width;
                qkv.extend_from_slice(&inputs[s][done[s] * width..(done[s] + n) * width]);
                spans.push(SequenceSpan {
                    rows: first_row..first_row + n,
                    first_position: done[s],
                    block_table: table(s, sequences),
                    window_table: Vec::new(),
                });
                done[s] += n;
            }
            let rows = qkv.len() / width;
            let qkv = Tensor::from_vec(qkv, (rows, width), &Device::Cpu).unwrap();
            let plan = AttentionPlan::new(spans.clone(), rows).unwrap();
            let layer = cache.layer(0).unwrap();
            let out = attention.forward(&qkv, layer, &plan).unwrap();
            let out_width = self.shape.out_width();
            assert_eq!(out.dims(), [rows, out_width]);
            let out: Vec<f32> = out.flatten_all().unwrap().to_vec1().unwrap();
            for (&(s, _), span) in step.iter().zip(&spans) {
                let rows = span.rows.start * out_width..span.rows.end * out_width;
                outputs[s].extend_from_slice(&out[rows]);
            }
        }
        assert!(done.iter().zip(sequences).all(|(&done, s)| done == s.len));
        outputs
    }

    fn at_once(self, attention: &dyn Attention, sequences: &[Sequence]) -> Vec<Vec<f32>> {
        let step = sequences
            .iter()
            .enumerate()
            .map(|(i, s)| (i, s.len))
            .collect();
        self.run(attention, &self.cache(), sequences, &[step])
    }

    fn kernels(self, isa: Isa) -> KernelAttention {
        KernelAttention::new(&pool(), isa, self.shape).unwrap()
    }

    fn candle(self) -> CandleAttention {
        CandleAttention::new(self.shape).unwrap()
    }
}

/// Returns the block table of a sequence: blocks of its own, in shuffled order.
fn table(s: usize, sequences: &[Sequence]) -> Vec<u32> {
    let before: usize = sequences[..s]
        .iter()
        .map(|s| s.len.div_ceil(BLOCK_SIZE))
        .sum();
    (before..before + sequences[s].len.div_ceil(BLOCK_SIZE))
        .map(|i| u32::try_from(i * 27 % BLOCKS).unwrap())
        .collect()
}

fn sequence(seed: u64, len: usize) -> Sequence {
    Sequence { seed, len }
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter()
        .map(|row| row.iter().map(|x| x.to_bits()).collect())
        .collect()
}

/// Returns shapes of multi-head, grouped-query and windowed attention, with and without soft caps; windows
/// narrower and wider than a tile of positions, groups of fewer and more heads than a unit has rows.
fn shapes() -> Vec<AttentionShape> {
    let multi_head = [(1, 1), (2, 7), (3, 16), (2, 32), (4, 64), (1, 80), (2, 33)];
    let others = [
        (4, 2, 32, None, None),
        (6, 1, 33, None, None),
        (14, 2, 64, None, None),
        (4, 1, 256, None, None),
        (20, 1, 8, None, Some(2.0)),
        (2, 2, 7, Some(1), None),
        (3, 3, 16, Some(5), None),
        (8, 1, 80, Some(15), None),
        (8, 2, 64, Some(16), Some(3.0)),
        (6, 2, 33, Some(17), None),
        (4, 1, 64, Some(64), None),
        (4, 4, 16, Some(17), Some(0.5)),
        (8, 2, 16, Some(100), None),
    ];
    let multi_head = multi_head.map(|(heads, width)| AttentionShape::multi_head(heads, width));
    let others = others.map(
        |(heads, kv_heads, head_width, window, soft_cap)| AttentionShape {
            heads,
            kv_heads,
            head_width,
            scale: 0.1,
            window,
            soft_cap,
        },
    );
    multi_head.into_iter().chain(others).collect()
}

/// Returns every shape over caches of both precisions.
fn setups() -> impl Iterator<Item = Setup> {
    let dtypes = [KvDtype::F32, KvDtype::Bf16];
    let all = dtypes.map(|dtype| {
        shapes()
            .into_iter()
            .map(move |shape| Setup { shape, dtype })
    });
    all.into_iter().flatten()
}

#[test]
fn the_kernels_agree_with_candle_on_every_shape_and_instruction_set() {
    for setup in setups() {
        let sequences = [
            sequence(1, 1),
            sequence(2, 17),
            sequence(3, 150),
            sequence(4, 64),
        ];
        let candle = setup.at_once(&setup.candle(), &sequences);
        for isa in Isa::available() {
            let kernels = setup.at_once(&setup.kernels(isa), &sequences);
            for (kernel, candle) in kernels.iter().flatten().zip(candle.iter().flatten()) {
                assert!(
                    (kernel - candle).abs() <= tolerance(setup.dtype),
                    "{kernel} is not {candle}: {setup:?} {}",
                    isa.name()
                );
            }
        }
    }
}

/// Returns the maximum difference between kernels and candle. Over a bf16 cache the kernels round
/// queries and weights to 8 significant bits as well.
fn tolerance(dtype: KvDtype) -> f32 {
    match dtype {
        KvDtype::F32 => 1e-5,
        KvDtype::Bf16 => 0.03,
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits_over_an_f32_cache() {
    for setup in setups().filter(|setup| setup.dtype == KvDtype::F32) {
        let sequences = [sequence(5, 3), sequence(6, 131), sequence(7, 66)];
        let portable = bits(&setup.at_once(&setup.kernels(Isa::Portable), &sequences));
        for isa in Isa::available() {
            let rows = bits(&setup.at_once(&setup.kernels(isa), &sequences));
            assert_eq!(rows, portable, "{setup:?} {}", isa.name());
        }
    }
}

#[test]
fn chunks_and_batch_mates_do_not_change_a_bit() {
    let chosen = |setup: &Setup| [64, 33].contains(&setup.shape.head_width);
    for setup in setups().filter(chosen) {
        for isa in Isa::available() {
            let attention = setup.kernels(isa);
            let sequences = [sequence(8, 150), sequence(9, 40), sequence(10, 77)];
            let alone: Vec<_> = sequences
                .iter()
                .map(|&s| bits(&setup.at_once(&attention, &[s])).remove(0))
                .collect();
            for chunk in [1, 2, 5, 8, 13, 16, 60, 64, 65, 149] {
                let steps = chunked(&sequences, chunk);
                let rows = setup.run(&attention, &setup.cache(), &sequences, &steps);
                assert!(
                    bits(&rows) == alone,
                    "chunks of {chunk} change bits: {setup:?} {}",
                    isa.name()
                );
            }
        }
    }
}

/// Returns steps in which every sequence advances by `chunk` positions, and by fewer at its end.
fn chunked(sequences: &[Sequence], chunk: usize) -> Vec<Vec<(usize, usize)>> {
    let mut done = vec![0; sequences.len()];
    let mut steps = Vec::new();
    while done.iter().zip(sequences).any(|(&done, s)| done < s.len) {
        let mut step = Vec::new();
        for (i, s) in sequences.iter().enumerate() {
            let n = chunk.saturating_sub(i).max(1).min(s.len - done[i]);
            if n > 0 {
                step.push((i, n));
                done[i] += n;
            }
        }
        steps.push(step);
    }
    steps
}

/// Runs positions `first..end` of a sequence whose blocks are `table`.
fn step(
    setup: Setup,
    attention: &dyn Attention,
    cache: &KvCache,
    sequence: Sequence,
    (first, end): (usize, usize),
    table: &[u32],
) -> Vec<u32> {
    let width = setup.shape.qkv_width();
    let rows = setup.qkv(sequence)[first * width..end * width].to_vec();
    let qkv = Tensor::from_vec(rows, (end - first, width), &Device::Cpu).unwrap();
    let span = SequenceSpan {
        rows: 0..end - first,
        first_position: first,
        block_table: table.to_vec(),
        window_table: Vec::new(),
    };
    let plan = AttentionPlan::new(vec![span], end - first).unwrap();
    let out = attention
        .forward(&qkv, cache.layer(0).unwrap(), &plan)
        .unwrap();
    bits(&[out.flatten_all().unwrap().to_vec1().unwrap()]).remove(0)
}

#[test]
fn a_sequence_that_shares_anothers_prefix_blocks_gives_the_same_bits() {
    let setup = Setup::multi_head((2, 64), KvDtype::F32);
    let attention = setup.kernels(Isa::detect());
    let alone = bits(&setup.at_once(&attention, &[sequence(11, 70)])).remove(0);
    let cache = setup.cache();
    let run = |positions, table: &[u32]| {
        step(
            setup,
            &attention,
            &cache,
            sequence(11, 70),
            positions,
            table,
        )
    };
    run((0, 48), &[5, 6, 7]);
    let rest = run((48, 70), &[5, 6, 7, 30, 31]);
    assert_eq!(rest, alone[48 * setup.shape.out_width()..]);
}

#[test]
fn blocks_before_the_window_are_never_read() {
    for setup in setups().filter(|setup| setup.shape.window.is_some()) {
        for isa in Isa::available() {
            let attention = setup.kernels(isa);
            let s = sequence(15, 150);
            let alone = bits(&setup.at_once(&attention, &[s])).remove(0);
            let table: Vec<u32> = (0..10).collect();
            for first in [1, 16, 33, 64, 80, 130, 148] {
                let cache = setup.cache();
                step(setup, &attention, &cache, s, (0, first), &table);
                let tensor = cache.layer(0).unwrap().tensor();
                let unseen = setup.shape.first_visible(first) / BLOCK_SIZE;
                let nan = Tensor::full(
                    f32::NAN,
                    tensor.narrow(0, 0, 1).unwrap().shape(),
                    &Device::Cpu,
                )
                .unwrap()
                .to_dtype(tensor.dtype())
                .unwrap();
                for block in 0..unseen {
                    tensor.slice_set(&nan, 0, block).unwrap();
                }
                let rest = step(setup, &attention, &cache, s, (first, 150), &table);
                let expected = &alone[first * setup.shape.out_width()..];
                assert!(rest == expected, "{setup:?} from {first} {}", isa.name());
            }
        }
    }
}

#[test]
fn a_tile_wholly_before_a_rows_window_adds_nothing_to_it() {
    // Rows 64 to 79 are one unit, whose first row sees positions before 64; the last ones do not.
    for window in [1, 2, 15, 16, 17, 64] {
        for kv_heads in [1, 4] {
            let shape = AttentionShape {
                kv_heads,
                window: Some(window),
                scale: 1.0,
                ..AttentionShape::multi_head(4, 16)
            };
            for dtype in [KvDtype::F32, KvDtype::Bf16] {
                let setup = Setup { shape, dtype };
                let s = sequence(16, 96);
                for isa in Isa::available() {
                    let attention = setup.kernels(isa);
                    let rows = setup.at_once(&attention, &[s]);
                    assert!(rows[0].iter().all(|x| x.is_finite()), "{setup:?} {isa:?}");
                    let steps = vec![vec![(0, 1)]; s.len];
                    let one_by_one = setup.run(&attention, &setup.cache(), &[s], &steps);
                    assert!(bits(&rows) == bits(&one_by_one), "{setup:?} {isa:?}");
                }
            }
        }
    }
}

#[test]
fn long_contexts_give_the_same_bits_however_they_are_divided() {
    let len = 2 * SEGMENT + 40;
    let blocks = len.div_ceil(BLOCK_SIZE);
    let table: Vec<u32> = (0..blocks).map(|i| (i * 5 % blocks) as u32).collect();
    let shapes = [(2, 1, None), (2, 2, Some(2100)), (20, 1, Some(4000))];
    for (heads, kv_heads, window) in shapes {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let shape = AttentionShape {
                kv_heads,
                window,
                scale: 0.1,
                ..AttentionShape::multi_head(heads, 8)
            };
            let (setup, s) = (Setup { shape, dtype }, sequence(17, len));
            let cache = || {
                let shape = KvShape {
                    blocks,
                    heads: kv_heads,
                    head_width: 8,
                };
                KvCache::new(&Device::Cpu, dtype, 1, shape).unwrap()
            };
            let run = |attention: &dyn Attention, cache: &KvCache, ends: &[usize]| {
                let starts = [0].into_iter().chain(ends.iter().copied());
                let steps = starts.zip(ends);
                let rows = steps
                    .map(|(first, &end)| step(setup, attention, cache, s, (first, end), &table));
                rows.collect::<Vec<_>>().concat()
            };
            let mut portable = None;
            for isa in Isa::available() {
                let (attention, whole) = (setup.kernels(isa), cache());
                let rows = run(&attention, &whole, &[len]);
                let near = [
                    SEGMENT - 3,
                    SEGMENT - 1,
                    SEGMENT,
                    SEGMENT + 1,
                    SEGMENT + 20,
                    len,
                ];
                assert!(
                    run(&attention, &cache(), &near) == rows,
                    "{setup:?} {isa:?}"
                );
                let singly: Vec<_> = (len - 45..=len).collect();
                assert!(
                    run(&attention, &cache(), &singly) == rows,
                    "{setup:?} {isa:?}"
                );
                if dtype == KvDtype::F32 {
                    let portable = portable.get_or_insert_with(|| rows.clone());
                    assert!(*portable == rows, "{setup:?} {isa:?}");
                }
                let last = len - 50;
                let candle = step(setup, &setup.candle(), &whole, s, (last, len), &table);
                let kernels = &rows[last * shape.out_width()..];
                for (&kernel, &candle) in kernels.iter().zip(&candle) {
                    let [kernel, candle] = [kernel, candle].map(f32::from_bits);
                    assert!(
                        (kernel - candle).abs() <= tolerance(dtype),
                        "{kernel} {candle}"
                    );
                }
            }
        }
    }
}

#[test]
fn stale_nans_in_slots_that_a_row_does_not_see_never_reach_it() {
    let chosen = |setup: &Setup| [64, 7, 33].contains(&setup.shape.head_width);
    for setup in setups().filter(chosen) {
        let sequences = [sequence(12, 21), sequence(13, 67)];
        let kernels = Isa::available().into_iter().map(|isa| setup.kernels(isa));
        for attention in kernels {
            let clean = setup.at_once(&attention, &sequences);
            for stale in [f32::NAN, f32::INFINITY, 3e38] {
                let rows = run_over(stale, setup, &attention, &sequences);
                assert_eq!(bits(&rows), bits(&clean), "{setup:?}");
            }
        }
        let candle = setup.candle();
        let clean = setup.at_once(&candle, &sequences);
        for stale in [f32::NAN, f32::INFINITY, 3e38] {
            let rows = run_over(stale, setup, &candle, &sequences);
            for (row, clean) in rows.iter().flatten().zip(clean.iter().flatten()) {
                assert!((row - clean).abs() <= 1e-5, "{row} is not {clean}");
            }
        }
    }
}

/// Runs sequences in small steps over a cache that holds `stale` everywhere.
fn run_over(
    stale: f32,
    setup: Setup,
    attention: &dyn Attention,
    sequences: &[Sequence],
) -> Vec<Vec<f32>> {
    let cache = setup.cache();
    let tensor = cache.layer(0).unwrap().tensor();
    let fill = Tensor::full(stale, tensor.shape(), &Device::Cpu).unwrap();
    tensor
        .slice_set(&fill.to_dtype(tensor.dtype()).unwrap(), 0, 0)
        .unwrap();
    setup.run(attention, &cache, sequences, &chunked(sequences, 9))
}

#[test]
fn great_scores_do_not_overflow() {
    let setup = Setup::multi_head((1, 64), KvDtype::F32);
    let rows: Vec<f32> = numbers(14, 100 * 192).iter().map(|x| x * 100.0).collect();
    let qkv = Tensor::from_vec(rows, (100, 192), &Device::Cpu).unwrap();
    let span = SequenceSpan {
        rows: 0..100,
        first_position: 0,
        block_table: (0..7).collect(),
        window_table: Vec::new(),
    };
    let plan = AttentionPlan::new(vec![span], 100).unwrap();
    let cache = setup.cache();
    let layer = cache.layer(0).unwrap();
    let candle = setup.candle().forward(&qkv, layer, &plan).unwrap();
    for isa in Isa::available() {
        let kernel = setup.kernels(isa).forward(&qkv, layer, &plan).unwrap();
        let worst = (kernel - &candle).unwrap().abs().unwrap();
        let worst: f32 = worst.max_all().unwrap().to_scalar().unwrap();
        assert!(worst < 0.05, "{worst}");
    }
}

#[test]
fn operands_that_do_not_fit_are_refused_with_the_reason() {
    let setup = Setup::multi_head((2, 4), KvDtype::F32);
    let cache = setup.cache();
    let layer = cache.layer(0).unwrap();
    let plan = |block: u32| {
        let span = SequenceSpan {
            rows: 0..1,
            first_position: 0,
            block_table: vec![block],
            window_table: Vec::new(),
        };
        AttentionPlan::new(vec![span], 1).unwrap()
    };
    let qkv =
        |columns: usize, dtype: DType| Tensor::zeros((1, columns), dtype, &Device::Cpu).unwrap();
    let blocks = u32::try_from(BLOCKS).unwrap();
    let (kernels, candle) = (setup.kernels(Isa::detect()), setup.candle());
    let both: [&dyn Attention; 2] = [&kernels, &candle];
    for attention in both {
        let good = attention.forward(&qkv(24, DType::F32), layer, &plan(blocks - 1));
        assert_eq!(good.unwrap().dims(), [1, 8]);
        let cases = [
            (
                qkv(23, DType::F32),
                plan(0),
                "qkv must be [1, 24], is [1, 23]",
            ),
            (qkv(24, DType::F64), plan(0), "qkv must be f32, is f64"),
            (
                qkv(24, DType::F32),
                plan(blocks),
                "names block 64, the KV cache has 64 blocks",
            ),
        ];
        for (qkv, plan, message) in cases {
            let error = attention.forward(&qkv, layer, &plan).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }
    let other = Setup::multi_head((2, 5), KvDtype::F32).candle();
    let error = other
        .forward(&qkv(30, DType::F32), layer, &plan(0))
        .unwrap_err();
    let message = "2 key and value heads of 5 got a KV cache of 2 heads of 4";
    assert!(error.to_string().contains(message), "{error}");
}

#[test]
fn impossible_shapes_are_refused() {
    let good = AttentionShape::multi_head(4, 8);
    assert!(good.check().is_ok());
    let sizes = "sizes must be positive, and the second number of heads must divide the first";
    let (window_0, cap) = (
        "window of attention must be at least 1",
        "soft cap of attention is",
    );
    for (heads, kv_heads, head_width, window, soft_cap, message) in [
        (0, 1, 8, None, None, sizes),
        (4, 0, 8, None, None, sizes),
        (4, 3, 8, None, None, sizes),
        (4, 4, 0, None, None, sizes),
        (4, 4, 8, Some(0), None, window_0),
        (4, 4, 8, None, Some(0.0), cap),
        (4, 4, 8, None, Some(f32::NAN), cap),
    ] {
        let shape = AttentionShape {
            heads,
            kv_heads,
            head_width,
            window,
            soft_cap,
            ..good
        };
        let kernels = KernelAttention::new(&pool(), Isa::detect(), shape).map(drop);
        for refused in [kernels, CandleAttention::new(shape).map(drop)] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(message), "{refused}");
        }
    }
}

#[test]
fn an_empty_step_gives_no_rows() {
    let setup = Setup::multi_head((2, 4), KvDtype::F32);
    let cache = setup.cache();
    let qkv = Tensor::zeros((0, 24), DType::F32, &Device::Cpu).unwrap();
    let plan = AttentionPlan::new(Vec::new(), 0).unwrap();
    let (kernels, candle) = (setup.kernels(Isa::detect()), setup.candle());
    let both: [&dyn Attention; 2] = [&kernels, &candle];
    for attention in both {
        let out = attention
            .forward(&qkv, cache.layer(0).unwrap(), &plan)
            .unwrap();
        assert_eq!(out.dims(), [0, 8]);
    }
}
