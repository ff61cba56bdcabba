//! The cost of an inspection for the streams beside it, and its own time.
//!
//! ```text
//! cargo bench --bench inspection -- MODEL_DIR [--dtype f32] [--threads 2] [--streams 1,8] [--runs 5]
//! ```
//!
//! The same streams (prompts of 64 random tokens, 128 new ones) run in turn alone and beside a client that
//! inspects one page after the other: 32 positions of a text of 256 tokens, with all stages as the page asks
//! for them. Every text is new, so its prefix is computed too.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::ModelSource;
use skald::engine::{EngineConfig, EngineHandle, TokenEvent};
use skald::model::Model;
use skald::request::{
    AttentionWanted, EmbeddingWanted, InspectionWanted, Limits, NeuronsWanted, RequestDraft,
    RequestId, SamplingStyle, SamplingWanted,
};

mod requests;

use requests::{Prompts, median, precision, run, runtime};

const PROMPT: usize = 64;
const NEW: usize = 128;
const TEXT: usize = 256;
const ROWS: usize = 32;

#[derive(Parser)]
struct Arguments {
    /// A checkpoint's directory, or `builtin`.
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, default_value = "f32")]
    dtype: String,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    streams: Vec<usize>,
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
    let (dtype, kv_dtype) = precision(&arguments.dtype);
    let model = Model::load(&files, &CpuBackend::new(arguments.threads, dtype)).expect("a model");
    let layers = model.spec().layers;
    // The limit of streams is the batch, so that drafts don't blur what is compared.
    let config = EngineConfig {
        kv_dtype,
        speculative_rows: 0,
        ..EngineConfig::default()
    };
    let engine = skald::engine::start(model, config).expect("it starts");
    let vocab_size = files.config.vocab_size();
    let limits = Limits::for_model(files.config.context_length(), vocab_size, Vec::new());
    let mut prompts = Prompts::new(vocab_size);
    let runtime = runtime();
    println!(
        "{}, {}, {} threads",
        files.name, arguments.dtype, arguments.threads
    );
    let alone: Vec<f64> = (0..arguments.runs)
        .map(|_| {
            let draft = inspection(&mut prompts, layers);
            let took = runtime.block_on(inspect(&engine, &limits, draft));
            took.as_secs_f64() * 1e3
        })
        .collect();
    println!(
        "an inspection alone: {:.0} ms ({ROWS} of {TEXT} positions, all stages)",
        median(alone.into_iter())
    );
    println!("| streams | tokens/s alone | beside inspections | ratio | inspections/s |");
    println!("|---|---|---|---|---|");
    for &streams in &arguments.streams {
        let (mut alone, mut beside, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..arguments.runs {
            let mut drafts = || -> Vec<_> {
                let draft = |_| prompts.request(PROMPT, NEW, SamplingStyle::Sample);
                (0..streams).map(draft).collect()
            };
            let speed = |decode: Duration| (streams * (NEW - 1)) as f64 / decode.as_secs_f64();
            let (_, decode) = runtime.block_on(run(&engine, &limits, drafts()));
            alone.push(speed(decode));
            let drafts = drafts();
            let started = Instant::now();
            let stop = AtomicBool::new(false);
            let (decode, count) = runtime.block_on(async {
                let streams = async {
                    let (_, decode) = run(&engine, &limits, drafts).await;
                    stop.store(true, Ordering::Relaxed);
                    decode
                };
                let inspections = async {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let draft = inspection(&mut prompts, layers);
                        inspect(&engine, &limits, draft).await;
                        count += 1;
                    }
                    count
                };
                tokio::join!(streams, inspections)
            });
            beside.push(speed(decode));
            rates.push(f64::from(count) / started.elapsed().as_secs_f64());
        }
        let (alone, beside) = (median(alone.into_iter()), median(beside.into_iter()));
        println!(
            "| {streams} | {alone:.0} | {beside:.0} | {:.2} | {:.1} |",
            beside / alone,
            median(rates.into_iter())
        );
    }
}

/// Returns a request for the last positions of a text, with all stages as the page asks for them.
fn inspection(prompts: &mut Prompts, layers: usize) -> RequestDraft {
    let text = prompts.request(TEXT, 0, SamplingStyle::Greedy).prompt;
    let wanted = InspectionWanted {
        rows: TEXT - ROWS..TEXT,
        embedding: Some(EmbeddingWanted {
            nearest: 5,
            values: true,
        }),
        residual: true,
        attention: Some(AttentionWanted {
            layers: (0..layers).collect(),
            heads: vec![0, 1, 2],
            map: false,
            qkv: false,
        }),
        neurons: Some(NeuronsWanted {
            layers: vec![layers - 1],
            top: 8,
        }),
        lens: Some(5),
        logits: true,
        sampling: Some(SamplingWanted::default()),
    };
    RequestDraft::inspection(RequestId::random(), text, wanted)
}

/// Runs an inspection to its end; returns its time.
async fn inspect(engine: &EngineHandle, limits: &Limits, draft: RequestDraft) -> Duration {
    let started = Instant::now();
    let request = limits.admit(draft).expect("a valid request");
    let mut generation = engine.submit(request).await.expect("accepted");
    match generation.next().await {
        Some(TokenEvent::Prefilled(report)) => assert!(report.inspection.is_some()),
        other => panic!("{other:?}"),
    }
    started.elapsed()
}
