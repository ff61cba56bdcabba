//! Requests at and beyond the model's window.

use skald::engine::sequence::context_start;
use skald::engine::{EngineConfig, FinishReason, GenerateError};
use skald::kernels::kv::KvDtype;
use skald::request::{Overflow, RequestDraft};

use crate::model::{admit, after, engine, greedy, limits, prompt, run, sampled};

fn with(overflow: Overflow, draft: RequestDraft) -> RequestDraft {
    RequestDraft { overflow, ..draft }
}

#[tokio::test]
async fn generation_stops_where_the_window_ends() {
    let engine = engine(EngineConfig::default());
    let outcome = run(&engine, sampled(&prompt(1000, 1), 100, 1)).await;
    assert_eq!(
        (outcome.tokens.len(), outcome.finish),
        (24, FinishReason::Length)
    );
}

#[test]
fn what_cannot_fit_is_refused_up_front_if_asked() {
    let asking = |max_tokens| {
        let mut draft = with(Overflow::Error, greedy(&prompt(1000, 1), 10));
        draft.sampling.max_new_tokens = Some(max_tokens);
        limits().admit(draft)
    };
    assert!(asking(25).expect_err("too long").context_length_exceeded);
    assert_eq!(asking(24).expect("it fits").stop.max_tokens, 24);
    let too_long = limits().admit(greedy(&prompt(1025, 1), 1));
    assert!(too_long.expect_err("too long").context_length_exceeded);
}

#[tokio::test]
async fn a_session_that_outgrows_the_window_is_an_error_with_the_numbers() {
    let history = prompt(600, 1);
    let refused = limits().admit(after(&history, greedy(&prompt(500, 2), 5)));
    let refused = refused.expect_err("too long");
    assert!(refused.context_length_exceeded);
    assert_eq!(refused.field, "session_id");
    for number in ["1024", "600", "500", " 5 "] {
        assert!(refused.message.contains(number), "{}", refused.message);
    }
    let slides = with(Overflow::Slide, after(&history, greedy(&prompt(500, 2), 5)));
    let engine = engine(EngineConfig::default());
    assert_eq!(run(&engine, slides).await.tokens.len(), 5);
}

/// Every token of a sliding stream is the one that the model gives for the defined context, computed from
/// scratch.
#[tokio::test]
async fn sliding_generation_equals_the_model_on_the_defined_context() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(1010, 3);
    let mut draft = with(Overflow::Slide, sampled(&ids, 530, 9));
    draft.sampling.temperature = Some(0.0);
    let stream = run(&engine, draft).await.ids();
    assert_eq!(stream.len(), 530);
    let history = [ids, stream.clone()].concat();
    for n in [1010, 1023, 1024, 1025, 1026, 1200, 1535, 1536, 1537, 1539] {
        let context = &history[context_start(n, 1024)..n];
        let fresh = crate::model::engine(EngineConfig::default());
        let mut draft = with(Overflow::Slide, greedy(context, 1));
        draft.ignore_end_of_text = true;
        assert_eq!(run(&fresh, draft).await.ids(), history[n..=n], "token {n}");
    }
}

#[tokio::test]
async fn a_request_the_cache_can_never_hold_is_refused_at_once() {
    let block = crate::model::gpt2().kv_block_bytes(KvDtype::F32) as u64;
    let engine = engine(EngineConfig {
        kv_memory: bytesize::ByteSize::b(block * 4),
        ..EngineConfig::default()
    });
    let refused = engine.submit(admit(greedy(&prompt(50, 1), 30))).await;
    let expected = GenerateError::KvTooSmall {
        unit: "KV blocks",
        needed: 5,
        available: 4,
        block_size: 16,
    };
    assert_eq!(refused.err(), Some(expected));
    assert_eq!(
        run(&engine, greedy(&prompt(50, 1), 14)).await.tokens.len(),
        14
    );
}
