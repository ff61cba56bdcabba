//! A request's tokens depend on nothing but the request, bit for bit: for every architecture.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use skald::backend::cpu::CpuBackend;
use skald::checkpoint::ModelFiles;
use skald::engine::{EngineConfig, EngineHandle};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::model::Model;
use skald::request::{Limits, RequestDraft, Tenant};

use crate::model::{Outcome, after, finish, greedy, sampled};

const CHECKPOINTS: [&str; 8] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-untied",
    "llama",
    "llama-bias",
    "qwen2",
    "qwen3",
];
const DTYPES: [(WeightDtype, KvDtype); 3] = [
    (WeightDtype::F32, KvDtype::F32),
    (WeightDtype::Bf16, KvDtype::Bf16),
    (WeightDtype::Q8, KvDtype::Bf16),
];

fn load(name: &str, dtype: WeightDtype) -> Model {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gemma/tiny");
    let files = ModelFiles::open(name, &PathBuf::from(fixtures).join(name));
    let threads = NonZeroUsize::new(2).expect("not zero");
    let backend = CpuBackend::new(threads, dtype);
    Model::load(&files.expect("a checkpoint"), &backend).expect("the model loads")
}

fn start(name: &str, dtype: WeightDtype, config: EngineConfig) -> EngineHandle {
    skald::engine::start(load(name, dtype), config).expect("the engine starts")
}

/// Returns a prompt of `n` tokens of the tiny vocabularies.
fn prompt(n: usize, salt: u32) -> Vec<u32> {
    let id = |i: u32| (i * 37 + salt * 101 + 11) % 512;
    (0..n as u32).map(id).collect()
}

async fn run(engine: &EngineHandle, draft: RequestDraft) -> Outcome {
    let limits = Limits::for_model(256, 512, Vec::new());
    let request = limits.admit(draft).expect("a valid request");
    let generation = engine.submit(request).await.expect("accepted");
    finish(generation).await.expect("it does not fail")
}

async fn run_all(engine: &EngineHandle, drafts: Vec<RequestDraft>) -> Vec<Outcome> {
    futures_util::future::join_all(drafts.into_iter().map(|draft| run(engine, draft))).await
}

/// Returns requests of different lengths, around the blocks, tiles and windows too.
fn requests() -> Vec<RequestDraft> {
    let lengths = [1, 15, 16, 17, 33, 64, 65, 100, 150, 200];
    let requests = (0..).zip(lengths).map(|(i, length)| {
        let mut draft = sampled(&prompt(length, i), 12, u64::from(i) + 1);
        draft.logprobs.top = 2;
        if i % 2 == 0 {
            draft.sampling.temperature = Some(0.0);
        }
        draft
    });
    requests.collect()
}

#[tokio::test]
async fn alone_or_together_at_once_or_in_chunks_every_architecture_gives_the_same() {
    for name in CHECKPOINTS {
        for (dtype, kv_dtype) in DTYPES {
            let config = |max_step_tokens| EngineConfig {
                max_step_tokens,
                kv_dtype,
                ..EngineConfig::default()
            };
            let engine = start(name, dtype, config(2048));
            let mut alone = Vec::new();
            for mut draft in requests() {
                // Log-probabilities of the prompt prevent the use of cached blocks.
                draft.logprobs.prompt = true;
                alone.push(run(&engine, draft).await);
            }
            for max_step_tokens in [7, 50, 2048] {
                let engine = start(name, dtype, config(max_step_tokens));
                let together = run_all(&engine, requests()).await;
                for (alone, together) in alone.iter().zip(&together) {
                    assert_eq!(
                        alone.tokens, together.tokens,
                        "{name} {dtype:?} {max_step_tokens}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn cached_prefixes_and_histories_give_every_architecture_the_same() {
    for name in CHECKPOINTS {
        let engine = start(name, WeightDtype::F32, EngineConfig::default());
        let (first, second) = (prompt(50, 1), prompt(30, 2));
        let mut history = first.clone();
        let turn = run(&engine, greedy(&first, 15)).await;
        history.extend(turn.ids());
        let turn = run(&engine, after(&history, sampled(&second, 15, 3))).await;
        history.extend(&second);
        assert_eq!(turn.prompt.cached_tokens, 64, "{name}");
        let fresh = start(name, WeightDtype::F32, EngineConfig::default());
        let cold = run(&fresh, sampled(&history, 15, 3)).await;
        assert_eq!(
            (cold.prompt.cached_tokens, cold.tokens),
            (0, turn.tokens),
            "{name}"
        );
    }
}

#[tokio::test]
async fn preempted_requests_of_every_architecture_give_the_same() {
    let requests = || -> Vec<RequestDraft> {
        let each = (0..6).map(|i| sampled(&prompt(60, i), 60, 1 + u64::from(i)));
        each.collect()
    };
    for name in CHECKPOINTS {
        let roomy = start(name, WeightDtype::F32, EngineConfig::default());
        let roomy = run_all(&roomy, requests()).await;
        let model = load(name, WeightDtype::F32);
        let block = model.kv_block_bytes(KvDtype::F32) as u64;
        let config = EngineConfig {
            // Blocks for three of the six at their full length.
            kv_memory: bytesize::ByteSize::b(block * 24),
            ..EngineConfig::default()
        };
        let tight = skald::engine::start(model, config).expect("the engine starts");
        for (roomy, tight) in roomy.iter().zip(run_all(&tight, requests()).await) {
            assert_eq!(roomy.tokens, tight.tokens, "{name}");
        }
    }
}

#[tokio::test]
async fn drafted_tokens_change_no_architectures_text() {
    let (first, second) = (prompt(12, 1), prompt(7, 2));
    let repeating = [&first[..], &second, &first, &second, &first].concat();
    for name in CHECKPOINTS {
        // A bias towards a few tokens, so that the text repeats itself.
        let draft = RequestDraft {
            logit_bias: (0..6).map(|id| (300 + id, 100.0)).collect(),
            ..sampled(&repeating, 100, 3)
        };
        let without = EngineConfig {
            speculative_rows: 0,
            ..EngineConfig::default()
        };
        let without = start(name, WeightDtype::F32, without);
        let with = start(name, WeightDtype::F32, EngineConfig::default());
        let expected = run(&without, draft.clone()).await;
        assert_eq!(expected.tokens, run(&with, draft).await.tokens, "{name}");
        // An engine has published the status of all steps before when it answers.
        let answered = with.resident_tokens(Tenant::ANONYMOUS, Vec::new()).await;
        answered.expect("the worker answers");
        assert!(with.status().accepted > 0, "{name}");
    }
}
