//! Attention of GPT-2 124M (12 heads of 64) in the shapes that a server computes: a whole prompt, and
//! decoding for few or many sequences with short or long contexts.
//!
//! Prompts are bound by arithmetic: results are operations per second ("elem/s"; only visible positions
//! count), to compare with `limits/f32` and `limits/bf16`. Decoding is bound by reading keys and values:
//! results are bytes per second, to compare with `limits/memory`. Each call reads the cache of another layer,
//! as a model does, so that no cache is warmer than it would be in use.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use skald::kernels::attention::{AttentionPlan, AttentionShape, KernelAttention};
use skald::kernels::kv::{BLOCK_SIZE, KvCache, KvDtype, KvShape, SequenceSpan};
use skald::kernels::{Isa, Pool};

mod limits;

const LAYERS: usize = 12;
const HEADS: usize = 12;
const HEAD_DIM: usize = 64;

/// Sequences of `rows` new positions each, after `past` earlier ones.
struct Shape {
    sequences: usize,
    past: usize,
    rows: usize,
}

impl Shape {
    fn name(&self) -> String {
        format!("{}x{}after{}", self.sequences, self.rows, self.past)
    }

    fn blocks(&self) -> usize {
        (self.past + self.rows).div_ceil(BLOCK_SIZE)
    }

    /// Returns what bounds the shape: operations, or bytes read.
    fn throughput(&self, dtype: KvDtype) -> Throughput {
        let seen: usize = (self.past + 1..=self.past + self.rows).sum();
        let values = self.sequences * LAYERS * HEADS * HEAD_DIM;
        if self.rows > 1 {
            // A multiplication and an addition each for keys and values.
            Throughput::Elements((seen * values * 4) as u64)
        } else {
            let size = dtype.dtype().size_in_bytes();
            Throughput::Bytes((seen * values * 2 * size) as u64)
        }
    }

    fn plan(&self) -> AttentionPlan {
        let spans: Vec<_> = (0..self.sequences)
            .map(|i| SequenceSpan {
                rows: i * self.rows..(i + 1) * self.rows,
                first_position: self.past,
                block_table: (i * self.blocks()..(i + 1) * self.blocks())
                    .map(|block| block as u32)
                    .collect(),
            })
            .collect();
        AttentionPlan::new(spans, self.sequences * self.rows).unwrap()
    }
}

const SHAPES: [Shape; 7] = [
    Shape {
        sequences: 1,
        past: 0,
        rows: 128,
    },
    Shape {
        sequences: 1,
        past: 0,
        rows: 512,
    },
    Shape {
        sequences: 1,
        past: 0,
        rows: 1024,
    },
    Shape {
        sequences: 1,
        past: 100,
        rows: 1,
    },
    Shape {
        sequences: 1,
        past: 1000,
        rows: 1,
    },
    Shape {
        sequences: 32,
        past: 128,
        rows: 1,
    },
    Shape {
        sequences: 32,
        past: 500,
        rows: 1,
    },
];

/// Returns the shape of GPT-2's attention.
fn heads() -> AttentionShape {
    AttentionShape::multi_head(HEADS, HEAD_DIM)
}

fn attention(criterion: &mut Criterion) {
    let threads = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let pool = Pool::new(threads);
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        let mut group = criterion.benchmark_group(format!("attention/{LAYERS} layers/{dtype:?}"));
        for shape in &SHAPES {
            let plan = shape.plan();
            let rows = shape.sequences * shape.rows;
            let qkv = Tensor::randn(0f32, 1.0, (rows, 3 * HEADS * HEAD_DIM), &Device::Cpu).unwrap();
            let blocks = shape.sequences * shape.blocks();
            let cache = KvShape {
                blocks,
                heads: HEADS,
                head_width: HEAD_DIM,
            };
            let kv = KvCache::new(&Device::Cpu, dtype, LAYERS, cache).unwrap();
            fill(&kv, shape);
            for isa in Isa::available() {
                let attention = KernelAttention::new(&pool, isa, heads()).unwrap();
                group.throughput(shape.throughput(dtype));
                let id = BenchmarkId::new(shape.name(), isa.name());
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        for layer in 0..LAYERS {
                            let kv = kv.layer(layer).unwrap();
                            black_box(attention.forward(&qkv, kv, &plan).unwrap());
                        }
                    });
                });
            }
        }
        group.finish();
    }
}

/// Writes every position before the shape's rows, so that reading them reads real memory.
fn fill(kv: &KvCache, shape: &Shape) {
    if shape.past == 0 {
        return;
    }
    let past = Shape {
        sequences: shape.sequences,
        past: 0,
        rows: shape.past + 1,
    };
    let rows = past.sequences * past.rows;
    let qkv = Tensor::randn(0f32, 1.0, (rows, 3 * HEADS * HEAD_DIM), &Device::Cpu).unwrap();
    let pool = Pool::new(NonZeroUsize::MIN);
    let attention = KernelAttention::new(&pool, Isa::detect(), heads()).unwrap();
    for layer in 0..LAYERS {
        attention
            .forward(&qkv, kv.layer(layer).unwrap(), &past.plan())
            .unwrap();
    }
}

fn machine(criterion: &mut Criterion) {
    let threads = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    limits::measure(criterion, &Pool::new(threads));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots();
    targets = machine, attention
}
criterion_main!(benches);
