//! Both backends against the plain reference in `tests/reference`, on the tiny and the built-in model.

use std::num::NonZeroUsize;

use candle_core::Device;
use skald::backend::Backend;
use skald::backend::candle::CandleBackend;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::engine::{self, EngineConfig, TokenEvent};
use skald::kernels::kv::{KvDtype, SequenceSpan};
use skald::kernels::linear::WeightDtype;
use skald::model::Model;
use skald::model::batch::Batch;
use skald::request::{Limits, RequestDraft, RequestId, SamplingStyle};
use tempfile::TempDir;

use crate::plain::Gpt2;
use crate::support::tiny_model;

/// Maximum difference of logits between f32 and f64.
const LOGIT_TOLERANCE: f64 = 2e-4;
/// Maximum difference of log-probabilities: a logit and the logarithm of the sum may each be off by the
/// tolerance of the logits.
const LOGPROB_TOLERANCE: f64 = 4e-4;

fn backends() -> [Box<dyn Backend>; 2] {
    let two = NonZeroUsize::new(2).unwrap();
    [
        Box::new(CpuBackend::new(two, WeightDtype::F32)),
        Box::new(CandleBackend::new(Device::Cpu, two)),
    ]
}

fn tiny() -> ModelFiles {
    let directory = TempDir::new().unwrap();
    tiny_model::write(directory.path(), tiny_model::files());
    ModelFiles::open("tiny", directory.path()).unwrap()
}

fn builtin() -> ModelFiles {
    let source: ModelSource = "builtin".parse().unwrap();
    source.fetch(false).unwrap()
}

/// Returns the logits after every token.
fn logits(model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let batch = Batch {
        ids: ids.to_vec(),
        positions: rows.clone(),
        spans: vec![SequenceSpan {
            rows: 0..ids.len(),
            first_position: 0,
            block_table: (0..ids.len().div_ceil(16) as u32).collect(),
            window_table: Vec::new(),
        }],
        logits_rows: rows,
        ..Batch::default()
    };
    let kv = model.kv_cache(KvDtype::F32, 4).unwrap();
    model.forward(batch, &kv).unwrap().logits.to_vec2().unwrap()
}

#[test]
fn the_logits_of_both_backends_are_the_references() {
    let builtin_prompt: Vec<u32> = (0..20).map(|i| (i * 397 + 11) % 8000).collect();
    for (files, ids) in [
        (tiny(), vec![0, 2, 3, 1, 7, 4]),
        (builtin(), builtin_prompt),
    ] {
        let expected = Gpt2::load(&files).logits(&ids);
        for backend in backends() {
            let model = Model::load(&files, &*backend).unwrap();
            for (found, expected) in logits(&model, &ids).iter().zip(&expected) {
                for (&found, expected) in found.iter().zip(expected) {
                    let error = (f64::from(found) - expected).abs();
                    let tolerance = LOGIT_TOLERANCE * expected.abs().max(1.0);
                    assert!(
                        error <= tolerance,
                        "{}: {found} is not {expected}",
                        backend.name()
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn the_engines_greedy_tokens_and_logprobs_are_the_references() {
    let files = builtin();
    let prompt = files.tokenizer.encode("Once upon a time", true).unwrap();
    let expected = Gpt2::load(&files).generate(&prompt, 8);
    for backend in backends() {
        let model = Model::load(&files, &*backend).unwrap();
        let limits = Limits::for_model(1024, 8192, vec![8191]);
        let engine = engine::start(model, EngineConfig::default()).unwrap();
        let draft = RequestDraft::new(
            RequestId::random(),
            prompt.clone(),
            expected.len(),
            SamplingStyle::Greedy,
        );
        let mut generation = engine.submit(limits.admit(draft).unwrap()).await.unwrap();
        let mut found = Vec::new();
        while let Some(event) = generation.next().await {
            match event {
                TokenEvent::Token(token) => {
                    found.push((token.token.id, token.token.logprob));
                }
                TokenEvent::Failed(error) => panic!("{error}"),
                TokenEvent::Prefilled(_) => (),
            }
        }
        assert_eq!(found.len(), expected.len());
        for ((id, logprob), (expected_id, expected)) in found.into_iter().zip(&expected) {
            assert_eq!(id, *expected_id, "{}", backend.name());
            let logprob = f64::from(logprob);
            assert!(
                (logprob - expected).abs() <= LOGPROB_TOLERANCE,
                "{logprob} is not {expected}"
            );
        }
    }
}
