//! The kernels against plain candle operations, and against themselves: a result must not depend
//! on chunks, batch mates, instruction set or stale memory.

use std::num::NonZeroUsize;

use candle_core::{DType, Device};

use super::*;
use crate::kernels::kv::{KvCache, KvDtype};

const BLOCKS: usize = 64;

fn pool() -> Arc<Pool> {
    Pool::new(NonZeroUsize::new(2).unwrap())
}

/// Repeatable numbers in -1..1, one stream per seed.
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

/// One model's attention, with a cache of its own per run.
#[derive(Clone, Copy)]
struct Setup {
    n_head: usize,
    head_dim: usize,
    dtype: KvDtype,
}

/// A sequence: a seed for its q, k and v, and how many positions it has.
#[derive(Clone, Copy)]
struct Sequence {
    seed: u64,
    len: usize,
}

impl Setup {
    fn n_embd(self) -> usize {
        self.n_head * self.head_dim
    }

    fn cache(self) -> KvCache {
        KvCache::new(
            &Device::Cpu,
            self.dtype,
            1,
            BLOCKS,
            self.n_head,
            self.head_dim,
        )
        .unwrap()
    }

    /// Rows of q, k and v, some of them large, so that the softmax is not flat.
    fn qkv(self, sequence: Sequence) -> Vec<f32> {
        let mut rows = numbers(sequence.seed, sequence.len * 3 * self.n_embd());
        for (i, x) in rows.iter_mut().enumerate() {
            if i % 7 == 0 {
                *x *= 4.0;
            }
        }
        rows
    }

    /// Runs steps of (sequence, its next positions) and gives each sequence's rows in order.
    fn run(
        self,
        attention: &Attention,
        cache: &KvCache,
        sequences: &[Sequence],
        steps: &[Vec<(usize, usize)>],
    ) -> Vec<Vec<f32>> {
        let width = 3 * self.n_embd();
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
                });
                done[s] += n;
            }
            let rows = qkv.len() / width;
            let qkv = Tensor::from_vec(qkv, (rows, width), &Device::Cpu).unwrap();
            let plan = AttentionPlan::new(&spans, rows, self.n_head).unwrap();
            let layer = cache.layer(0).unwrap();
            let out = attention.forward(&qkv, layer, &plan).unwrap();
            assert_eq!(out.dims(), [rows, self.n_embd()]);
            let out: Vec<f32> = out.flatten_all().unwrap().to_vec1().unwrap();
            for (&(s, _), span) in step.iter().zip(&spans) {
                let rows = span.rows.start * self.n_embd()..span.rows.end * self.n_embd();
                outputs[s].extend_from_slice(&out[rows]);
            }
        }
        assert!(done.iter().zip(sequences).all(|(&done, s)| done == s.len));
        outputs
    }

    fn at_once(self, attention: &Attention, sequences: &[Sequence]) -> Vec<Vec<f32>> {
        let step = sequences
            .iter()
            .enumerate()
            .map(|(i, s)| (i, s.len))
            .collect();
        self.run(attention, &self.cache(), sequences, &[step])
    }

    fn kernels(self, isa: Isa) -> Attention {
        Attention::new(&pool(), isa, self.n_head, self.head_dim)
    }
}

/// Blocks in a shuffled order, each sequence's own.
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

const SHAPES: [(usize, usize); 7] = [(1, 1), (2, 7), (3, 16), (2, 32), (4, 64), (1, 80), (2, 33)];

#[test]
fn the_kernels_agree_with_plain_operations_on_every_shape_and_instruction_set() {
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        for (n_head, head_dim) in SHAPES {
            let setup = Setup {
                n_head,
                head_dim,
                dtype,
            };
            let sequences = [
                sequence(1, 1),
                sequence(2, 17),
                sequence(3, 150),
                sequence(4, 64),
            ];
            let plain = setup.at_once(&Attention::plain(n_head, head_dim), &sequences);
            for isa in Isa::available() {
                let fast = setup.at_once(&setup.kernels(isa), &sequences);
                for (fast, plain) in fast.iter().flatten().zip(plain.iter().flatten()) {
                    assert!(
                        (fast - plain).abs() <= tolerance(dtype),
                        "{fast} is not {plain}: {n_head} x {head_dim} {dtype:?} {}",
                        isa.name()
                    );
                }
            }
        }
    }
}

/// How far kernels may be from plain operations: with a bf16 cache they round queries and weights
/// to 8 bits as well.
fn tolerance(dtype: KvDtype) -> f32 {
    match dtype {
        KvDtype::F32 => 1e-5,
        KvDtype::Bf16 => 0.03,
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits_over_an_f32_cache() {
    for (n_head, head_dim) in SHAPES {
        let setup = Setup {
            n_head,
            head_dim,
            dtype: KvDtype::F32,
        };
        let sequences = [sequence(5, 3), sequence(6, 131), sequence(7, 66)];
        let portable = bits(&setup.at_once(&setup.kernels(Isa::Portable), &sequences));
        for isa in Isa::available() {
            let rows = bits(&setup.at_once(&setup.kernels(isa), &sequences));
            assert_eq!(rows, portable, "{n_head} x {head_dim} {}", isa.name());
        }
    }
}

#[test]
fn chunks_and_batch_mates_do_not_change_a_bit() {
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        for (n_head, head_dim) in [(2, 64), (3, 33)] {
            let setup = Setup {
                n_head,
                head_dim,
                dtype,
            };
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
                        "chunks of {chunk} change bits: head_dim {head_dim} {dtype:?} {}",
                        isa.name()
                    );
                }
            }
        }
    }
}

/// Steps in which every sequence moves on by `chunk` positions, later ones by fewer.
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

#[test]
fn a_sequence_that_shares_anothers_prefix_blocks_gives_the_same_bits() {
    let setup = Setup {
        n_head: 2,
        head_dim: 64,
        dtype: KvDtype::F32,
    };
    let attention = setup.kernels(Isa::detect());
    let alone = bits(&setup.at_once(&attention, &[sequence(11, 70)])).remove(0);
    let cache = setup.cache();
    let width = 3 * setup.n_embd();
    let input = setup.qkv(sequence(11, 70));
    let forward = |first: usize, end: usize, table: &[u32]| {
        let rows = input[first * width..end * width].to_vec();
        let qkv = Tensor::from_vec(rows, (end - first, width), &Device::Cpu).unwrap();
        let span = SequenceSpan {
            rows: 0..end - first,
            first_position: first,
            block_table: table.to_vec(),
        };
        let plan = AttentionPlan::new(&[span], end - first, setup.n_head).unwrap();
        let out = attention
            .forward(&qkv, cache.layer(0).unwrap(), &plan)
            .unwrap();
        out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    forward(0, 48, &[5, 6, 7]);
    let rest = forward(48, 70, &[5, 6, 7, 30, 31]);
    let rest: Vec<u32> = rest.iter().map(|x| x.to_bits()).collect();
    assert_eq!(rest, alone[48 * setup.n_embd()..]);
}

#[test]
fn stale_nans_in_slots_that_a_row_does_not_see_never_reach_it() {
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        for (n_head, head_dim) in [(2, 64), (1, 7)] {
            let setup = Setup {
                n_head,
                head_dim,
                dtype,
            };
            let sequences = [sequence(12, 21), sequence(13, 67)];
            let mut all: Vec<_> = Isa::available()
                .iter()
                .map(|&isa| setup.kernels(isa))
                .collect();
            all.push(Attention::plain(n_head, head_dim));
            for attention in all {
                let clean = setup.at_once(&attention, &sequences);
                for stale in [f32::NAN, f32::INFINITY, 3e38] {
                    let cache = setup.cache();
                    let tensor = &cache.layer(0).unwrap().tensor;
                    let fill = Tensor::full(stale, tensor.shape(), &Device::Cpu).unwrap();
                    tensor
                        .slice_set(&fill.to_dtype(tensor.dtype()).unwrap(), 0, 0)
                        .unwrap();
                    let steps = chunked(&sequences, 9);
                    let rows = setup.run(&attention, &cache, &sequences, &steps);
                    for (row, clean) in rows.iter().flatten().zip(clean.iter().flatten()) {
                        assert!((row - clean).abs() <= 1e-5, "{row} is not {clean}");
                    }
                    if attention.kernels.is_some() {
                        assert_eq!(bits(&rows), bits(&clean));
                    }
                }
            }
        }
    }
}

#[test]
fn great_scores_do_not_overflow() {
    let setup = Setup {
        n_head: 1,
        head_dim: 64,
        dtype: KvDtype::F32,
    };
    let rows: Vec<f32> = numbers(14, 100 * 192).iter().map(|x| x * 100.0).collect();
    let qkv = Tensor::from_vec(rows, (100, 192), &Device::Cpu).unwrap();
    let span = SequenceSpan {
        rows: 0..100,
        first_position: 0,
        block_table: (0..7).collect(),
    };
    let one = AttentionPlan::new(&[span], 100, 1).unwrap();
    let cache = setup.cache();
    let layer = cache.layer(0).unwrap();
    let plain = Attention::plain(1, 64).forward(&qkv, layer, &one).unwrap();
    for isa in Isa::available() {
        let fast = setup.kernels(isa).forward(&qkv, layer, &one).unwrap();
        let worst = (fast - &plain).unwrap().abs().unwrap().max_all().unwrap();
        let worst: f32 = worst.to_scalar().unwrap();
        assert!(worst < 0.05, "{worst}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let setup = Setup {
        n_head: 2,
        head_dim: 4,
        dtype: KvDtype::F32,
    };
    let cache = setup.cache();
    let layer = cache.layer(0).unwrap();
    let plan = |n_head: usize, block: u32| {
        let span = SequenceSpan {
            rows: 0..1,
            first_position: 0,
            block_table: vec![block],
        };
        AttentionPlan::new(&[span], 1, n_head).unwrap()
    };
    let qkv =
        |columns: usize, dtype: DType| Tensor::zeros((1, columns), dtype, &Device::Cpu).unwrap();
    let blocks = u32::try_from(BLOCKS).unwrap();
    for attention in [setup.kernels(Isa::detect()), Attention::plain(2, 4)] {
        let good = attention.forward(&qkv(24, DType::F32), layer, &plan(2, blocks - 1));
        assert_eq!(good.unwrap().dims(), [1, 8]);
        let cases = [
            (
                qkv(23, DType::F32),
                plan(2, 0),
                "qkv must be [1, 24], is [1, 23]",
            ),
            (qkv(24, DType::F64), plan(2, 0), "qkv must be f32, is f64"),
            (
                qkv(24, DType::F32),
                plan(3, 0),
                "attention of 2 heads got a plan for 3",
            ),
            (
                qkv(24, DType::F32),
                plan(2, blocks),
                "names block 64, the KV cache has 64 blocks",
            ),
        ];
        for (qkv, plan, message) in cases {
            let error = attention
                .forward(&qkv, layer, &plan)
                .unwrap_err()
                .to_string();
            assert!(error.contains(message), "{error}");
        }
    }
    let error = setup.kernels(Isa::detect());
    let other = Attention {
        head_dim: 5,
        ..error
    };
    let error = other
        .forward(&qkv(30, DType::F32), layer, &plan(2, 0))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("2 heads of 5 got a KV cache of 2 heads of 4")
    );
}

#[test]
fn an_empty_step_gives_no_rows() {
    let setup = Setup {
        n_head: 2,
        head_dim: 4,
        dtype: KvDtype::F32,
    };
    let cache = setup.cache();
    let qkv = Tensor::zeros((0, 24), DType::F32, &Device::Cpu).unwrap();
    let plan = AttentionPlan::new(&[], 0, 2).unwrap();
    for attention in [setup.kernels(Isa::detect()), Attention::plain(2, 4)] {
        let out = attention
            .forward(&qkv, cache.layer(0).unwrap(), &plan)
            .unwrap();
        assert_eq!(out.dims(), [0, 8]);
    }
}
