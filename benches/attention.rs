//! Attention of GPT-2 124M (12 heads of 64) and Gemma 3 270M (4 query heads of 256 over one key and value
//! head; global layers and layers with a window of 512) in the shapes that a server computes: a whole
//! prompt, and decoding for few or many sequences with short or long contexts.
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

/// The attention of a model.
struct Model {
    name: &'static str,
    shape: AttentionShape,
    steps: &'static [Step],
}

/// Sequences of `rows` new positions each, after `past` earlier ones.
#[derive(Clone, Copy)]
struct Step {
    sequences: usize,
    past: usize,
    rows: usize,
}

const fn prompt(rows: usize) -> Step {
    Step {
        sequences: 1,
        past: 0,
        rows,
    }
}

const fn decoding(sequences: usize, past: usize) -> Step {
    Step {
        sequences,
        past,
        rows: 1,
    }
}

/// Steps of a model with short contexts.
const SHORT: &[Step] = &[
    prompt(128),
    prompt(512),
    prompt(1024),
    decoding(1, 100),
    decoding(1, 1000),
    decoding(32, 128),
    decoding(32, 500),
];

/// Steps of a model with long contexts.
const LONG: &[Step] = &[
    prompt(512),
    prompt(2048),
    decoding(1, 1000),
    decoding(1, 8000),
    decoding(16, 500),
    decoding(16, 2000),
];

fn models() -> [Model; 3] {
    let gemma = AttentionShape {
        kv_heads: 1,
        ..AttentionShape::multi_head(4, 256)
    };
    let sliding = AttentionShape {
        window: Some(512),
        ..gemma
    };
    let model = |name, shape, steps| Model { name, shape, steps };
    [
        model("GPT-2", AttentionShape::multi_head(12, 64), SHORT),
        model("Gemma global", gemma, LONG),
        model("Gemma sliding", sliding, LONG),
    ]
}

impl Step {
    fn name(&self) -> String {
        format!("{}x{}after{}", self.sequences, self.rows, self.past)
    }

    fn blocks(&self) -> usize {
        (self.past + self.rows).div_ceil(BLOCK_SIZE)
    }

    /// Returns what bounds the step: operations, or bytes read.
    fn throughput(&self, shape: &AttentionShape, dtype: KvDtype) -> Throughput {
        let positions = self.past..self.past + self.rows;
        let seen = positions.map(|position| position + 1 - shape.first_visible(position));
        let values = seen.sum::<usize>() * self.sequences * LAYERS * shape.head_width;
        if self.rows > 1 {
            // A multiplication and an addition each for keys and values.
            Throughput::Elements((values * shape.heads * 4) as u64)
        } else {
            let size = dtype.dtype().size_in_bytes();
            Throughput::Bytes((values * shape.kv_heads * 2 * size) as u64)
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
                window_table: Vec::new(),
            })
            .collect();
        AttentionPlan::new(spans, self.sequences * self.rows).unwrap()
    }

    /// Returns random queries, keys and values of all rows.
    fn qkv(&self, shape: &AttentionShape) -> Tensor {
        let rows = self.sequences * self.rows;
        Tensor::randn(0f32, 1.0, (rows, shape.qkv_width()), &Device::Cpu).unwrap()
    }
}

fn attention(criterion: &mut Criterion) {
    let threads = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let pool = Pool::new(threads);
    for model in models() {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let mut group = criterion.benchmark_group(format!(
                "attention/{}/{LAYERS} layers/{dtype:?}",
                model.name
            ));
            for step in model.steps {
                let (plan, qkv) = (step.plan(), step.qkv(&model.shape));
                let cache = KvShape {
                    blocks: step.sequences * step.blocks(),
                    heads: model.shape.kv_heads,
                    head_width: model.shape.head_width,
                };
                let kv = KvCache::new(&Device::Cpu, dtype, LAYERS, cache).unwrap();
                fill(&kv, &model.shape, step);
                for isa in Isa::available() {
                    let attention = KernelAttention::new(&pool, isa, model.shape).unwrap();
                    group.throughput(step.throughput(&model.shape, dtype));
                    let id = BenchmarkId::new(step.name(), isa.name());
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
}

/// Writes every position before the step's rows, so that reading them reads real memory.
fn fill(kv: &KvCache, shape: &AttentionShape, step: &Step) {
    if step.past == 0 {
        return;
    }
    let past = Step {
        sequences: step.sequences,
        past: 0,
        rows: step.past + 1,
    };
    let qkv = past.qkv(shape);
    let pool = Pool::new(NonZeroUsize::MIN);
    // Only the writes matter, so the rows see few positions.
    let narrow = AttentionShape {
        window: Some(1),
        ..*shape
    };
    let attention = KernelAttention::new(&pool, Isa::detect(), narrow).unwrap();
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
