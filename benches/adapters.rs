//! The cost of LoRA adapters for a batch.
//!
//! ```text
//! cargo bench --bench adapters -- MODEL_DIR [--dtype f32] [--threads 2] [--streams 16] [--adapters 1,4] [--rank 16] [--runs 5]
//! ```
//!
//! The same streams (prompts of 64 random tokens, 64 new ones) run in turn without adapters and divided among
//! several, of random weights in all layers and matrices.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use skald::backend::Backend;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::adapter::AdapterFiles;
use skald::checkpoint::{Gpt2Config, ModelConfig, ModelSource};
use skald::engine::EngineConfig;
use skald::model::Model;
use skald::model::adapter::Adapter;
use skald::request::{Limits, RequestDraft, SamplingStyle};

mod requests;

use requests::{Prompts, median, precision, run, runtime};

const PROMPT: usize = 64;
const NEW: usize = 64;

#[derive(Parser)]
struct Arguments {
    /// A checkpoint's directory, or `builtin`.
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, default_value = "f32")]
    dtype: String,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    #[arg(long, default_value = "16")]
    streams: usize,
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    adapters: Vec<usize>,
    #[arg(long, default_value = "16")]
    rank: usize,
    #[arg(long, default_value = "5")]
    runs: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let source: ModelSource = arguments.model.parse().expect("a model");
    let files = source.fetch(false).expect("the model's files");
    let ModelConfig::Gpt2(config) = &files.config else {
        panic!("adapters are for GPT-2")
    };
    let (dtype, kv_dtype) = precision(&arguments.dtype);
    let backend = CpuBackend::new(arguments.threads, dtype);
    let model = Model::load(&files, &backend).expect("a model");
    let own = backend.for_adapters();
    let most = arguments.adapters.iter().copied().max().unwrap_or(0);
    let directory = tempfile::tempdir().expect("a directory");
    let adapters = (0..most).map(|n| {
        write(directory.path(), config, arguments.rank, n as u64);
        let adapter = AdapterFiles::open(directory.path()).expect("its files");
        let name = format!("adapter-{n}");
        let adapter = Adapter::load(&name, &name, &adapter, &files.config, &*own);
        Arc::new(adapter.expect("an adapter"))
    });
    let adapters: Vec<Arc<Adapter>> = adapters.collect();
    let engine = EngineConfig {
        kv_dtype,
        speculative_rows: 0,
        ..EngineConfig::default()
    };
    let engine = skald::engine::start(model, engine).expect("it starts");
    let vocab_size = files.config.vocab_size();
    let limits = Limits::for_model(files.config.context_length(), vocab_size, Vec::new());
    let mut prompts = Prompts::new(vocab_size);
    let runtime = runtime();
    println!(
        "{}, {}, {} threads, {} streams, rank {}",
        files.name, arguments.dtype, arguments.threads, arguments.streams, arguments.rank
    );
    println!("| adapters | prefill tokens/s | decode tokens/s | decode, of without |");
    println!("|---|---|---|---|");
    for &count in &arguments.adapters {
        let mut speeds = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        for _ in 0..arguments.runs {
            for (adapted, speeds) in speeds.iter_mut().enumerate() {
                let drafts = (0..arguments.streams).map(|n| {
                    let draft = prompts.request(PROMPT, NEW, SamplingStyle::Sample);
                    RequestDraft {
                        adapter: (adapted == 1).then(|| Arc::clone(&adapters[n % count])),
                        ..draft
                    }
                });
                let drafts = drafts.collect();
                let (prefill, decode) = runtime.block_on(run(&engine, &limits, drafts));
                let streams = arguments.streams as f64;
                speeds[0].push(streams * PROMPT as f64 / prefill.as_secs_f64());
                speeds[1].push(streams * (NEW - 1) as f64 / decode.as_secs_f64());
            }
        }
        let [without, with] = speeds.map(|speeds| speeds.map(|each| median(each.into_iter())));
        println!("| 0 | {:.0} | {:.0} | |", without[0], without[1]);
        println!(
            "| {count} | {:.0} | {:.0} | {:.2} |",
            with[0],
            with[1],
            with[1] / without[1]
        );
    }
}

/// Writes an adapter of all matrices.
fn write(directory: &Path, config: &Gpt2Config, rank: usize, seed: u64) {
    let json = format!(r#"{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {rank}}}"#);
    fs::write(directory.join("adapter_config.json"), json).expect("the configuration");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (n, inner) = (config.n_embd, config.n_inner);
    let mut tensors = Vec::new();
    for layer in 0..config.n_layer {
        for (module, inputs, outputs) in [
            ("attn.c_attn", n, 3 * n),
            ("attn.c_proj", n, n),
            ("mlp.c_fc", n, inner),
            ("mlp.c_proj", inner, n),
        ] {
            for (part, shape) in [("A", [rank, inputs]), ("B", [outputs, rank])] {
                let values = (0..shape[0] * shape[1]).flat_map(|_| {
                    let value = f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5;
                    ((value * 0.02) as f32).to_le_bytes()
                });
                let name =
                    format!("base_model.model.transformer.h.{layer}.{module}.lora_{part}.weight");
                tensors.push((name, shape, values.collect::<Vec<u8>>()));
            }
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
        (name, view.expect("a tensor"))
    });
    let file = serialize(views, None).expect("a file");
    fs::write(directory.join("adapter_model.safetensors"), file).expect("the weights");
}
