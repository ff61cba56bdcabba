//! A request's tokens depend on nothing but the request, bit for bit: for every architecture.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use skald::backend::cpu::CpuBackend;
use skald::checkpoint::ModelFiles;
use skald::engine::{EngineConfig, EngineHandle};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::model::Model;
use skald::request::{Limits, RequestDraft, Tenant};
use skald::text::{GrammarSource, Grammars};

use crate::model::{Outcome, after, embedding, finish, greedy, sampled};

/// All tiny checkpoints.
pub const CHECKPOINTS: [&str; 8] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-untied",
    "llama",
    "llama-bias",
    "qwen2",
    "qwen3",
];
/// Precisions of weights and KV cache.
pub const DTYPES: [(WeightDtype, KvDtype); 3] = [
    (WeightDtype::F32, KvDtype::F32),
    (WeightDtype::Bf16, KvDtype::Bf16),
    (WeightDtype::Q8, KvDtype::Bf16),
];

/// Opens a tiny checkpoint.
fn open(name: &str) -> ModelFiles {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gemma/tiny");
    ModelFiles::open(name, &PathBuf::from(fixtures).join(name)).expect("a checkpoint")
}

/// Loads a tiny checkpoint on two threads.
pub fn load(name: &str, dtype: WeightDtype) -> Model {
    let threads = NonZeroUsize::new(2).expect("not zero");
    let backend = CpuBackend::new(threads, dtype);
    Model::load(&open(name), &backend).expect("the model loads")
}

fn start(name: &str, dtype: WeightDtype, config: EngineConfig) -> EngineHandle {
    skald::engine::start(load(name, dtype), config).expect("the engine starts")
}

/// Returns the configuration of an engine with steps of up to `max_step_tokens`.
fn stepping(max_step_tokens: usize, kv_dtype: KvDtype) -> EngineConfig {
    EngineConfig {
        max_step_tokens,
        kv_dtype,
        ..EngineConfig::default()
    }
}

/// Returns a prompt of `n` tokens of the tiny vocabularies.
pub fn prompt(n: usize, salt: u32) -> Vec<u32> {
    let id = |i: u32| (i * 37 + salt * 101 + 11) % 512;
    (0..n as u32).map(id).collect()
}

/// Returns the limits of the tiny models.
pub fn limits() -> Limits {
    Limits::for_model(256, 512, Vec::new())
}

/// Runs one request to its end.
pub async fn run(engine: &EngineHandle, draft: RequestDraft) -> Outcome {
    let request = limits().admit(draft).expect("a valid request");
    let generation = engine.submit(request).await.expect("accepted");
    finish(generation).await.expect("it does not fail")
}

/// Runs requests concurrently.
pub async fn run_all(engine: &EngineHandle, drafts: Vec<RequestDraft>) -> Vec<Outcome> {
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
            let config = |max_step_tokens| stepping(max_step_tokens, kv_dtype);
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

#[tokio::test]
async fn embeddings_of_every_architecture_depend_on_their_input_alone() {
    let inputs = || -> Vec<RequestDraft> {
        let inputs = (1..).zip([1, 2, 15, 16, 17, 100, 256]);
        inputs
            .map(|(salt, n)| embedding(&prompt(n, salt)))
            .collect()
    };
    let bits = |outcome: &Outcome| -> Vec<u32> {
        let embedding = outcome.prompt.embedding.as_ref().expect("asked for");
        embedding.iter().map(|value| value.to_bits()).collect()
    };
    for name in CHECKPOINTS {
        for (dtype, kv_dtype) in DTYPES {
            let config = |max_step_tokens| stepping(max_step_tokens, kv_dtype);
            let engine = start(name, dtype, config(2048));
            let mut alone = Vec::new();
            for input in inputs() {
                alone.push(bits(&run(&engine, input).await));
            }
            let engine = start(name, dtype, config(17));
            let others = (0..4).map(|i| sampled(&prompt(40, 50 + i), 30, 1));
            let (together, _) = tokio::join!(
                run_all(&engine, inputs()),
                run_all(&engine, others.collect())
            );
            let together: Vec<_> = together.iter().map(bits).collect();
            assert_eq!(alone, together, "{name} {dtype:?}");
        }
    }
}

#[tokio::test]
async fn texts_of_every_architecture_follow_their_grammar_alone_and_together() {
    for name in CHECKPOINTS {
        let tokenizer = Arc::new(open(name).tokenizer);
        let grammars = Grammars::new(Arc::clone(&tokenizer), 512, &[]);
        let source = GrammarSource::Regex("([a-f]{1,3} ){2,9}end".to_owned());
        let grammar = grammars.compile(&source).expect("a grammar");
        let requests = || -> Vec<RequestDraft> {
            let requests = (0..6).map(|i| RequestDraft {
                grammar: (i % 3 != 0).then(|| grammar.clone()),
                ..sampled(&prompt(5 + 30 * i as usize, i), 40, u64::from(i) + 1)
            });
            requests.collect()
        };
        for (dtype, kv_dtype) in DTYPES {
            let config = EngineConfig {
                kv_dtype,
                ..EngineConfig::default()
            };
            let engine = start(name, dtype, config);
            let together = run_all(&engine, requests()).await;
            for (draft, together) in requests().into_iter().zip(together) {
                let constrained = draft.grammar.is_some();
                let alone = run(&engine, draft).await;
                assert_eq!(alone.tokens, together.tokens, "{name} {dtype:?}");
                if constrained {
                    let text = tokenizer.decode(&together.ids());
                    let mut words: Vec<&str> = text.trim_start().split(' ').collect();
                    assert_eq!(words.pop(), Some("end"), "{name} {dtype:?}: {text}");
                    assert!((2..=9).contains(&words.len()), "{text}");
                    let is_word = |word: &&str| {
                        let letters = word.chars().all(|c| ('a'..='f').contains(&c));
                        letters && (1..=3).contains(&word.len())
                    };
                    assert!(words.iter().all(is_word), "{name} {dtype:?}: {text}");
                }
            }
        }
    }
}
