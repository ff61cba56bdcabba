//! The quality cost of faster arithmetic: perplexity of the built-in model in every precision, on its
//! validation tales, which are not part of its training data.

use skald::engine::EngineConfig;
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::RequestDraft;

use crate::model::{files, gpt2_in, greedy, run_all};

const TALES: &str = include_str!("../../assets/fairy-tales/validation.txt");
const TRAINED: &str = include_str!("../../assets/fairy-tales/train.json");
const WINDOW: usize = 1024;

/// Returns the tales in windows, each tale after an end-of-text token.
fn windows() -> Vec<Vec<u32>> {
    let tokenizer = files().tokenizer;
    let end_of_text = tokenizer.end_of_text().expect("an end-of-text token");
    let mut windows = Vec::new();
    for tale in TALES
        .split("<|endoftext|>")
        .filter(|tale| !tale.trim().is_empty())
    {
        let mut ids = vec![end_of_text];
        ids.extend(tokenizer.encode(tale, false).expect("ids"));
        windows.extend(ids.chunks(WINDOW).map(<[u32]>::to_vec));
    }
    windows
}

/// Returns the mean negative log-probability of the tales' tokens, in nats.
async fn loss(dtype: WeightDtype, kv_dtype: KvDtype) -> f64 {
    let config = EngineConfig {
        kv_dtype,
        max_step_tokens: 2048,
        ..EngineConfig::default()
    };
    let engine = skald::engine::start(gpt2_in(dtype), config).expect("the engine starts");
    let drafts: Vec<RequestDraft> = windows()
        .iter()
        .map(|window| {
            let mut draft = greedy(window, 0);
            draft.logprobs.prompt = true;
            draft
        })
        .collect();
    let outcomes = run_all(&engine, drafts).await;
    let logprobs: Vec<f64> = outcomes
        .iter()
        .flat_map(|outcome| outcome.prompt.logprobs.iter().flatten())
        .map(|token| f64::from(token.token.logprob))
        .collect();
    assert!(logprobs.len() > 19_000, "{}", logprobs.len());
    -logprobs.iter().sum::<f64>() / logprobs.len() as f64
}

#[tokio::test]
async fn perplexity_in_bf16_is_within_a_thousandth_and_in_q8_within_five() {
    let exact = loss(WeightDtype::F32, KvDtype::F32).await;
    // The training program measured windows that are one token longer.
    let trained: serde_json::Value = serde_json::from_str(TRAINED).expect("JSON");
    let expected = trained["validation_loss"].as_f64().expect("a loss");
    assert!((exact - expected).abs() < 0.01, "{exact}");
    for (dtype, bound) in [(WeightDtype::Bf16, 0.001), (WeightDtype::Q8, 0.005)] {
        let found = loss(dtype, KvDtype::Bf16).await;
        let change = (found - exact).exp() - 1.0;
        println!(
            "{dtype:?}: perplexity {:.4}, {:+.4} %",
            found.exp(),
            change * 100.0
        );
        assert!(change.abs() < bound, "{dtype:?}: {change}");
    }
}
