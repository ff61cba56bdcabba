//! A failure of one request must not affect another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skald::engine::{EngineConfig, GenerateError, TokenEvent};
use skald::request::{RequestDraft, RequestId};

use crate::model::{admit, engine, finish, greedy, idle, prompt, run, run_all, sampled};
use crate::pace::until;

#[tokio::test]
async fn a_panic_in_a_step_fails_its_requests_and_the_worker_goes_on() {
    let panics = Arc::new(AtomicBool::new(false));
    let hook = Arc::clone(&panics);
    let engine = engine(EngineConfig {
        step_hook: Some(Arc::new(move |_: &[RequestId]| {
            assert!(!hook.swap(false, Ordering::SeqCst), "injected");
        })),
        ..EngineConfig::default()
    });
    let expected = run(&engine, greedy(&prompt(40, 1), 8)).await;
    panics.store(true, Ordering::SeqCst);
    let generation = engine
        .submit(admit(greedy(&prompt(40, 1), 8)))
        .await
        .expect("accepted");
    let failed = finish(generation).await.expect_err("the step panicked");
    assert_eq!(failed, GenerateError::StepFailed("injected".to_owned()));
    let again = run(&engine, greedy(&prompt(40, 1), 8)).await;
    assert_eq!(again.tokens, expected.tokens);
    idle(&engine).await;
    assert!(engine.status().alive);
}

#[tokio::test]
async fn a_request_with_nothing_to_draw_fails_alone() {
    let engine = engine(EngineConfig::default());
    let bad = RequestDraft {
        logit_bias: vec![(5, f32::NAN)],
        ..sampled(&prompt(30, 1), 5, 1)
    };
    let good = sampled(&prompt(30, 2), 40, 2);
    let expected = run(&engine, good.clone()).await;
    let bad = engine.submit(admit(bad)).await.expect("accepted");
    let (bad, good) = tokio::join!(finish(bad), run(&engine, good));
    assert_eq!(bad.err(), Some(GenerateError::NotFinite));
    assert_eq!(good.tokens, expected.tokens);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_recovers() {
    let engine = engine(EngineConfig {
        max_batch: 1,
        queue_limit: 2,
        ..EngineConfig::default()
    });
    let long = || admit(sampled(&prompt(10, 1), 900, 1));
    let mut running = engine.submit(long()).await.expect("accepted");
    running.next().await;
    let waiting = [engine.submit(long()).await, engine.submit(long()).await];
    assert!(waiting.iter().all(Result::is_ok));
    let refused = engine.submit(long()).await.err();
    assert!(matches!(
        refused,
        Some(GenerateError::QueueFull { limit: 2, .. })
    ));
    drop((running, waiting));
    idle(&engine).await;
    assert_eq!(
        run(&engine, greedy(&prompt(10, 1), 3)).await.tokens.len(),
        3
    );
}

#[tokio::test]
async fn clients_that_do_not_read_delay_no_others_and_lose_nothing() {
    let engine = engine(EngineConfig {
        max_batch: 2,
        ..EngineConfig::default()
    });
    let slow = |i| sampled(&prompt(10, i), 700, 1);
    let mut expected = Vec::new();
    let mut stalled = Vec::new();
    for i in 0..3 {
        expected.push(run(&engine, slow(i)).await);
    }
    for i in 0..3 {
        stalled.push(engine.submit(admit(slow(i))).await.expect("accepted"));
    }
    let set_aside = async || {
        let status = engine.status();
        (status.stalled, status.running, status.kv_blocks_used) == (3, 0, 0)
    };
    until("set aside", set_aside).await;
    let others = (0..4).map(|i| sampled(&prompt(20, i), 200, 1)).collect();
    for other in run_all(&engine, others).await {
        assert_eq!(other.tokens.len(), 200);
    }
    until("set aside", set_aside).await;
    // The worker is idle: the clients that read again have to wake it.
    for (stalled, expected) in stalled.into_iter().zip(expected) {
        let outcome = finish(stalled).await.expect("it goes on when read");
        assert_eq!(outcome.tokens, expected.tokens);
    }
    idle(&engine).await;
}

#[tokio::test]
async fn no_more_requests_are_set_aside_than_may_wait() {
    let engine = engine(EngineConfig {
        queue_limit: 2,
        ..EngineConfig::default()
    });
    let slow = || admit(sampled(&prompt(10, 1), 700, 1));
    let mut stalled = Vec::new();
    for count in 1..=3 {
        let before = engine.status().steps;
        stalled.push(engine.submit(slow()).await.expect("accepted"));
        let aside = count.min(2);
        // It stalls after 256 tokens, of which a step computes at most 8.
        until("set aside", async || {
            let status = engine.status();
            status.steps >= before + 30 && (status.stalled, status.running) == (aside, 0)
        })
        .await;
    }
    let first = finish(stalled.remove(0)).await;
    assert_eq!(first.err(), Some(GenerateError::Stalled { limit: 2 }));
    for other in stalled {
        assert_eq!(finish(other).await.expect("it goes on").tokens.len(), 700);
    }
}

#[tokio::test]
async fn a_dropped_generation_frees_its_slot_and_its_blocks() {
    let engine = engine(EngineConfig::default());
    for _ in 0..20 {
        let request = admit(sampled(&prompt(100, 1), 900, 1));
        let mut generation = engine.submit(request).await.expect("accepted");
        assert!(matches!(
            generation.next().await,
            Some(TokenEvent::Prefilled(_))
        ));
    }
    idle(&engine).await;
}

#[tokio::test]
async fn a_stop_fails_what_still_runs() {
    let engine = engine(EngineConfig::default());
    let request = admit(sampled(&prompt(10, 1), 1000, 1));
    let generation = engine.submit(request).await.expect("accepted");
    engine.stop();
    let failed = finish(generation).await.expect_err("stopped");
    assert_eq!(failed, GenerateError::ShuttingDown);
    let refused = engine.submit(admit(greedy(&prompt(10, 1), 1))).await.err();
    assert_eq!(refused, Some(GenerateError::EngineGone));
}
