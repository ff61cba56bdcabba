//! Many times more sessions than the KV cache holds, visited one after the other, with and without a
//! directory for evicted blocks.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};
use skald::kernels::kv::BLOCK_SIZE;

use crate::requests::{median, runtime};
use crate::support::caller::{Caller, token_ids};
use crate::support::process::Process;
use crate::{Arguments, Bench};

/// Tokens of a session at the start, tokens that each visit adds, and tokens that it generates.
const BEGIN: usize = 200;
const ADDED: usize = 4;
const NEW: usize = 4;
/// Turns that are compared with a plain run on the whole history.
const CHECKED: usize = 20;
/// Sessions that are created concurrently.
const AT_ONCE: usize = 8;

/// A turn to compare.
struct Sample {
    history: Vec<u32>,
    /// Number of its last tokens that were generated.
    generated: usize,
}

/// Results of the visits.
#[derive(Default)]
struct Visits {
    took: Duration,
    turns: Vec<Duration>,
    computed: usize,
    loaded: usize,
    found: usize,
    samples: Vec<Sample>,
}

pub fn measure(bench: &mut Bench, arguments: &Arguments) {
    let (sessions, resident) = (arguments.sessions, arguments.resident);
    println!(
        "{sessions} sessions of {BEGIN} tokens, a KV cache for {resident}; a turn adds {ADDED} tokens and generates {NEW}\n"
    );
    println!(
        "| order | KV on disk | turns/s | turn, median | tokens computed | read from disk | found in the cache | identical output |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for durable in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let server = serve(bench, arguments, durable.then_some(directory.path()));
        let caller = server.caller();
        let runtime = runtime();
        runtime.block_on(begin(bench, &caller, sessions));
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for order in ["round robin", "random"] {
            let turns: Vec<usize> = (0..arguments.turns)
                .map(|turn| match order {
                    "round robin" => turn % sessions,
                    _ => (random.next_u64() % sessions as u64) as usize,
                })
                .collect();
            let visits = runtime.block_on(visit(bench, &caller, &turns, durable));
            report(bench, order, durable, &visits);
        }
        server.stop();
    }
}

fn serve(bench: &Bench, arguments: &Arguments, directory: Option<&std::path::Path>) -> Process {
    let blocks = arguments.resident * (BEGIN + ADDED + NEW).div_ceil(BLOCK_SIZE);
    let kv_memory = format!("{}B", blocks * bench.block_bytes);
    let threads = arguments.threads.to_string();
    let mut flags = vec![
        "--model",
        &arguments.model,
        "--dtype",
        &arguments.dtype,
        "--threads",
        &threads,
        "--kv-memory",
        &kv_memory,
        "--speculation",
        "off",
    ];
    if let Some(directory) = directory {
        let directory = directory.to_str().expect("a path");
        flags.extend(["--session-dir", directory, "--session-kv-size", "64GiB"]);
    }
    Process::start(&flags)
}

/// Creates all sessions.
async fn begin(bench: &mut Bench, caller: &Caller, sessions: usize) {
    let names: Vec<usize> = (0..sessions).collect();
    for some in names.chunks(AT_ONCE) {
        let made = some.iter().map(|name| {
            let prompt = bench.request(BEGIN, 1).prompt;
            let body = json!({
                "prompt": prompt, "max_tokens": 0, "session_id": format!("s-{name}"),
            });
            async { caller.post("/v1/completions", body).await.ok() }
        });
        futures_util::future::join_all(made.collect::<Vec<_>>()).await;
    }
}

async fn visit(bench: &mut Bench, caller: &Caller, turns: &[usize], durable: bool) -> Visits {
    let mut visits = Visits::default();
    for (n, session) in turns.iter().enumerate() {
        let name = format!("s-{session}");
        let before = caller.session(&name).await.ok();
        let body = json!({
            "prompt": bench.request(ADDED, 1).prompt, "max_tokens": NEW, "session_id": name,
            "temperature": 0, "ignore_eos": true,
        });
        let begun = Instant::now();
        let answer = caller.post("/v1/completions", body).await.ok();
        visits.turns.push(begun.elapsed());
        visits.count(&before, &answer["usage"], durable);
        if n % turns.len().div_ceil(CHECKED) == 0 {
            visits.samples.push(Sample {
                history: caller.history(&name).await.expect("it is there"),
                generated: NEW,
            });
        }
    }
    visits.took = visits.turns.iter().sum();
    visits
}

impl Visits {
    /// Counts the computed tokens of a turn's context, and the sources of the others.
    fn count(&mut self, before: &Value, usage: &Value, durable: bool) {
        let number = |value: &Value| value.as_u64().expect("a number") as usize;
        let cached = number(&usage["prompt_tokens_details"]["cached_tokens"]);
        self.computed += number(&usage["prompt_tokens"]) - cached;
        // A session reports whole blocks.
        let found = if !durable || before["kv_resident"] == true {
            cached
        } else {
            number(&before["cached_tokens"]).min(cached)
        };
        self.found += found;
        self.loaded += cached - found;
        assert!(token_ids(&before["tokens"]).len() >= BEGIN);
    }
}

fn report(bench: &Bench, order: &str, durable: bool, visits: &Visits) {
    let same = visits.samples.iter().filter(|sample| {
        let begun = sample.history.len() - sample.generated;
        let plain = bench.plain(sample.history[..begun].to_vec(), sample.generated);
        plain == sample.history[begun..]
    });
    println!(
        "| {order} | {} | {:.1} | {:.1} ms | {} | {} | {} | {} of {} |",
        if durable { "yes" } else { "no" },
        visits.turns.len() as f64 / visits.took.as_secs_f64(),
        median(visits.turns.iter().map(Duration::as_secs_f64)) * 1e3,
        visits.computed,
        visits.loaded,
        visits.found,
        same.count(),
        visits.samples.len(),
    );
}
