//! Reuse of computed KV blocks: a prompt with a cached prefix, a prefix shared by many requests, and
//! sessions that do not fit the KV cache.
//!
//! ```text
//! cargo bench --bench sessions -- MODEL_DIR [--dtype q8] [--threads 2] [--runs 5]
//!     [--part prefix,head,visits] [--sessions 1000] [--resident 50] [--turns 1000]
//! ```
//!
//! The first two parts use the `EngineHandle`, the last one starts servers and uses HTTP. Results are medians
//! of the runs; compared configurations are measured alternately.

#[path = "../tests/support/mod.rs"]
mod support;

mod requests;
mod visits;

use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::engine::{EngineConfig, EngineHandle};
use skald::kernels::kv::BLOCK_SIZE;
use skald::model::Model;
use skald::request::{Limits, RequestDraft, SamplingStyle};

use requests::{Prompts, median, precision, run_each, runtime};

/// Tokens of a long prompt, and tokens added to it.
const LONG: usize = 900;
const ADDED: usize = 20;
/// Target for the warm prompt's time, relative to the cold one's.
const BAR: f64 = 0.1;
/// Requests with a shared prefix, its length, and their own prompt and output tokens.
const SHARING: usize = 64;
const HEAD: usize = 512;
const OWN: usize = 32;
const NEW: usize = 32;

#[derive(Parser)]
struct Arguments {
    /// Directory of a checkpoint, or `builtin`.
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, default_value = "q8")]
    dtype: String,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    #[arg(long, default_value = "5")]
    runs: usize,
    /// Parts to measure.
    #[arg(long, value_delimiter = ',', default_value = "prefix,head,visits")]
    part: Vec<String>,
    /// Number of sessions.
    #[arg(long, default_value = "1000")]
    sessions: usize,
    /// Number of sessions that fit the KV cache.
    #[arg(long, default_value = "50")]
    resident: usize,
    /// Turns in each order.
    #[arg(long, default_value = "1000")]
    turns: usize,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The measured engine, and the source of its requests.
struct Bench {
    engine: EngineHandle,
    limits: Limits,
    prompts: Prompts,
    block_bytes: usize,
}

fn main() {
    let arguments = Arguments::parse();
    let source: ModelSource = arguments.model.parse().expect("a model");
    let files = source.fetch(false).expect("the model's files");
    let mut bench = Bench::start(&files, &arguments);
    println!(
        "{}, {}, {} threads",
        files.name, arguments.dtype, arguments.threads
    );
    for part in &arguments.part {
        println!();
        match part.as_str() {
            "prefix" => prefix(&mut bench, arguments.runs),
            "head" => head(&mut bench, arguments.runs),
            "visits" => visits::measure(&mut bench, &arguments),
            other => panic!("no part {other}"),
        }
    }
    bench.engine.stop();
}

impl Bench {
    fn start(files: &ModelFiles, arguments: &Arguments) -> Self {
        let (dtype, kv_dtype) = precision(&arguments.dtype);
        let backend = CpuBackend::new(arguments.threads, dtype);
        let model = Model::load(files, &backend).expect("a model");
        let block_bytes = model.kv_block_bytes(kv_dtype);
        // Enough for all prompts of the `head` part at once, and little more.
        let blocks = SHARING * ((HEAD + OWN + NEW).div_ceil(BLOCK_SIZE) + 1);
        let config = EngineConfig {
            kv_dtype,
            kv_memory: ByteSize::b((blocks * block_bytes) as u64),
            max_batch: SHARING,
            speculative_rows: 0,
            ..EngineConfig::default()
        };
        let vocab_size = files.config.vocab_size();
        Self {
            engine: skald::engine::start(model, config).expect("the engine"),
            limits: Limits::for_model(files.config.context_length(), vocab_size, Vec::new()),
            prompts: Prompts::new(vocab_size),
            block_bytes,
        }
    }

    fn request(&mut self, prompt: usize, new: usize) -> RequestDraft {
        self.prompts.request(prompt, new, SamplingStyle::Greedy)
    }

    /// Generates greedily after a context that is not cached.
    fn plain(&self, context: Vec<u32>, new: usize) -> Vec<u32> {
        let id = skald::request::RequestId::random();
        let mut draft = RequestDraft::new(id, context, new, SamplingStyle::Greedy);
        // A tenant of its own, so that no prefix is cached.
        draft.tenant = skald::request::Tenant::of_key(draft.id.to_string().as_bytes());
        let (mut results, _) =
            runtime().block_on(run_each(&self.engine, &self.limits, vec![draft]));
        results.remove(0).ids
    }
}

/// Measures a long prompt, then the same prompt with a few more tokens.
fn prefix(bench: &mut Bench, runs: usize) {
    let runtime = runtime();
    let (mut colds, mut warms, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut computed = 0;
    // The first run is a warm-up.
    for run in 0..=runs {
        let first = bench.request(LONG, 1);
        let mut again = bench.request(LONG + ADDED, 1);
        again.prompt[..LONG].copy_from_slice(&first.prompt);
        let one = |draft| {
            let (mut results, _) =
                runtime.block_on(run_each(&bench.engine, &bench.limits, vec![draft]));
            results.remove(0)
        };
        let (cold, warm) = (one(first), one(again));
        assert_eq!(cold.computed, LONG, "the prompt is not cached");
        computed = warm.computed;
        if run > 0 {
            colds.push(cold.first.as_secs_f64() * 1e3);
            warms.push(warm.first.as_secs_f64() * 1e3);
            ratios.push(warm.first.as_secs_f64() / cold.first.as_secs_f64());
        }
    }
    let ratio = median(ratios.into_iter());
    println!(
        "| first token | cold | repeated with {ADDED} more tokens | computed | ratio | target |"
    );
    println!("|---|---|---|---|---|---|");
    println!(
        "| {LONG} tokens | {:.1} ms | {:.1} ms | {computed} tokens | {ratio:.3} | {BAR} {} |",
        median(colds.into_iter()),
        median(warms.into_iter()),
        if ratio <= BAR { "held" } else { "missed" },
    );
}

/// Measures many requests with a shared prefix, and as many without one.
fn head(bench: &mut Bench, runs: usize) {
    println!(
        "| {SHARING} prompts of {HEAD} + {OWN} tokens | tokens computed | blocks held | first tokens of all | whole time |"
    );
    println!("|---|---|---|---|---|");
    let mut measured = [const { Vec::new() }; 2];
    for _ in 0..runs {
        for (shared, measured) in [true, false].into_iter().zip(&mut measured) {
            measured.push(Concurrent::measure(bench, shared));
        }
    }
    for (name, of) in ["shared prefix", "all different"].iter().zip(&measured) {
        let figure = |figure: fn(&Concurrent) -> f64| median(of.iter().map(figure));
        println!(
            "| {name} | {} | {} | {:.0} ms | {:.0} ms |",
            figure(|run| run.computed as f64),
            figure(|run| run.blocks as f64),
            figure(|run| run.first.as_secs_f64() * 1e3),
            figure(|run| run.whole.as_secs_f64() * 1e3),
        );
    }
}

/// The cost of concurrent requests.
struct Concurrent {
    /// Prompt tokens computed.
    computed: usize,
    /// Maximum KV blocks held.
    blocks: usize,
    first: Duration,
    whole: Duration,
}

impl Concurrent {
    fn measure(bench: &mut Bench, shared: bool) -> Self {
        let begin = bench.request(HEAD, 1).prompt;
        let drafts: Vec<RequestDraft> = (0..SHARING)
            .map(|_| {
                let mut draft = bench.request(HEAD + OWN, NEW);
                if shared {
                    draft.prompt[..HEAD].copy_from_slice(&begin);
                }
                draft
            })
            .collect();
        let (engine, limits) = (&bench.engine, &bench.limits);
        let watched = async {
            let mut blocks = 0;
            let running = run_each(engine, limits, drafts);
            tokio::pin!(running);
            loop {
                let pause = tokio::time::sleep(Duration::from_millis(2));
                tokio::select! {
                    results = &mut running => break (results, blocks),
                    () = pause => blocks = blocks.max(engine.status().kv_blocks_used),
                }
            }
        };
        let ((results, whole), blocks) = runtime().block_on(watched);
        Self {
            computed: results.iter().map(|result| result.computed).sum(),
            blocks,
            first: results
                .iter()
                .map(|result| result.first)
                .max()
                .expect("requests"),
            whole,
        }
    }
}
