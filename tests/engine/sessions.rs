//! Sessions: what is kept, what is forgotten, and who waits.

use skald::engine::{EngineConfig, EngineHandle, GenerateError, KeptOutput, TokenEvent};
use skald::kernels::kv::KvDtype;
use skald::request::SessionId;

use crate::model::{admit, engine, finish, greedy, on_session, prompt, run};

async fn history(engine: &EngineHandle, name: &str) -> Option<Vec<u32>> {
    let id = SessionId::parse(name).expect("a session id");
    let info = engine.session(id).await.expect("the worker answers");
    info.map(|info| info.tokens)
}

#[tokio::test]
async fn a_session_keeps_prompt_and_output() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(20, 1);
    let turn = run(&engine, on_session("a", greedy(&ids, 10))).await;
    assert_eq!(
        history(&engine, "a").await,
        Some([ids, turn.ids()].concat())
    );
    assert_eq!(history(&engine, "b").await, None);
}

#[tokio::test]
async fn a_session_keeps_what_was_delivered_and_not_what_was_generated() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(20, 1);
    let all = run(&engine, greedy(&ids, 10)).await.ids();
    let request = admit(on_session("a", greedy(&ids, 10)));
    let mut generation = engine.submit(request).await.expect("accepted");
    for _ in 0..5 {
        generation.next().await;
    }
    let tail = vec![7, 8];
    generation.close(KeptOutput { tokens: 3, tail }).await;
    let expected = [&ids[..], &all[..3], &[7, 8]].concat();
    assert_eq!(history(&engine, "a").await, Some(expected));
}

#[tokio::test]
async fn a_client_that_leaves_keeps_the_tokens_it_received() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(20, 1);
    let request = admit(on_session("a", greedy(&ids, 1000)));
    let mut generation = engine.submit(request).await.expect("accepted");
    let mut received = Vec::new();
    while received.len() < 4 {
        if let Some(TokenEvent::Token(token)) = generation.next().await {
            received.push(token.token.id);
        }
    }
    drop(generation);
    let kept = history(&engine, "a").await;
    assert_eq!(kept, Some([ids, received].concat()));
    assert_eq!(engine.status().running, 0);
}

#[tokio::test]
async fn a_turn_that_gave_nothing_leaves_no_trace() {
    let engine = engine(EngineConfig::default());
    let request = admit(on_session("a", greedy(&prompt(500, 1), 10)));
    drop(engine.submit(request).await.expect("accepted"));
    assert_eq!(history(&engine, "a").await, None);
}

#[tokio::test]
async fn requests_on_one_session_take_turns_in_order() {
    let engine = engine(EngineConfig::default());
    let parts: Vec<Vec<u32>> = (0..4).map(|i| prompt(10, i)).collect();
    let turns = parts
        .iter()
        .map(|ids| run(&engine, on_session("a", greedy(ids, 5))));
    let turns = futures_util::future::join_all(turns).await;
    let expected: Vec<u32> = parts
        .iter()
        .zip(&turns)
        .flat_map(|(ids, turn)| [ids.clone(), turn.ids()].concat())
        .collect();
    assert_eq!(history(&engine, "a").await, Some(expected));
}

#[tokio::test]
async fn the_least_recently_used_session_is_forgotten_first() {
    let engine = engine(EngineConfig {
        max_sessions: 2,
        ..EngineConfig::default()
    });
    for name in ["a", "b", "a", "c"] {
        run(&engine, on_session(name, greedy(&prompt(5, 1), 2))).await;
    }
    let names = engine.sessions().await.expect("the worker answers");
    let names: Vec<&str> = names.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(names, ["c", "a"]);
}

#[tokio::test]
async fn a_deleted_session_starts_anew_and_a_running_turn_does_not_bring_it_back() {
    let engine = engine(EngineConfig::default());
    let id = SessionId::parse("a").expect("a session id");
    let request = admit(on_session("a", greedy(&prompt(20, 1), 50)));
    let generation = engine.submit(request).await.expect("accepted");
    assert_eq!(engine.delete_session(id.clone()).await, Ok(true));
    finish(generation).await.expect("the turn itself goes on");
    assert_eq!(history(&engine, "a").await, None);
    assert_eq!(engine.delete_session(id).await, Ok(false));
}

#[tokio::test]
async fn an_evicted_cache_changes_nothing_but_the_time() {
    let block = crate::model::gpt2().kv_block_bytes(KvDtype::F32) as u64;
    let engine = engine(EngineConfig {
        kv_memory: bytesize::ByteSize::b(block * 20),
        ..EngineConfig::default()
    });
    let (first, second) = (prompt(60, 1), prompt(20, 2));
    let kept = run(&engine, on_session("a", greedy(&first, 10))).await;
    // Fills the whole cache with something else.
    run(&engine, greedy(&prompt(300, 9), 10)).await;
    let turn = run(&engine, on_session("a", greedy(&second, 10))).await;
    assert_eq!(turn.prompt.cached_tokens, 0);
    let whole = [first, kept.ids(), second].concat();
    let cold = run(
        &crate::model::engine(EngineConfig::default()),
        greedy(&whole, 10),
    )
    .await;
    assert_eq!(turn.tokens, cold.tokens);
}

#[tokio::test]
async fn a_session_with_nothing_to_continue_is_refused() {
    let engine = engine(EngineConfig::default());
    let refused = engine.submit(admit(on_session("a", greedy(&[], 5)))).await;
    assert_eq!(refused.err(), Some(GenerateError::NothingToContinue));
    assert_eq!(history(&engine, "a").await, None);
}
