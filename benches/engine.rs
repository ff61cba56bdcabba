//! What the engine reaches on a checkpoint: prefill and decode, at several batch sizes, beside the
//! machine's own limit measured in the same run.
//!
//! ```text
//! cargo bench --bench engine -- MODEL_DIR [--dtype f32,bf16,q8] [--threads 2] [--batch 1,8,32] [--runs 3] [--json]
//! ```
//!
//! Requests go through the `EngineHandle`, so scheduler, sampling and channels are in the figures;
//! tokens are greedy, random prompts of 64 tokens, 128 new ones. A figure is the median of the
//! runs, after one to warm up. Memory is read before and after every decode, and the share of its
//! limit is the median of the runs' own: neighbours change what memory gives from second to second.

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
    /// A checkpoint's directory, or `builtin`.
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
    /// One JSON object per figure instead of a table, for `benches/peers`.
    #[arg(long)]
    json: bool,
    /// Guess tokens ahead, as the server does by default. Off, so that figures are those of the
    /// kernels: greedy texts of random weights repeat themselves.
    #[arg(long)]
    speculation: bool,
    /// Given by `cargo bench`.
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

/// What memory gives, to hold against weights read.
struct Limit {
    memory: limits::Memory,
    pool: Arc<Pool>,
}

impl Limit {
    /// Bytes per second.
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
    // What 32 requests need and little more: as in a server that has run for a while, all of it is
    // in use.
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
    let vocab_size = files.config.vocab_size;
    let limits = Limits::for_model(files.config.n_positions, vocab_size, Vec::new());
    let mut prompts = Prompts::new(vocab_size);
    let mut request =
        |prompt: usize, new: usize| prompts.request(prompt, new, SamplingStyle::Greedy);
    // Until all blocks have been written to, the system has pages of the cache to zero.
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
