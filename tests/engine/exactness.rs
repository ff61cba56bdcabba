//! The engine against the results of Hugging Face transformers for the same files
//! (`tests/fixtures/fairy-tales`).

use std::collections::HashMap;
use std::num::NonZeroUsize;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use skald::backend::Backend;
use skald::backend::candle::CandleBackend;
use skald::backend::cpu::CpuBackend;
use skald::engine::EngineConfig;
use skald::kernels::kv::{KvDtype, SequenceSpan};
use skald::kernels::linear::WeightDtype;
use skald::kernels::{Isa, Pool};
use skald::model::Model;
use skald::model::batch::Batch;
use skald::model::stage::Stage;

use crate::model::{embedding, engine, files, gpt2, greedy, prompt, run, run_all, sampled};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fairy-tales");
/// Maximum difference of logits between two f32 implementations.
const TOLERANCE: f32 = 2e-4;
/// Maximum difference of log-probabilities between two f32 implementations: a logit and the logarithm of the
/// sum may each be off by the logits' 2e-4.
const LOGPROB_TOLERANCE: f64 = 4e-4;

fn references() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(format!("{FIXTURES}/reference.safetensors"), &Device::Cpu)
        .expect("the reference tensors")
}

fn cases() -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{FIXTURES}/reference.json")).expect("references");
    serde_json::from_str(&text).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// Returns a batch of all tokens, with logits after the last `logits` of them.
fn whole(ids: &[u32], logits: usize) -> Batch {
    let n = ids.len() as u32;
    Batch {
        ids: ids.to_vec(),
        positions: (0..n).collect(),
        spans: vec![SequenceSpan {
            rows: 0..ids.len(),
            first_position: 0,
            block_table: (0..n.div_ceil(16)).collect(),
            window_table: Vec::new(),
        }],
        logits_rows: (n - logits as u32..n).collect(),
        ..Batch::default()
    }
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let b = b.to_dtype(DType::F32).expect("f32");
    let difference = (a - b).expect("the same shape").abs().expect("abs");
    let largest = difference.flatten_all().expect("flat").max(0).expect("max");
    largest.to_scalar().expect("a number")
}

fn logits(model: &Model, ids: &[u32], wanted: usize) -> Tensor {
    let kv = model.kv_cache(KvDtype::F32, 64).expect("a cache");
    model
        .forward(whole(ids, wanted), &kv)
        .expect("a pass")
        .logits
}

#[test]
fn logits_are_the_references_on_every_instruction_set_and_by_candle() {
    let references = references();
    let two = NonZeroUsize::new(2).expect("not zero");
    let pool = Pool::new(two);
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(CandleBackend::new(Device::Cpu, two))];
    for isa in Isa::available() {
        let backend = CpuBackend::on(pool.clone(), isa, WeightDtype::F32);
        backends.push(Box::new(backend));
    }
    for backend in backends {
        let name = backend.name();
        let model = Model::load(&files(), &*backend).expect("the model loads");
        for case in ["case0", "case1", "case2", "case3", "long"] {
            let ids = &references[&format!("{case}.ids")];
            let ids = ids
                .to_dtype(DType::U32)
                .expect("ids")
                .to_vec1()
                .expect("ids");
            let expected = &references[&format!("{case}.logits")];
            let wanted = expected.dim(0).expect("rows");
            let difference = largest_difference(&logits(&model, &ids, wanted), expected);
            assert!(difference < TOLERANCE, "{name}, {case}: {difference}");
        }
    }
}

#[test]
fn the_hidden_states_are_the_references_layer_by_layer() {
    let references = references();
    let model = gpt2();
    let ids = references["case0.ids"].to_dtype(DType::U32).expect("ids");
    let ids: Vec<u32> = ids.to_vec1().expect("ids");
    let kv = model.kv_cache(KvDtype::F32, 64).expect("a cache");
    let mut states = Vec::new();
    let observe = &mut |stage, x: &Tensor| {
        if let Stage::Residual(_) = stage {
            states.push(x.clone());
        }
        Ok(())
    };
    let pass = model.forward_observed(whole(&ids, 0), &kv, observe);
    pass.expect("a pass");
    // The last published state is the one after `ln_f`.
    let last = states.pop().expect("a state");
    let hidden = Batch {
        hidden_rows: (0..ids.len() as u32).collect(),
        ..whole(&ids, 0)
    };
    let normalized = model.forward(hidden, &kv).expect("a pass").hidden;
    assert_eq!(last.dims(), normalized.dims());
    states.push(normalized);
    let expected = &references["case0.hidden"];
    assert_eq!(states.len(), expected.dim(0).expect("layers"));
    for (layer, state) in states.iter().enumerate() {
        let difference = largest_difference(state, &expected.get(layer).expect("a layer"));
        assert!(difference < TOLERANCE, "layer {layer}: {difference}");
    }
}

#[test]
fn one_pass_gives_the_hidden_states_and_the_logits_of_the_rows_asked_for() {
    let model = gpt2();
    let ids: Vec<u32> = (1..20).collect();
    let kv = model.kv_cache(KvDtype::F32, 64).expect("a cache");
    let every = Batch {
        hidden_rows: (0..19).collect(),
        ..whole(&ids, 0)
    };
    let all = model.forward(every, &kv).expect("a pass").hidden;
    let batch = Batch {
        hidden_rows: vec![3, 4, 11],
        logits_rows: vec![18],
        ..whole(&ids, 0)
    };
    let outputs = model.forward(batch, &kv).expect("a pass");
    assert_eq!(outputs.logits.dims(), [1, 8192]);
    let expected = all
        .index_select(&Tensor::new(&[3u32, 4, 11], &Device::Cpu).expect("ids"), 0)
        .expect("rows");
    assert_eq!(largest_difference(&outputs.hidden, &expected), 0.0);
    // Outputs that were not requested are not computed.
    let neither = model.forward(whole(&ids, 0), &kv).expect("a pass");
    assert_eq!(neither.logits.dims(), [0, 8192]);
    assert_eq!(neither.hidden.dims(), [0, 320]);
}

#[tokio::test]
async fn an_embedding_is_the_mean_of_the_references_hidden_states() {
    let references = references();
    let ids = references["case0.ids"].to_dtype(DType::U32).expect("ids");
    let ids: Vec<u32> = ids.to_vec1().expect("ids");
    let hidden = &references["case0.hidden"];
    let last = hidden.dim(0).expect("layers") - 1;
    let expected = hidden
        .get(last)
        .expect("after ln_f")
        .mean(0)
        .expect("a mean");

    let engine = engine(EngineConfig::default());
    let outcome = run(&engine, embedding(&ids)).await;
    let found = outcome.prompt.embedding.expect("asked for");
    let found = Tensor::new(found, &Device::Cpu).expect("a tensor");
    let difference = largest_difference(&found, &expected);
    assert!(difference < TOLERANCE, "{difference}");
    assert!(outcome.tokens.is_empty());
}

#[tokio::test]
async fn greedy_continuations_are_the_references_token_for_token() {
    let engine = engine(EngineConfig::default());
    for case in cases() {
        let expected = ids(&case["greedy_ids"]);
        let outcome = run(&engine, greedy(&ids(&case["ids"]), expected.len())).await;
        assert_eq!(outcome.ids(), expected, "{}", case["prompt"]);
    }
}

#[tokio::test]
async fn logprobs_of_a_prompt_are_the_references() {
    let engine = engine(EngineConfig::default());
    for case in cases() {
        let mut draft = greedy(&ids(&case["ids"]), 0);
        draft.logprobs.prompt = true;
        draft.logprobs.prompt_top = 1;
        let outcome = run(&engine, draft).await;
        let expected = case["prompt_logprobs"].as_array().expect("logprobs");
        assert_eq!(outcome.prompt.logprobs.len(), expected.len());
        for (found, expected) in outcome.prompt.logprobs.iter().zip(expected) {
            match (found, expected.as_f64()) {
                (None, None) => (),
                (Some(found), Some(expected)) => {
                    assert!((f64::from(found.token.logprob) - expected).abs() < LOGPROB_TOLERANCE);
                    assert!(found.top[0].logprob >= found.token.logprob);
                }
                pair => panic!("{pair:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_prompt_that_many_ask_for_at_once_is_read_once() {
    let engine = engine(EngineConfig {
        max_step_tokens: 50,
        ..EngineConfig::default()
    });
    let ids = prompt(200, 5);
    let drafts: Vec<_> = (0..8).map(|seed| sampled(&ids, 6, seed)).collect();
    let alone = run(&engine, sampled(&ids, 6, 3)).await;
    // The next request has another prefix.
    let (ids, before) = (prompt(200, 6), engine.status().steps);
    let outcomes = run_all(&engine, (0..8).map(|seed| sampled(&ids, 6, seed)).collect()).await;
    let cached = outcomes.iter().map(|outcome| outcome.prompt.cached_tokens);
    let mut cached: Vec<usize> = cached.collect();
    cached.sort_unstable();
    assert_eq!(cached, [0, 199, 199, 199, 199, 199, 199, 199]);
    // Four steps for the prompt, one for the last prompt token of the others, five more for the tokens.
    assert!(engine.status().steps - before < 15);
    assert_eq!(run_all(&engine, drafts).await[3].tokens, alone.tokens);
}
