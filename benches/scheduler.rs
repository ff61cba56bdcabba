//! The cost of the scheduler in a step, relative to a step of the model.
//!
//! ```text
//! cargo bench --bench scheduler -- [MODEL_DIR] [--dtype q8] [--threads 2] [--steps 4000]
//! ```
//!
//! 64 sequences run over a pool that holds the histories of 50 sessions, and 1,000 sessions take turns on it.
//! Each turn appends some tokens to a history and samples some more; a history that fills the window starts
//! over. Blocks of the history that are still in the pool are reused; the rest is computed again or imported.
//! Everything that the worker calls in the scheduler during a step counts: arrivals and departures, the plan,
//! the moves, the computed chunks, the sampled tokens. The model's step is one of 64 sequences that decode
//! after 512 tokens.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use clap::Parser;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::engine::blocks::{BLOCK_SIZE, BlockMove, PrefixId};
use skald::engine::scheduler::{Scheduler, StepLimits, StoredParts};
use skald::engine::sequence::{Sequence, SequenceId};
use skald::engine::{EngineConfig, EngineHandle};
use skald::model::Model;
use skald::request::{Limits, SamplingStyle, Tenant};

mod requests;

use requests::{Prompts, median, precision, run, runtime};

const WINDOW: usize = 1024;
/// Tokens per step.
const STEP_TOKENS: usize = 512;
const BATCH: usize = 64;
const SESSIONS: usize = 1000;
const HELD_SESSIONS: usize = 50;
/// Maximum tokens added and maximum tokens sampled per turn.
const ADDED: usize = 64;
const DRAWN: usize = 64;
const VOCABULARY: u32 = 8192;

#[derive(Parser)]
struct Arguments {
    /// Directory of a checkpoint, or `builtin`.
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, default_value = "q8")]
    dtype: String,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// Measured steps.
    #[arg(long, default_value = "4000")]
    steps: usize,
    #[arg(long, default_value = "3")]
    runs: usize,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let source: ModelSource = arguments.model.parse().expect("a model");
    let files = source.fetch(false).expect("the model's files");
    let model_step = model_step(&files, &arguments);
    println!(
        "{}, {}, {} threads: a step of {BATCH} sequences takes {:.2} ms",
        files.name,
        arguments.dtype,
        arguments.threads,
        model_step * 1e3
    );
    println!(
        "| missing blocks are | rows per step | turns | blocks evicted | plan µs | computed µs | drawn µs | add and remove µs | total µs | p99 µs | share of a step |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (name, restored) in [("recomputed", false), ("restored", true)] {
        let costs = Sessions::new(restored).run(arguments.steps);
        let n = costs.steps.len() as f64;
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / n;
        let all = micros(costs.steps.iter().sum());
        let mut steps = costs.steps.clone();
        steps.sort_unstable();
        let most = steps[steps.len() * 99 / 100].as_secs_f64() * 1e6;
        println!(
            "| {name} | {:.0} | {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {all:.1} | {most:.0} | {:.2} % |",
            costs.rows as f64 / n,
            costs.turns,
            costs.evicted,
            micros(costs.plan),
            micros(costs.computed),
            micros(costs.drawn),
            micros(costs.come_and_go),
            all / (model_step * 1e6) * 100.0,
        );
    }
    println!(
        "A plan while 256 sequences wait for a prefix that the step computes: {:.1} µs",
        passing_over(256)
    );
}

/// Returns the result of some work and the time it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

/// Returns the microseconds of a plan in which a whole queue waits for the rest of a prefix that the plan
/// computes.
fn passing_over(queue: u64) -> f64 {
    let limits = StepLimits {
        max_batch: BATCH,
        speculative_rows: 0,
    };
    let plans = (0..15).map(|_| {
        let mut scheduler = Scheduler::new(limits, HELD_SESSIONS * WINDOW / BLOCK_SIZE);
        for id in 0..=queue {
            let tokens = (0..900).chain([5000 + id as u32; 30]).collect();
            scheduler.add(Sequence::new(SequenceId(id), tokens, WINDOW, true));
        }
        for chunk in scheduler.plan(STEP_TOKENS, true, |_| true) {
            scheduler.computed(&chunk);
        }
        let (plan, took) = timed(|| scheduler.plan(STEP_TOKENS, true, |_| true));
        assert_eq!(plan.len(), 1, "all others wait");
        took.as_secs_f64() * 1e6
    });
    median(plans)
}

/// Returns the seconds of a step of the model in which all sequences decode. They share a prompt, which is
/// prefilled once, so that all begin at the same time.
fn model_step(files: &ModelFiles, arguments: &Arguments) -> f64 {
    const PROMPT: usize = 512;
    const NEW: usize = 32;
    let engine = engine(files, arguments);
    let vocab_size = files.config.vocab_size();
    let limits = Limits::for_model(files.config.context_length(), vocab_size, Vec::new());
    let mut prompts = Prompts::new(vocab_size);
    let runtime = runtime();
    let mut step = || {
        let one = prompts.request(PROMPT, NEW, SamplingStyle::Sample);
        let drafts = vec![one; BATCH];
        let (_, took) = runtime.block_on(run(&engine, &limits, drafts));
        took.as_secs_f64() / (NEW - 1) as f64
    };
    step();
    let step = median((0..arguments.runs).map(|_| step()));
    engine.stop();
    step
}

fn engine(files: &ModelFiles, arguments: &Arguments) -> EngineHandle {
    let (dtype, kv_dtype) = precision(&arguments.dtype);
    let model = Model::load(files, &CpuBackend::new(arguments.threads, dtype)).expect("a model");
    let blocks = BATCH * (WINDOW / BLOCK_SIZE);
    let config = EngineConfig {
        kv_memory: bytesize::ByteSize::b((blocks * model.kv_block_bytes(kv_dtype)) as u64),
        kv_dtype,
        max_batch: BATCH,
        ..EngineConfig::default()
    };
    skald::engine::start(model, config).expect("the engine")
}

/// Costs of the measured steps.
#[derive(Default)]
struct Costs {
    steps: Vec<Duration>,
    rows: usize,
    turns: usize,
    evicted: usize,
    plan: Duration,
    computed: Duration,
    drawn: Duration,
    come_and_go: Duration,
}

/// A turn that runs or waits.
struct Turn {
    session: usize,
    /// Tokens left to sample.
    left: usize,
}

/// Many sessions that take turns.
struct Sessions {
    scheduler: Scheduler,
    root: PrefixId,
    histories: Vec<Vec<u32>>,
    /// Sessions without a turn, the longest idle first.
    resting: VecDeque<usize>,
    turns: HashMap<SequenceId, Turn>,
    next: u64,
    random: u64,
    /// Evicted blocks, which can be imported.
    kept: HashSet<PrefixId>,
    restored: bool,
    costs: Costs,
}

impl Sessions {
    fn new(restored: bool) -> Self {
        let limits = StepLimits {
            max_batch: BATCH,
            speculative_rows: 8,
        };
        let mut sessions = Self {
            scheduler: Scheduler::new(limits, HELD_SESSIONS * WINDOW / BLOCK_SIZE),
            root: PrefixId::root(Tenant::ANONYMOUS),
            histories: Vec::new(),
            resting: (0..SESSIONS).collect(),
            turns: HashMap::new(),
            next: 0,
            random: 1,
            kept: HashSet::new(),
            restored,
            costs: Costs::default(),
        };
        // Start with sessions of every length.
        for _ in 0..SESSIONS {
            let age = sessions.below(WINDOW - ADDED - DRAWN);
            let history = sessions.tokens(age);
            sessions.histories.push(history);
        }
        sessions
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.random >> 33) as usize % bound
    }

    fn token(&mut self) -> u32 {
        self.below(VOCABULARY as usize) as u32
    }

    fn tokens(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.token()).collect()
    }

    /// Runs until the pool is in use, and then `steps` measured steps.
    fn run(mut self, steps: usize) -> Costs {
        while self.costs.turns < SESSIONS {
            self.step();
        }
        self.costs = Costs::default();
        for _ in 0..steps {
            self.step();
        }
        self.costs
    }

    fn step(&mut self) {
        let mut come_and_go = Duration::ZERO;
        while self.turns.len() < BATCH + 8 {
            come_and_go += self.begin_turn();
        }
        let scheduler = &mut self.scheduler;
        let ((plan, moves), planning) = timed(|| {
            (
                scheduler.plan(STEP_TOKENS, true, |_| true),
                scheduler.take_moves(),
            )
        });
        for change in moves {
            if let BlockMove::Evict(eviction) = change {
                self.costs.evicted += 1;
                self.kept.insert(eviction.prefix);
            }
        }
        let drawn: Vec<[u32; 1]> = plan.iter().map(|_| [self.token()]).collect();
        let scheduler = &mut self.scheduler;
        let ((), computed) = timed(|| plan.iter().for_each(|chunk| scheduler.computed(chunk)));
        let completed = plan.iter().zip(&drawn).filter(|(chunk, _)| chunk.completes);
        let ((), pushed) = timed(|| {
            completed.for_each(|(chunk, drawn)| scheduler.push_sampled(chunk, drawn));
        });
        for chunk in plan.iter().filter(|chunk| chunk.completes) {
            come_and_go += self.drawn(chunk.id);
        }
        let costs = &mut self.costs;
        costs.rows += plan.iter().map(|chunk| chunk.tokens).sum::<usize>();
        costs.plan += planning;
        costs.computed += computed;
        costs.drawn += pushed;
        costs.come_and_go += come_and_go;
        costs.steps.push(planning + computed + pushed + come_and_go);
    }

    /// Begins a turn of a session. Returns the time that the scheduler took.
    fn begin_turn(&mut self) -> Duration {
        let session = self.resting.pop_front().expect("more sessions than turns");
        if self.histories[session].len() + ADDED + DRAWN > WINDOW {
            self.histories[session].clear();
        }
        let added = 1 + self.below(ADDED);
        let added = self.tokens(added);
        self.histories[session].extend(added);
        let tokens = self.histories[session].clone();
        let id = SequenceId(self.next);
        self.next += 1;
        let left = 1 + self.below(DRAWN);
        self.turns.insert(id, Turn { session, left });
        let importing = if self.restored {
            self.import(&tokens)
        } else {
            Duration::ZERO
        };
        let sequence = Sequence::new(id, tokens, WINDOW, true).with_keep(true);
        let sequence = sequence.with_root(self.root);
        importing + timed(|| self.scheduler.add(sequence)).1
    }

    /// Imports the evicted blocks of a history. Returns the time that the scheduler took.
    fn import(&mut self, tokens: &[u32]) -> Duration {
        let known = self.scheduler.blocks().find_prefix(self.root, tokens);
        let first = known.len();
        let mut prefix = known.last().map_or(self.root, |last| last.1);
        let rest = tokens[first * BLOCK_SIZE..].as_chunks().0;
        let kept = rest.iter().take_while(|tokens| {
            prefix = prefix.then(tokens);
            self.kept.contains(&prefix)
        });
        let count = kept.count();
        let (scheduler, root) = (&mut self.scheduler, self.root);
        let whole = StoredParts {
            global: true,
            window: false,
        };
        let importing = timed(|| {
            let stored = vec![whole; count];
            let import = scheduler.begin_import(root, tokens, first, &stored);
            scheduler.end_import(import, count)
        });
        importing.1
    }

    /// Records a sampled token. Returns the time that the scheduler took if it was the last of the turn.
    fn drawn(&mut self, id: SequenceId) -> Duration {
        let Some(turn) = self.turns.get_mut(&id) else {
            return Duration::ZERO;
        };
        turn.left -= 1;
        if turn.left > 0 {
            return Duration::ZERO;
        }
        let session = turn.session;
        self.turns.remove(&id);
        let (sequence, took) = timed(|| self.scheduler.remove_request(id));
        self.histories[session] = sequence.map_or_else(Vec::new, |s| s.tokens().to_vec());
        self.resting.push_back(session);
        self.costs.turns += 1;
        took
    }
}
