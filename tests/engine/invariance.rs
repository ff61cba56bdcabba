//! A request's tokens depend on nothing but the request, bit for bit.

use skald::engine::EngineConfig;
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::RequestDraft;

use crate::model::{after, engine, gpt2_in, greedy, prompt, run, run_all, sampled};

const DTYPES: [(WeightDtype, KvDtype); 3] = [
    (WeightDtype::F32, KvDtype::F32),
    (WeightDtype::Bf16, KvDtype::Bf16),
    (WeightDtype::Q8, KvDtype::Bf16),
];

/// Returns 32 requests with different lengths, parameters and seeds.
fn mixed_requests() -> Vec<RequestDraft> {
    (0..32)
        .map(|i| {
            let ids = prompt(1 + (i as usize * 23) % 190, i);
            let mut draft = sampled(&ids, 12, u64::from(i) + 1);
            draft.logprobs.top = 2;
            let sampling = &mut draft.sampling;
            match i % 4 {
                0 => sampling.temperature = Some(0.0),
                1 => sampling.top_k = Some(40),
                2 => (sampling.top_p, sampling.repetition_penalty) = (Some(0.9), Some(1.2)),
                _ => sampling.typical_p = Some(0.8),
            }
            draft
        })
        .collect()
}

/// Outcomes are compared completely: ids, and the bits of every log-probability.
#[tokio::test]
async fn alone_or_among_32_prefilled_at_once_or_in_chunks_the_outcome_is_the_same() {
    for (dtype, kv_dtype) in DTYPES {
        let start = |max_step_tokens| {
            let config = EngineConfig {
                max_step_tokens,
                kv_dtype,
                ..EngineConfig::default()
            };
            skald::engine::start(gpt2_in(dtype), config).expect("the engine starts")
        };
        let engine = start(2048);
        let mut alone = Vec::new();
        for mut draft in mixed_requests() {
            // Log-probabilities of the prompt prevent the use of cached blocks.
            draft.logprobs.prompt = true;
            alone.push(run(&engine, draft).await);
        }
        for max_step_tokens in [17, 100, 2048] {
            let together = run_all(&start(max_step_tokens), mixed_requests()).await;
            for (alone, together) in alone.iter().zip(&together) {
                assert_eq!(alone.tokens, together.tokens, "{dtype:?} {max_step_tokens}");
            }
        }
    }
}

#[tokio::test]
async fn a_prompt_met_again_is_taken_from_the_cache_with_the_same_outcome() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(100, 1);
    let cold = run(&engine, sampled(&ids, 20, 5)).await;
    let warm = run(&engine, sampled(&ids, 20, 5)).await;
    assert_eq!(
        (cold.prompt.cached_tokens, warm.prompt.cached_tokens),
        (0, 99)
    );
    assert_eq!(cold.tokens, warm.tokens);
}

#[tokio::test]
async fn a_session_gives_what_its_whole_history_gives_as_one_prompt() {
    let engine = engine(EngineConfig::default());
    let (first, second) = (prompt(50, 1), prompt(30, 2));
    let mut history = first.clone();
    let turn = run(&engine, greedy(&first, 15)).await;
    history.extend(turn.ids());
    let turn = run(&engine, after(&history, sampled(&second, 15, 3))).await;
    history.extend(&second);
    assert_eq!(turn.prompt.prompt_tokens, history.len());
    assert_eq!(turn.prompt.cached_tokens, 64);

    let fresh = crate::model::engine(EngineConfig::default());
    let cold = run(&fresh, sampled(&history, 15, 3)).await;
    assert_eq!(cold.prompt.cached_tokens, 0);
    assert_eq!(cold.tokens, turn.tokens);
}

#[tokio::test]
async fn requests_that_are_preempted_for_want_of_blocks_give_the_same_tokens() {
    let requests = || {
        (0..6)
            .map(|i| sampled(&prompt(60, i), 60, 1 + u64::from(i)))
            .collect()
    };
    let roomy = run_all(&engine(EngineConfig::default()), requests()).await;
    let block = gpt2_in(WeightDtype::F32).kv_block_bytes(KvDtype::F32) as u64;
    let tight = engine(EngineConfig {
        // Blocks for three of the six at their full length.
        kv_memory: bytesize::ByteSize::b(block * 24),
        ..EngineConfig::default()
    });
    for (roomy, tight) in roomy.iter().zip(run_all(&tight, requests()).await) {
        assert_eq!(roomy.tokens, tight.tokens);
    }
}

/// Drafted tokens are sampled from their own logits: with and without speculation the outcome is the same,
/// bit for bit, greedy and sampled.
#[tokio::test]
async fn guessed_tokens_change_nothing_but_the_number_of_steps() {
    let (first, second) = (prompt(12, 1), prompt(7, 2));
    let repeating = [&first[..], &second, &first, &second, &first].concat();
    let requests = || -> Vec<RequestDraft> {
        let greedy = RequestDraft {
            ignore_end_of_text: true,
            ..greedy(&repeating, 120)
        };
        // A bias towards a few tokens, so that the text repeats itself.
        let few = (0..6).map(|id| (300 + id, 100.0)).collect();
        let sampled = RequestDraft {
            logit_bias: few,
            ..sampled(&repeating, 120, 3)
        };
        vec![greedy, sampled]
    };
    let without = engine(EngineConfig {
        speculative_rows: 0,
        ..EngineConfig::default()
    });
    let with = engine(EngineConfig::default());
    for draft in requests() {
        let expected = run(&without, draft.clone()).await;
        let found = run(&with, draft).await;
        assert_eq!(expected.tokens, found.tokens);
    }
    let together = run_all(&with, requests()).await;
    for (draft, found) in requests().into_iter().zip(together) {
        assert_eq!(run(&without, draft).await.tokens, found.tokens);
    }
    assert_eq!(without.status().drafted, 0);
    let (with, without) = (with.status(), without.status());
    assert!(with.accepted > 50, "{with:?}");
    assert!(with.steps < without.steps, "{with:?} {without:?}");
}
