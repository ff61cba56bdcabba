//! The gain of speculation, on text that repeats itself and on text that does not.
//!
//! ```text
//! cargo bench --bench speculation -- MODEL_DIR [--dtype q8] [--threads 2] [--batch 1,4] [--runs 5]
//! ```
//!
//! Two engines with the same weights, one with speculation and one without, alternately run the same kind of
//! requests: prompts of 64 random tokens, 256 generated ones. Greedy texts of random weights repeat
//! themselves; texts sampled at temperature 1 never do.

use std::num::NonZeroUsize;

use clap::Parser;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::engine::{EngineConfig, EngineHandle};
use skald::model::Model;
use skald::request::{Limits, SamplingStyle};

mod requests;

use requests::{Prompts, median, precision, run, runtime};

const PROMPT: usize = 64;
const NEW: usize = 256;

#[derive(Parser)]
struct Arguments {
    /// Directory of a checkpoint, or `builtin`.
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, default_value = "q8")]
    dtype: String,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    batch: Vec<usize>,
    #[arg(long, default_value = "5")]
    runs: usize,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let source: ModelSource = arguments.model.parse().expect("a model");
    let files = source.fetch(false).expect("the model's files");
    let plain = engine(&files, &arguments, 0);
    let speculative = engine(&files, &arguments, EngineConfig::default().speculative_rows);
    let vocab_size = files.config.vocab_size();
    let limits = Limits::for_model(files.config.context_length(), vocab_size, Vec::new());
    let mut prompts = Prompts::new(vocab_size);
    let runtime = runtime();
    println!(
        "{}, {}, {} threads",
        files.name, arguments.dtype, arguments.threads
    );
    println!("| text | batch | tokens/s | with speculation | ratio | draft tokens accepted |");
    println!("|---|---|---|---|---|---|");
    for (text, style) in [
        ("repetitive", SamplingStyle::Greedy),
        ("not repetitive", SamplingStyle::Sample),
    ] {
        for &batch in &arguments.batch {
            let before = speculative.status();
            let mut rate = |engine: &EngineHandle| {
                let drafts = (0..batch).map(|_| prompts.request(PROMPT, NEW, style));
                let (_, took) = runtime.block_on(run(engine, &limits, drafts.collect()));
                (batch * (NEW - 1)) as f64 / took.as_secs_f64()
            };
            rate(&plain);
            let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..arguments.runs {
                without.push(rate(&plain));
                with.push(rate(&speculative));
                ratios.push(with[with.len() - 1] / without[without.len() - 1]);
            }
            let after = speculative.status();
            println!(
                "| {text} | {batch} | {:.1} | {:.1} | {:.2} | {} of {} |",
                median(without.into_iter()),
                median(with.into_iter()),
                median(ratios.into_iter()),
                after.accepted - before.accepted,
                after.drafted - before.drafted,
            );
        }
    }
    plain.stop();
    speculative.stop();
}

fn engine(files: &ModelFiles, arguments: &Arguments, speculative_rows: usize) -> EngineHandle {
    let (dtype, kv_dtype) = precision(&arguments.dtype);
    let model = Model::load(files, &CpuBackend::new(arguments.threads, dtype)).expect("a model");
    let config = EngineConfig {
        kv_dtype,
        speculative_rows,
        ..EngineConfig::default()
    };
    skald::engine::start(model, config).expect("the engine")
}
