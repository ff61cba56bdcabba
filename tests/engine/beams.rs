//! Beam search: what transformers find, whatever runs beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use serde_json::Value;
use skald::engine::{EngineConfig, EngineHandle, FinishReason, GenerateError, TokenEvent};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::{BeamParams, EarlyStopping, RequestDraft, RequestId};

use crate::model::{
    Outcome, admit, engine, finish, gpt2_in, greedy, idle, prompt, run, run_all, run_beams, sampled,
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fairy-tales");

fn cases(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{FIXTURES}/{file}")).expect("references");
    serde_json::from_str(&text).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn count(value: &Value) -> usize {
    value.as_u64().expect("a count") as usize
}

/// A search that returns all its beams.
fn search(prompt: &[u32], width: usize, max_tokens: usize) -> RequestDraft {
    RequestDraft {
        beams: Some(BeamParams {
            width,
            returned: width,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
        }),
        ..greedy(prompt, max_tokens)
    }
}

/// What a beam is ranked by.
fn score(beam: &Outcome, length_penalty: f64) -> f64 {
    let logprobs = beam.tokens.iter().map(|t| f64::from(t.token.logprob));
    logprobs.sum::<f64>() / (beam.tokens.len() as f64).powf(length_penalty)
}

fn assert_are_the_references(case: &Value, found: &[Outcome], length_penalty: f64) {
    let expected = case["beams"].as_array().expect("beams");
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.ids(), ids(&expected["ids"]), "{case}");
        let difference =
            score(found, length_penalty) - expected["score"].as_f64().expect("a score");
        // A score is a sum of log-probabilities, each within 4e-4 of the reference, over a length; the
        // reference has five decimals.
        let length = found.tokens.len() as f64;
        let tolerance = 4e-4 * length / length.powf(length_penalty) + 5e-6;
        assert!(difference.abs() < tolerance, "{difference} in {case}");
    }
}

#[tokio::test]
async fn the_beams_of_the_reference_prompts_are_those_of_transformers() {
    let engine = engine(EngineConfig::default());
    let cases = cases("reference.json");
    let searches = cases
        .iter()
        .map(|case| run_beams(&engine, search(&ids(&case["ids"]), 4, 24)));
    for (case, found) in cases.iter().zip(join_all(searches).await) {
        assert_are_the_references(case, &found, 1.0);
    }
}

/// `beams.py` says how they were made.
#[tokio::test]
async fn beams_that_end_early_are_those_of_transformers_under_every_setting() {
    let engine = engine(EngineConfig::default());
    let cases = cases("beams.json");
    let penalty = |case: &Value| case["length_penalty"].as_f64().expect("a number");
    let searches = cases.iter().map(|case| {
        let ends = ids(&case["ends"]);
        let draft = RequestDraft {
            beams: Some(BeamParams {
                width: count(&case["num_beams"]),
                returned: count(&case["returned"]),
                length_penalty: penalty(case),
                early_stopping: match &case["early_stopping"] {
                    Value::Bool(true) => EarlyStopping::Always,
                    Value::Bool(false) => EarlyStopping::Heuristic,
                    _ => EarlyStopping::Never,
                },
            }),
            min_tokens: count(&case["min_new_tokens"]),
            ignore_end_of_text: !ends.contains(&8191),
            stop_tokens: ends.into_iter().filter(|&id| id != 8191).collect(),
            ..greedy(&ids(&case["ids"]), count(&case["max_new_tokens"]))
        };
        run_beams(&engine, draft)
    });
    let mut ended = 0;
    for (case, found) in cases.iter().zip(join_all(searches).await) {
        assert_are_the_references(case, &found, penalty(case));
        ended += found
            .iter()
            .filter(|beam| beam.finish != FinishReason::Length)
            .count();
    }
    assert!(ended > 80, "only {ended} beams ended with a token");
}

/// Outcomes are compared whole: ids, reasons, and the bits of every log-probability.
#[tokio::test]
async fn a_search_and_the_requests_beside_it_do_not_change_each_other() {
    for (dtype, kv_dtype) in [
        (WeightDtype::F32, KvDtype::F32),
        (WeightDtype::Q8, KvDtype::Bf16),
    ] {
        let config = EngineConfig {
            kv_dtype,
            max_step_tokens: 90,
            ..EngineConfig::default()
        };
        let engine = || skald::engine::start(gpt2_in(dtype), config.clone()).expect("it starts");
        let mut wanted = search(&prompt(45, 1), 5, 40);
        wanted.logprobs.top = 3;
        let others: Vec<_> = (0..6)
            .map(|i| sampled(&prompt(30 + 9 * i as usize, i), 50, 1))
            .collect();
        let second = search(&prompt(45, 1)[..40], 3, 30);

        let alone = run_beams(&engine(), wanted.clone()).await;
        let others_alone = run_all(&engine(), others.clone()).await;
        let second_alone = run_beams(&engine(), second.clone()).await;
        let together = engine();
        let (found, others, second) = tokio::join!(
            run_beams(&together, wanted),
            run_all(&together, others),
            run_beams(&together, second)
        );
        let tokens =
            |beams: &[Outcome]| -> Vec<_> { beams.iter().map(|b| b.tokens.clone()).collect() };
        assert_eq!(tokens(&found), tokens(&alone), "{dtype:?}");
        assert_eq!(tokens(&others), tokens(&others_alone), "{dtype:?}");
        assert_eq!(tokens(&second), tokens(&second_alone), "{dtype:?}");
    }
}

fn tight(blocks: u64) -> EngineHandle {
    let block = gpt2_in(WeightDtype::F32).kv_block_bytes(KvDtype::F32) as u64;
    engine(EngineConfig {
        kv_memory: bytesize::ByteSize::b(block * blocks),
        ..EngineConfig::default()
    })
}

#[tokio::test]
async fn searches_that_are_preempted_for_want_of_blocks_find_the_same() {
    let searches = |i: u32| search(&prompt(40, i), 4, 50);
    let roomy = engine(EngineConfig::default());
    // Each needs 6 + 3 * 4 blocks at its longest.
    let tight = tight(20);
    let (a, b, c, plain) = tokio::join!(
        run_beams(&tight, searches(1)),
        run_beams(&tight, searches(2)),
        run_beams(&tight, searches(3)),
        run(&tight, sampled(&prompt(60, 4), 60, 1)),
    );
    for (i, found) in (1..).zip([a, b, c]) {
        for (found, expected) in found.iter().zip(run_beams(&roomy, searches(i)).await) {
            assert_eq!(found.tokens, expected.tokens);
        }
    }
    let expected = run(&roomy, sampled(&prompt(60, 4), 60, 1)).await;
    assert_eq!(plain.tokens, expected.tokens);
    crate::model::idle(&tight).await;
}

#[tokio::test]
async fn a_search_that_can_never_fit_is_refused_at_once() {
    let refused = tight(17)
        .submit_all(admit(search(&prompt(40, 1), 4, 50)))
        .await;
    let expected = GenerateError::KvTooSmall {
        unit: "KV blocks",
        needed: 18,
        available: 17,
        block_size: 16,
    };
    assert_eq!(refused.err(), Some(expected));
    let narrow = engine(EngineConfig {
        max_batch: 3,
        ..EngineConfig::default()
    });
    let refused = narrow
        .submit_all(admit(search(&prompt(40, 1), 4, 50)))
        .await;
    let expected = GenerateError::BatchTooSmall {
        width: 4,
        max_batch: 3,
    };
    assert_eq!(refused.err(), Some(expected));
    assert_eq!(
        run_beams(&narrow, search(&prompt(40, 1), 3, 50))
            .await
            .len(),
        3
    );
}

#[tokio::test]
async fn a_search_of_width_one_without_an_end_is_the_greedy_text() {
    let engine = engine(EngineConfig::default());
    let plain = RequestDraft {
        ignore_end_of_text: true,
        ..greedy(&prompt(21, 5), 70)
    };
    let beam = RequestDraft {
        ignore_end_of_text: true,
        ..search(&prompt(21, 5), 1, 70)
    };
    let expected = run(&engine, plain).await;
    assert_eq!(run_beams(&engine, beam).await[0].tokens, expected.tokens);
}

#[tokio::test]
async fn logprobs_of_beams_are_those_of_the_same_text_as_a_prompt() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(33, 2);
    let mut draft = search(&ids, 4, 20);
    draft.logprobs.top = 3;
    (draft.logprobs.prompt, draft.logprobs.prompt_top) = (true, 3);
    let beams = run_beams(&engine, draft).await;
    for beam in &beams {
        let mut read = greedy(&[&ids[..], &beam.ids()].concat(), 0);
        (read.logprobs.prompt, read.logprobs.prompt_top) = (true, 3);
        let read = run(&engine, read).await.prompt.logprobs;
        assert_eq!(beam.prompt.logprobs, read[..ids.len()]);
        for (found, expected) in beam.tokens.iter().zip(&read[ids.len()..]) {
            let expected = expected.as_ref().expect("it has a context");
            assert_eq!((&found.token, &found.top), (&expected.token, &expected.top));
        }
    }
}

#[tokio::test]
async fn beams_share_their_prompt_and_what_is_left_of_them_serves_the_next() {
    let engine = engine(EngineConfig::default());
    let first = run_beams(&engine, search(&prompt(100, 1), 4, 20)).await;
    let again = run_beams(&engine, search(&prompt(100, 1), 4, 20)).await;
    assert_eq!(first[0].prompt.cached_tokens, 0);
    assert!(again.iter().all(|beam| beam.prompt.cached_tokens == 99));
    let tokens = |beams: &[Outcome]| -> Vec<_> { beams.iter().map(|b| b.tokens.clone()).collect() };
    assert_eq!(tokens(&first), tokens(&again));
}

#[tokio::test]
async fn a_search_whose_clients_left_frees_everything_and_one_that_stays_is_served() {
    let engine = engine(EngineConfig::default());
    let long = || search(&prompt(100, 1), 4, 900);
    let mut beams = engine.submit_all(admit(long())).await.expect("accepted");
    for beam in &mut beams {
        assert!(matches!(beam.next().await, Some(TokenEvent::Prefilled(_))));
    }
    drop(beams);
    idle(&engine).await;

    let short = || search(&prompt(100, 2), 4, 30);
    let expected = run_beams(&engine, short()).await;
    let beams = engine.submit_all(admit(short())).await.expect("accepted");
    let third = beams.into_iter().nth(2).expect("a third");
    assert_eq!(
        finish(third).await.expect("it ends").tokens,
        expected[2].tokens
    );
    let best = engine.submit(admit(short())).await.expect("accepted");
    assert_eq!(
        finish(best).await.expect("it ends").tokens,
        expected[0].tokens
    );
    idle(&engine).await;
}

#[tokio::test]
async fn a_step_that_fails_fails_a_search_once_and_the_next_one_is_well() {
    // Steps until one panics; none does at 0.
    let fuse = Arc::new(AtomicUsize::new(0));
    let hook = Arc::clone(&fuse);
    let engine = engine(EngineConfig {
        step_hook: Some(Arc::new(move |_: &[RequestId]| {
            let left = hook.load(Ordering::SeqCst);
            hook.store(left.saturating_sub(1), Ordering::SeqCst);
            assert!(left != 1, "injected");
        })),
        ..EngineConfig::default()
    });
    let expected = run_beams(&engine, search(&prompt(20, 1), 3, 200)).await;
    fuse.store(5, Ordering::SeqCst);
    let beams = engine
        .submit_all(admit(search(&prompt(20, 1), 3, 200)))
        .await
        .expect("accepted");
    for beam in beams {
        let failed = finish(beam).await.expect_err("the step panicked");
        assert_eq!(failed, GenerateError::StepFailed("injected".to_owned()));
    }
    idle(&engine).await;
    let again = run_beams(&engine, search(&prompt(20, 1), 3, 200)).await;
    for (again, expected) in again.iter().zip(expected) {
        assert_eq!(again.tokens, expected.tokens);
    }
}
