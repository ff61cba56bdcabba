//! The cost of the metrics, relative to a step of the model.
//!
//! ```text
//! cargo bench --bench metrics -- [MODEL_DIR] [--dtype q8] [--threads 2] [--runs 5]
//! ```
//!
//! In a step the worker takes the time, counts the step's tokens, and publishes its statistics twice:
//! before and after the tokens are sent. For each token the front end observes the time since the
//! previous one. Both are timed separately, alone and while another thread reads the statistics or
//! observes into the same histogram without pause, which is far more than a scraper does. The model's
//! step is one of sequences that decode after 64 tokens.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::engine::EngineConfig;
use skald::engine::status::{EngineStatus, Published};
use skald::http::Observations;
use skald::model::Model;
use skald::request::{Limits, SamplingStyle};

mod requests;

use requests::{Prompts, median, precision, run, runtime};

const PROMPT: usize = 64;
const NEW: usize = 128;
const REPEATS: u32 = 1_000_000;

#[derive(Parser)]
struct Arguments {
    /// Directory of a checkpoint, or `builtin`.
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, default_value = "q8")]
    dtype: String,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
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
    let steps = model_steps(&files, &arguments);
    println!(
        "{}, {}, {} threads",
        files.name, arguments.dtype, arguments.threads
    );
    println!(
        "| batch | step µs | readers | worker ns per step | front end ns per token | share of a step |"
    );
    println!("|---|---|---|---|---|---|");
    for busy in [false, true] {
        let worker = nanoseconds(&arguments, || worker(busy));
        let front_end = nanoseconds(&arguments, || front_end(busy));
        for (&batch, &step) in arguments.batch.iter().zip(&steps) {
            let cost = worker + front_end * batch as f64;
            println!(
                "| {batch} | {:.0} | {} | {worker:.0} | {front_end:.0} | {:.3} % |",
                step * 1e6,
                if busy { "one without pause" } else { "none" },
                cost / (step * 1e9) * 100.0
            );
        }
    }
}

/// Returns the median of all runs.
fn nanoseconds(arguments: &Arguments, mut time: impl FnMut() -> Duration) -> f64 {
    median((0..arguments.runs).map(|_| time().as_secs_f64() * 1e9 / f64::from(REPEATS)))
}

/// Times the worker's share of the metrics in a step.
fn worker(busy: bool) -> Duration {
    let published = Arc::new(Published::new(EngineStatus::default()));
    let reader = Arc::clone(&published);
    beside(
        busy,
        move || {
            black_box(reader.get());
        },
        || {
            let mut status = EngineStatus::default();
            for step in 0..REPEATS as usize {
                black_box(Instant::now());
                black_box(Instant::now());
                status.steps += 1;
                status.step_tokens.observe(step % 512);
                status.generated_tokens += 64;
                published.offer(black_box(&status));
                status.running = step % 64;
                published.offer(black_box(&status));
            }
        },
    )
}

/// Times the front end's share of the metrics per token.
fn front_end(busy: bool) -> Duration {
    let observations = Arc::new(Observations::default());
    let other = Arc::clone(&observations);
    let wait = Duration::from_millis(4);
    beside(
        busy,
        move || other.inter_token(black_box(wait)),
        || {
            for _ in 0..REPEATS {
                observations.inter_token(black_box(wait));
            }
        },
    )
}

/// Times `work`, optionally while another thread repeats `other`.
fn beside(busy: bool, other: impl Fn() + Send + 'static, work: impl FnOnce()) -> Duration {
    let stop = Arc::new(AtomicBool::new(!busy));
    let thread = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                other();
            }
        }
    });
    let started = Instant::now();
    work();
    let took = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("it ends");
    took
}

/// Measures the seconds of a decode step for each batch size.
fn model_steps(files: &ModelFiles, arguments: &Arguments) -> Vec<f64> {
    let (dtype, kv_dtype) = precision(&arguments.dtype);
    let model = Model::load(files, &CpuBackend::new(arguments.threads, dtype)).expect("a model");
    let config = EngineConfig {
        kv_dtype,
        // A step decodes one token per sequence.
        speculative_rows: 0,
        ..EngineConfig::default()
    };
    let engine = skald::engine::start(model, config).expect("the engine");
    let vocab_size = files.config.vocab_size();
    let limits = Limits::for_model(files.config.context_length(), vocab_size, Vec::new());
    let mut prompts = Prompts::new(vocab_size);
    let runtime = runtime();
    let mut step = |batch: usize| {
        let drafts = (0..batch)
            .map(|_| prompts.request(PROMPT, NEW, SamplingStyle::Sample))
            .collect();
        let (_, rest) = runtime.block_on(run(&engine, &limits, drafts));
        rest.as_secs_f64() / (NEW - 1) as f64
    };
    step(1);
    let batches = arguments.batch.iter();
    let steps = batches.map(|&batch| median((0..arguments.runs).map(|_| step(batch))));
    let steps = steps.collect();
    engine.stop();
    steps
}
