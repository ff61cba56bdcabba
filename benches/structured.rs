//! The cost of following a JSON schema: the same requests with and without one, alternately.
//!
//! ```text
//! cargo bench --bench structured -- MODEL_DIR [--dtype q8] [--threads 2] [--batch 1,16] [--runs 5]
//! ```
//!
//! Prompts of 64 random tokens and 192 generated ones, sampled at temperature 1, without speculation.
//! The schema is a long list of small objects, so that no text is complete before the limit. The last
//! columns are the time of one mask on a thread of its own, while nothing else runs.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::engine::{EngineConfig, EngineHandle, TokenEvent};
use skald::model::Model;
use skald::request::{Limits, RequestDraft, SamplingStyle};
use skald::text::{Grammar, GrammarSource, Grammars};

mod requests;

use requests::{Prompts, median, precision, run, runtime};

const PROMPT: usize = 64;
const NEW: usize = 192;

#[derive(Parser)]
struct Arguments {
    /// Directory of a checkpoint, or `builtin`.
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, default_value = "q8")]
    dtype: String,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
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
    let engine = engine(&files, &arguments);
    let vocab_size = files.config.vocab_size();
    let end_of_text = files.end_of_text();
    let limits = Limits::for_model(files.config.context_length(), vocab_size, Vec::new());
    let name = files.name.clone();
    let grammars = Grammars::new(Arc::new(files.tokenizer), vocab_size, &end_of_text);
    let begun = Instant::now();
    let grammar = grammars.compile(&schema()).expect("a schema");
    println!(
        "{name}, {}, {} threads; the first grammar took {:.0} ms, the next {:.1} ms",
        arguments.dtype,
        arguments.threads,
        begun.elapsed().as_secs_f64() * 1e3,
        compile_ms(&grammars),
    );
    let mut prompts = Prompts::new(vocab_size);
    let runtime = runtime();
    println!("| batch | tokens/s | with a schema | ratio | mask, median | p99 |");
    println!("|---|---|---|---|---|---|");
    let mut masks = runtime.block_on(mask_times(&engine, &limits, &mut prompts, &grammar));
    masks.sort_by(f64::total_cmp);
    for &batch in &arguments.batch {
        let mut rate = |grammar: Option<&Grammar>| {
            let drafts = (0..batch).map(|_| RequestDraft {
                grammar: grammar.cloned(),
                ..prompts.request(PROMPT, NEW, SamplingStyle::Sample)
            });
            let (_, took) = runtime.block_on(run(&engine, &limits, drafts.collect()));
            (batch * (NEW - 1)) as f64 / took.as_secs_f64()
        };
        rate(None);
        let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..arguments.runs {
            without.push(rate(None));
            with.push(rate(Some(&grammar)));
            ratios.push(with[with.len() - 1] / without[without.len() - 1]);
        }
        println!(
            "| {batch} | {:.1} | {:.1} | {:.3} | {:.0} us | {:.0} us |",
            median(without.into_iter()),
            median(with.into_iter()),
            median(ratios.into_iter()),
            masks[masks.len() / 2],
            masks[masks.len() * 99 / 100],
        );
    }
    engine.stop();
}

fn schema() -> GrammarSource {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["king", "fox", "child"]},
            "alive": {"type": "boolean"},
            "friends": {"type": "array", "items": {"type": "string", "maxLength": 16}, "maxItems": 3},
        },
        "required": ["name", "age", "kind", "alive", "friends"],
        "additionalProperties": false,
    });
    let schema = json!({"type": "array", "items": person, "minItems": 100, "maxItems": 100});
    GrammarSource::JsonSchema(schema.to_string())
}

/// Measures the milliseconds to compile a grammar once the vocabulary is prepared.
fn compile_ms(grammars: &Grammars) -> f64 {
    let GrammarSource::JsonSchema(text) = schema() else {
        unreachable!("it is a schema");
    };
    // Different text for the same schema, since compiled grammars are cached.
    let again = GrammarSource::JsonSchema(format!(" {text}"));
    let begun = Instant::now();
    grammars.compile(&again).expect("a schema");
    begun.elapsed().as_secs_f64() * 1e3
}

/// Measures the microseconds of each mask of one text.
async fn mask_times(
    engine: &EngineHandle,
    limits: &Limits,
    prompts: &mut Prompts,
    grammar: &Grammar,
) -> Vec<f64> {
    let draft = RequestDraft {
        grammar: Some(grammar.clone()),
        ..prompts.request(PROMPT, 4 * NEW, SamplingStyle::Sample)
    };
    let request = limits.admit(draft).expect("a valid request");
    let mut generation = engine.submit(request).await.expect("accepted");
    let mut matcher = grammar.matcher();
    let mut times = Vec::new();
    let mut ids = Vec::new();
    while let Some(event) = generation.next().await {
        match event {
            TokenEvent::Token(token) => ids.push(token.token.id),
            TokenEvent::Prefilled(_) => (),
            TokenEvent::Failed(error) => panic!("{error}"),
        }
    }
    for id in ids {
        let begun = Instant::now();
        matcher.compute_mask_or_eos().expect("a mask");
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        matcher.consume_token(id).expect("an allowed token");
    }
    times
}

fn engine(files: &ModelFiles, arguments: &Arguments) -> EngineHandle {
    let (dtype, kv_dtype) = precision(&arguments.dtype);
    let model = Model::load(files, &CpuBackend::new(arguments.threads, dtype)).expect("a model");
    let config = EngineConfig {
        kv_dtype,
        speculative_rows: 0,
        ..EngineConfig::default()
    };
    skald::engine::start(model, config).expect("the engine")
}
