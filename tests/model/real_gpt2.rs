//! Published results for the real GPT-2 (124M), for machines that have its checkpoint:
//!
//! ```text
//! SKALD_TEST_GPT2=DIRECTORY cargo test --test model real_gpt2 -- --ignored
//! ```
//!
//! The directory is `openai-community/gpt2` in the Hugging Face layout, as `skald pull
//! openai-community/gpt2` prints it. The expectations, with their sources, are in
//! `tests/fixtures/gpt2-124m-expected.json`.

use std::num::NonZeroUsize;

use serde_json::Value;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::kernels::kv::KvDtype;
use skald::kernels::kv::SequenceSpan;
use skald::kernels::linear::WeightDtype;
use skald::kernels::rows;
use skald::model::Model;
use skald::model::batch::Batch;

const EXPECTED: &str = include_str!("../fixtures/gpt2-124m-expected.json");

struct Real {
    files: ModelFiles,
    model: Model,
}

impl Real {
    fn load() -> Self {
        let directory = std::env::var("SKALD_TEST_GPT2").expect("SKALD_TEST_GPT2=DIRECTORY");
        let source: ModelSource = directory.parse().expect("a model");
        let files = source.fetch(false).expect("its files");
        let threads = NonZeroUsize::new(2).expect("not zero");
        let backend = CpuBackend::new(threads, WeightDtype::F32);
        let model = Model::load(&files, &backend).expect("it loads");
        Self { files, model }
    }

    /// Returns the logits after every token, `[tokens][vocabulary]`.
    fn logits(&self, ids: &[u32]) -> Vec<Vec<f32>> {
        let n = ids.len() as u32;
        let batch = Batch {
            ids: ids.to_vec(),
            positions: (0..n).collect(),
            spans: vec![SequenceSpan {
                rows: 0..ids.len(),
                first_position: 0,
                block_table: (0..n.div_ceil(16)).collect(),
                window_table: Vec::new(),
            }],
            logits_rows: (0..n).collect(),
            ..Batch::default()
        };
        let kv = self.model.kv_cache(KvDtype::F32, 64).expect("a cache");
        let outputs = self.model.forward(batch, &kv).expect("a pass");
        outputs.logits.to_vec2().expect("rows")
    }

    fn greedy(&self, prompt: &[u32], until: impl Fn(&[u32]) -> bool) -> Vec<u32> {
        let mut ids = prompt.to_vec();
        while !until(&ids) {
            let logits = self.logits(&ids);
            let (next, _) = rows::argmax(logits.last().expect("a row")).expect("a token");
            ids.push(next as u32);
        }
        ids
    }

    /// Returns the mean of `-ln p` of each token after the first.
    fn losses(&self, ids: &[u32]) -> Vec<f64> {
        let logits = self.logits(ids);
        let pairs = logits.iter().zip(&ids[1..]);
        pairs
            .map(|(row, &next)| f64::from(rows::log_sum_exp(row) - row[next as usize]))
            .collect()
    }
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    let ids = value.as_array()?.iter();
    ids.map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect()
}

fn near(found: f64, expected: &Value, tolerance: f64, id: &str) {
    let expected = expected.as_f64().expect("a number");
    assert!(
        (found - expected).abs() <= tolerance,
        "{id}: {found}, expected {expected}"
    );
}

#[test]
#[ignore = "needs the real checkpoint: SKALD_TEST_GPT2=DIRECTORY"]
fn the_real_gpt2_gives_what_others_published() {
    let real = Real::load();
    let expected: Value = serde_json::from_str(EXPECTED).expect("JSON");
    let mut checked = 0;
    for case in expected["cases"].as_array().expect("cases") {
        let id = case["id"].as_str().expect("an id");
        if case["model"].is_string() || case["trust"] != "high" {
            continue;
        }
        checked += usize::from(check(&real, id, case));
    }
    assert!(checked >= 12, "only {checked} cases could be checked");
}

/// Checks one case. Returns `false` if its kind is not checked here.
fn check(real: &Real, id: &str, case: &Value) -> bool {
    match case["kind"].as_str().expect("a kind") {
        "greedy" => greedy(real, id, case),
        "top-50 logits at the last position" => {
            let logits = real.logits(&ids(&case["prompt_ids"]).expect("ids"));
            let row = logits.last().expect("a row");
            let top = ids(&case["top_ids"]).expect("ids");
            for (&token, expected) in top
                .iter()
                .zip(case["top_logits"].as_array().expect("logits"))
            {
                near(f64::from(row[token as usize]), expected, 1e-3, id);
            }
        }
        "logit" => {
            let logits = real.logits(&ids(&case["prompt_ids"]).expect("ids"));
            let (argmax, highest) = rows::argmax(logits.last().expect("a row")).expect("a token");
            assert_eq!(
                argmax as u64,
                case["argmax"].as_u64().expect("an id"),
                "{id}"
            );
            near(f64::from(highest), &case["logit"], 1e-3, id);
        }
        "greedy + logprob per token" => {
            let losses = real.losses(&ids(&case["ids"]).expect("ids"));
            let published = case["prompt_logprobs_from_token_1"].as_array();
            for (loss, expected) in losses.iter().zip(published.expect("logprobs")) {
                near(-loss, expected, 1e-3, id);
            }
        }
        "mean cross-entropy" => {
            let losses = real.losses(&ids(&case["ids_scored"]).expect("ids"));
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            near(mean, &case["loss"], 1e-3, id);
        }
        "mean cross-entropy over 4x64 tokens" => {
            let stream = ids(&case["token_stream_257"]).expect("ids");
            let rows = (0..4).map(|row| &stream[row * 64..=(row + 1) * 64]);
            let losses: Vec<f64> = rows.flat_map(|row| real.losses(row)).collect();
            assert_eq!(losses.len(), 256);
            near(losses.iter().sum::<f64>() / 256.0, &case["loss"], 1e-3, id);
        }
        _ => return false,
    }
    true
}

fn greedy(real: &Real, id: &str, case: &Value) {
    let tokenizer = &real.files.tokenizer;
    let text = case["prompt"].as_str().expect("a prompt");
    let prompt = tokenizer.encode(text, true).expect("ids");
    if let Some(expected) = ids(&case["prompt_ids"]) {
        assert_eq!(prompt, expected, "{id}");
    }
    if let Some(expected) = ids(&case["ids"]) {
        let found = real.greedy(&prompt, |ids| ids.len() == expected.len());
        assert_eq!(found, expected, "{id}");
    } else if let Some(expected) = ids(&case["continuation_ids"]) {
        let found = real.greedy(&prompt, |ids| ids.len() == prompt.len() + expected.len());
        assert_eq!(found[prompt.len()..], expected, "{id}");
    } else {
        let expected = case["text"].as_str().expect("a text");
        let found = real.greedy(&prompt, |ids| tokenizer.decode(ids).len() >= expected.len());
        let found = tokenizer.decode(&found);
        assert!(found.starts_with(expected), "{id}: {found:?}");
    }
}
