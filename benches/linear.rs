//! The linear layers of GPT-2 124M and Gemma 3 270M, from one row to a whole prompt, beside the limits of the machine.
//!
//! Few rows are bound by the bytes of the weights: results are bytes per second, to compare with
//! `limits/memory`. Many rows are bound by arithmetic: results are operations per second ("elem/s"; a
//! multiplication and an addition are two), to compare with `limits/f32` and so on. Every call uses the
//! weights of another layer, as a model does, so that none are warm in a cache.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use skald::kernels::linear::{Epilogue, MatrixOrder, PackedLinear, RawWeight, WeightDtype};
use skald::kernels::stored::StoredType;
use skald::kernels::weight_memory::WeightMemory;
use skald::kernels::{Isa, Pool};

mod limits;

/// Name, input features, output features, and number of copies.
const LAYERS: [(&str, usize, usize, usize); 10] = [
    ("c_attn", 768, 2304, 12),
    ("attn.c_proj", 768, 768, 12),
    ("c_fc", 768, 3072, 12),
    ("mlp.c_proj", 3072, 768, 12),
    ("lm_head", 768, 50_257, 1),
    ("gemma/qkv", 640, 1536, 18),
    ("gemma/o_proj", 1024, 640, 18),
    ("gemma/gate_proj", 640, 2048, 18),
    ("gemma/down_proj", 2048, 640, 18),
    ("gemma/lm_head", 640, 262_144, 1),
];
const DTYPES: [(&str, WeightDtype); 3] = [
    ("f32", WeightDtype::F32),
    ("bf16", WeightDtype::Bf16),
    ("q8", WeightDtype::Q8),
];
const ROWS: [usize; 4] = [1, 8, 32, 512];
/// Rows from which arithmetic is the bound.
const COMPUTE_BOUND: usize = 32;

fn pool() -> Arc<Pool> {
    Pool::new(available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

fn machine(c: &mut Criterion) {
    limits::measure(c, &pool());
}

fn linear(c: &mut Criterion) {
    let pool = pool();
    let memory = WeightMemory::default();
    for (name, dtype) in DTYPES {
        for (layer, n_in, n_out, copies) in LAYERS {
            let mut group = c.benchmark_group(format!("{name}/{layer}"));
            let bytes: Vec<u8> = (0..n_in * n_out)
                .flat_map(|i| ((i % 251) as f32 / 251.0 - 0.5).to_le_bytes())
                .collect();
            let layers: Vec<PackedLinear> = (0..copies)
                .map(|_| {
                    let weight = RawWeight {
                        bytes: &bytes,
                        dtype: StoredType::F32,
                        order: MatrixOrder::InOut,
                        in_features: n_in,
                        out_features: n_out,
                    };
                    PackedLinear::pack(&pool, Isa::detect(), &memory, dtype, &[weight], None)
                        .expect("packed")
                })
                .collect();
            for rows in ROWS {
                if layer.ends_with("lm_head") && rows > 64 {
                    continue;
                }
                let x = Tensor::rand(-1f32, 1.0, (rows, n_in), &Device::Cpu).expect("rows");
                group.throughput(if rows < COMPUTE_BOUND {
                    Throughput::Bytes(layers[0].bytes() as u64)
                } else {
                    Throughput::Elements((2 * rows * n_in * n_out) as u64)
                });
                let mut next = 0;
                group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                    b.iter(|| {
                        next = (next + 1) % copies;
                        black_box(layers[next].forward(&x, Epilogue::None).expect("a result"));
                    });
                });
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots();
    targets = machine, linear
}
criterion_main!(benches);
