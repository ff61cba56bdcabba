//! The speed of a tokenizer: reading its files, tokenizing texts, and the masks of grammars.
//!
//! ```text
//! cargo bench --bench tokenizer -- TOKENIZER.json [TEXT_FILE]
//! ```
//!
//! Texts are English (or the given file), and hostile ones: long runs of one character, of letters without
//! spaces, of control tokens. Each line is the best of several runs; masks are the median and the slowest of
//! the tokens of a JSON text.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use skald::text::{GrammarSource, Grammars, Tokenizer};

#[derive(Parser)]
struct Arguments {
    /// A `tokenizer.json`.
    tokenizer: PathBuf,
    /// A text.
    text: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let file = std::fs::read(&arguments.tokenizer).expect("it is read");
    let (load, tokenizer) = best(3, || Tokenizer::from_json(&file).expect("a tokenizer"));
    println!("tokenizer.json read: {:.0} ms", load.as_secs_f64() * 1e3);
    let english = match &arguments.text {
        Some(path) => std::fs::read_to_string(path).expect("it is read"),
        None => {
            "The king had three daughters, and the youngest was so fair that the sun wondered.\n"
                .repeat(50_000)
        }
    };
    let mut random = 1_u64;
    let mut letter = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'a' + (random >> 33) as u8 % 26)
    };
    let letters: String = (0..1 << 20).map(|_| letter()).collect();
    for (name, text) in [
        ("English", english),
        ("1 MiB of a", "a".repeat(1 << 20)),
        ("1 MiB of spaces", " ".repeat(1 << 20)),
        ("1 MiB of random letters", letters),
        (
            "1 MiB of Chinese",
            "中文没有空格的一段话".repeat((1 << 20) / 30),
        ),
        (
            "1 MiB of control tokens",
            "<start_of_turn>".repeat((1 << 20) / 15),
        ),
        ("1 MiB of <", "<".repeat(1 << 20)),
        ("512 KiB of emoji", "🐉👨\u{200d}👩".repeat((1 << 19) / 15)),
    ] {
        let (time, ids) = best(3, || tokenizer.encode(&text, true).expect("ids"));
        let speed = text.len() as f64 / time.as_secs_f64() / 1e6;
        println!("{name}: {} tokens, {speed:.1} MB/s", ids.len());
        assert!(tokenizer.decode(&ids).len() >= text.len());
    }
    masks(tokenizer);
}

/// Returns the shortest time of several runs, and the last result.
fn best<T>(runs: usize, mut work: impl FnMut() -> T) -> (Duration, T) {
    let mut time = || {
        let started = Instant::now();
        let result = work();
        (started.elapsed(), result)
    };
    let mut best = time();
    for _ in 1..runs {
        let (next, result) = time();
        best = (best.0.min(next), result);
    }
    best
}

/// Measures the masks along a JSON text.
fn masks(tokenizer: Tokenizer) {
    let tokenizer = Arc::new(tokenizer);
    let vocabulary = tokenizer.vocab_size();
    let ends: Vec<u32> = tokenizer
        .eos()
        .or(tokenizer.end_of_text())
        .into_iter()
        .collect();
    let grammars = Grammars::new(Arc::clone(&tokenizer), vocabulary, &ends);
    let schema = r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}}, "kind": {"enum": ["king", "wolf", "witch"]}},
        "required": ["name", "age", "tags", "kind"], "additionalProperties": false}"#;
    let mut text = String::from(
        r#"{"name":"A long name with many words in it, é and 中","age":1234,"tags":["#,
    );
    for n in 0..40 {
        let comma = if n == 0 { "" } else { "," };
        write!(text, r#"{comma}"tag number {n} of the wolf""#).expect("it is written");
    }
    text.push_str(r#"],"kind":"witch"}"#);
    for (name, source) in [
        ("schema", GrammarSource::JsonSchema(schema.to_owned())),
        ("any JSON object", GrammarSource::JsonObject),
        ("regex .*", GrammarSource::Regex("(.|\n)*".to_owned())),
    ] {
        let (first, grammar) = best(1, || grammars.compile(&source).expect("a grammar"));
        let mut matcher = grammar.matcher();
        let mut times = Vec::new();
        for id in tokenizer.encode_continued(&text, false).expect("ids") {
            let started = Instant::now();
            let mask = matcher.compute_mask_or_eos().expect("a mask");
            times.push(started.elapsed());
            assert!(mask.is_allowed(id), "{id}");
            matcher.consume_token(id).expect("it is allowed");
        }
        times.sort();
        println!(
            "{name}: compiled in {:.1} ms; {} masks, median {:.3} ms, slowest {:.3} ms",
            first.as_secs_f64() * 1e3,
            times.len(),
            times[times.len() / 2].as_secs_f64() * 1e3,
            times[times.len() - 1].as_secs_f64() * 1e3,
        );
    }
}
