//! What goes wrong for one request must not cost another anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skald::engine::{EngineConfig, GenerateError, TokenEvent};
use skald::request::{RequestDraft, RequestId};

use crate::model::{admit, engine, finish, greedy, idle, prompt, run, run_all, sampled};

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
    assert!(bad.is_err());
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
    assert_eq!(refused, Some(GenerateError::QueueFull { limit: 2 }));
    drop((running, waiting));
    idle(&engine).await;
    assert_eq!(
        run(&engine, greedy(&prompt(10, 1), 3)).await.tokens.len(),
        3
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_no_one_and_loses_nothing() {
    let engine = engine(EngineConfig::default());
    let slow = sampled(&prompt(10, 1), 700, 1);
    let expected = run(&engine, slow.clone()).await;
    let stalled = engine.submit(admit(slow)).await.expect("accepted");
    let others = (0..4).map(|i| sampled(&prompt(20, i), 300, 1)).collect();
    assert!(
        run_all(&engine, others)
            .await
            .iter()
            .all(|o| o.tokens.len() == 300)
    );
    let outcome = finish(stalled).await.expect("it goes on when read");
    assert_eq!(outcome.tokens, expected.tokens);
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
