//! Throughput of the engine on a checkpoint: prefill and decode at several batch sizes, beside the machine's
//! own limit measured in the same run.
//!
//! ```text
//! cargo bench --bench engine -- MODEL_DIR [--dtype f32,bf16,q8] [--threads 2] [--batch 1,8,32] [--runs 3] [--json]
//! ```
//!
//! Requests go through the `EngineHandle`, so the results include scheduler, sampling and channels. Prompts
//! are 64 random tokens, and 128 tokens are generated greedily. A result is the median of the runs, after one
//! warm-up. Memory bandwidth is measured before and after every decode run, and the share of the limit is the
//! median of the shares of the runs, because neighbours on the machine change the bandwidth from second to
//! second.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::engine::EngineConfig;
use skald::kernels::kv::{BLOCK_SIZE, KvDtype};
use skald::kernels::linear::WeightDtype;
use skald::kernels::{Isa, Pool};
use skald::model::Model;
use skald::request::{Limits, SamplingStyle};

mod limits;
mod requests;

use requests::{Prompts, median, run, runtime};

const PROMPT: usize = 64;
const NEW: usize = 128;
const PREFILL: usize = 512;

#[derive(Parser)]
struct Arguments {
    /// Directory of a checkpoint, or `builtin`.
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16,q8")]
    dtype: Vec<String>,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    #[arg(long, value_delimiter = ',', default_value = "1,8,16,32")]
    batch: Vec<usize>,
    #[arg(long, default_value = "3")]
    runs: usize,
    /// One JSON object per result instead of a table, for `benches/peers`.
    #[arg(long)]
    json: bool,
    /// Draft tokens, as the server does by default. Off by default here, so that results measure the kernels:
    /// greedy texts of random weights repeat themselves.
    #[arg(long)]
    speculation: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let source: ModelSource = arguments.model.parse().expect("a model");
    let files = source.fetch(false).expect("the model's files");
    let pool = Pool::new(arguments.threads);
    let memory = Limit {
        memory: limits::Memory::new(),
        pool,
    };
    let limit = memory.bandwidth();
    if arguments.json {
        println!("{}", json!({"figure": "memory", "bytes_per_second": limit}));
    } else {
        println!(
            "{}: {:.1} M parameters, {} threads, {}; reading memory: {:.1} GB/s",
            files.name,
            files.config.parameters() as f64 / 1e6,
            arguments.threads,
            Isa::detect().name(),
            limit / 1e9
        );
        println!(
            "| dtype | load | weights | prefill {PREFILL} tok/s | batch | decode tok/s | share of the memory limit |"
        );
        println!("|---|---|---|---|---|---|---|");
    }
    for name in &arguments.dtype {
        let dtype = match name.as_str() {
            "f32" => WeightDtype::F32,
            "bf16" => WeightDtype::Bf16,
            "q8" => WeightDtype::Q8,
            other => panic!("no dtype {other}"),
        };
        measure(&files, &arguments, name, dtype, &memory);
    }
}

/// Measured memory bandwidth, to compare with the weights read.
struct Limit {
    memory: limits::Memory,
    pool: Arc<Pool>,
}

impl Limit {
    /// Returns bytes per second.
    fn bandwidth(&self) -> f64 {
        self.memory.bandwidth(&self.pool)
    }
}

fn measure(
    files: &ModelFiles,
    arguments: &Arguments,
    name: &str,
    dtype: WeightDtype,
    limit: &Limit,
) {
    let started = Instant::now();
    let model = Model::load(files, &CpuBackend::new(arguments.threads, dtype)).expect("a model");
    let load = started.elapsed();
    let weights = model.weight_bytes() as f64;
    let kv_dtype = if dtype == WeightDtype::F32 {
        KvDtype::F32
    } else {
        KvDtype::Bf16
    };
    // Little more than 32 requests need: all of it is in use, as in a server that has run for a while.
    let kv_memory = bytesize::ByteSize::mib(640);
    let block_bytes = model.kv_block_bytes(kv_dtype);
    let config = EngineConfig {
        kv_memory,
        kv_dtype,
        speculative_rows: if arguments.speculation {
            EngineConfig::default().speculative_rows
        } else {
            0
        },
        ..EngineConfig::default()
    };
    let engine = skald::engine::start(model, config).expect("the engine");
    let runtime = runtime();
    let vocab_size = files.config.vocab_size();
    let limits = Limits::for_model(files.config.context_length(), vocab_size, Vec::new());
    let mut prompts = Prompts::new(vocab_size);
    let mut request =
        |prompt: usize, new: usize| prompts.request(prompt, new, SamplingStyle::Greedy);
    // Until every block has been written to, the system still has to zero pages of the cache.
    let blocks = kv_memory.as_u64() as usize / block_bytes;
    let fill = (0..=blocks * BLOCK_SIZE / PREFILL).map(|_| request(PREFILL, 1));
    runtime.block_on(run(&engine, &limits, fill.collect()));
    let prefill = median((0..arguments.runs).map(|_| {
        let drafts = vec![request(PREFILL, 1)];
        runtime
            .block_on(run(&engine, &limits, drafts))
            .0
            .as_secs_f64()
    }));
    let prefill = PREFILL as f64 / prefill;
    if arguments.json {
        println!(
            "{}",
            json!({"figure": "prefill", "batch": 1, "tokens_per_second": prefill, "weight_bytes": weights})
        );
    }
    for &batch in &arguments.batch {
        let mut shares = Vec::new();
        let rate = median((0..arguments.runs).map(|_| {
            let drafts = (0..batch).map(|_| request(PROMPT, NEW)).collect();
            let before = limit.bandwidth();
            let (_, took) = runtime.block_on(run(&engine, &limits, drafts));
            let limit = f64::midpoint(before, limit.bandwidth());
            let steps = (NEW - 1) as f64 / took.as_secs_f64();
            shares.push(steps * weights / limit);
            steps * batch as f64
        }));
        let share = median(shares.into_iter());
        if arguments.json {
            println!(
                "{}",
                json!({"figure": "decode", "batch": batch, "tokens_per_second": rate, "share_of_memory_limit": share})
            );
            continue;
        }
        println!(
            "| {name} | {:.2} s | {:.0} MB | {prefill:.0} | {batch} | {rate:.1} | {share:.2} |",
            load.as_secs_f64(),
            weights / 1e6,
        );
    }
    engine.stop();
}
