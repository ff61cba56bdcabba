//! Embeddings run in the same steps as other requests, and depend on their input alone, bit for bit.

use std::sync::{Arc, Mutex};

use skald::engine::{EngineConfig, EngineHandle, GenerateError};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::{Output, RequestDraft, RequestId, Tenant};

use crate::model::{
    admit, embedding, engine, finish, gpt2_in, greedy, limits, prompt, run, run_all, run_together,
    sampled,
};
use crate::pace::{Gate, until};

/// Returns the bits of an embedding: equality of floats would treat 0 and -0 as the same.
async fn embed(engine: &EngineHandle, input: &[u32]) -> Vec<u32> {
    let outcome = run(engine, embedding(input)).await;
    bits(outcome.prompt.embedding)
}

fn bits(embedding: Option<Vec<f32>>) -> Vec<u32> {
    let embedding = embedding.expect("asked for");
    embedding.into_iter().map(f32::to_bits).collect()
}

/// Returns inputs from one token to a whole window.
fn inputs() -> Vec<Vec<u32>> {
    [1, 2, 15, 16, 17, 100, 333, 1024]
        .into_iter()
        .zip(1..)
        .map(|(n, salt)| prompt(n, salt))
        .collect()
}

#[tokio::test]
async fn neither_chunks_nor_those_beside_it_change_a_bit_of_an_embedding() {
    for (dtype, kv_dtype) in [
        (WeightDtype::F32, KvDtype::F32),
        (WeightDtype::Bf16, KvDtype::Bf16),
        (WeightDtype::Q8, KvDtype::Bf16),
    ] {
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
        for input in inputs() {
            alone.push(embed(&engine, &input).await);
        }
        for max_step_tokens in [17, 100] {
            let others = (0..8).map(|i| sampled(&prompt(40, 50 + i), 30, u64::from(i) + 1));
            let drafts = inputs().iter().map(|input| embedding(input)).collect();
            let engine = start(max_step_tokens);
            let (together, others) =
                tokio::join!(run_all(&engine, drafts), run_all(&engine, others.collect()));
            for (alone, together) in alone.iter().zip(together) {
                assert_eq!(
                    *alone,
                    bits(together.prompt.embedding),
                    "{dtype:?} {max_step_tokens}"
                );
            }
            assert!(others.iter().all(|other| other.tokens.len() == 30));
        }
    }
}

/// Steps in order, each with the requests in it.
type Steps = Arc<Mutex<Vec<Vec<String>>>>;

/// Returns the configuration of an engine with steps of `max_step_tokens`, and a record of its steps.
fn recording(max_step_tokens: usize) -> (Steps, EngineConfig) {
    let steps = Steps::default();
    let seen = Arc::clone(&steps);
    let config = EngineConfig {
        max_step_tokens,
        step_hook: Some(Arc::new(move |ids: &[RequestId]| {
            let ids = ids.iter().map(ToString::to_string).collect();
            seen.lock().expect("not poisoned").push(ids);
        })),
        ..EngineConfig::default()
    };
    (steps, config)
}

fn has(step: &[String], name: &str) -> bool {
    step.iter().any(|id| id == name)
}

fn named(name: &str, draft: RequestDraft) -> RequestDraft {
    RequestDraft {
        id: RequestId::new(name),
        ..draft
    }
}

#[tokio::test]
async fn an_embedding_that_is_preempted_counts_every_position_once() {
    let block = gpt2_in(WeightDtype::F32).kv_block_bytes(KvDtype::F32) as u64;
    let (steps, config) = recording(16);
    let tight = engine(EngineConfig {
        kv_memory: bytesize::ByteSize::b(block * 24),
        ..config
    });
    let input = prompt(250, 1);
    // Four older streams grow into the 16 blocks that the embedding needs.
    let streams = (0..4).map(|i| sampled(&prompt(20, 90 + i), 60, 1 + u64::from(i)));
    let drafts = streams.chain([named("embedding", embedding(&input))]);
    let outcomes = run_all(&tight, drafts.collect()).await;
    let steps = steps.lock().expect("not poisoned").clone();
    let chunks = steps.iter().filter(|step| has(step, "embedding")).count();
    assert!(chunks > 16, "it was not preempted: {chunks} chunks");
    let roomy = engine(EngineConfig::default());
    let found = bits(outcomes[4].prompt.embedding.clone());
    assert_eq!(found, embed(&roomy, &input).await);
}

#[tokio::test]
async fn a_cached_prefix_serves_others_but_not_an_embedding() {
    let engine = engine(EngineConfig::default());
    let input = prompt(100, 1);
    let first = run(&engine, embedding(&input)).await;
    let again = run(&engine, embedding(&input)).await;
    assert_eq!(first.prompt, again.prompt);
    assert_eq!(again.prompt.cached_tokens, 0);
    let warm = run(&engine, greedy(&input, 5)).await;
    assert_eq!(warm.prompt.cached_tokens, 99);
    let fresh = crate::model::engine(EngineConfig::default());
    assert_eq!(run(&fresh, greedy(&input, 5)).await.tokens, warm.tokens);
}

#[test]
fn an_embedding_is_asked_for_within_the_window_and_draws_nothing() {
    let request = admit(embedding(&prompt(1024, 1)));
    assert_eq!(request.output, Output::Embedding);
    let mut wants_tokens = embedding(&prompt(10, 1));
    wants_tokens.sampling.max_new_tokens = Some(5);
    assert_eq!(admit(wants_tokens).stop.max_tokens, 0);
    let refused = limits()
        .admit(embedding(&prompt(1025, 1)))
        .expect_err("too long");
    assert!(refused.context_length_exceeded);
    let element = refused.of_element(7);
    assert_eq!(element.field, "input[7]");
    assert_eq!(
        element.message,
        "`input[7]` has 1025 tokens; the model's maximum context length is 1024 tokens"
    );
    let empty = limits()
        .admit(embedding(&[]))
        .expect_err("nothing to embed");
    assert_eq!(empty.message, "`input` must not be empty");
}

#[tokio::test]
async fn long_inputs_keep_no_stream_from_its_token_in_every_step() {
    let (steps, config) = recording(64);
    let gate = Gate::after(0);
    let (pass, record) = (gate.hook(), config.step_hook.expect("it records"));
    let engine = engine(EngineConfig {
        step_hook: Some(Arc::new(move |ids: &[RequestId]| {
            pass(ids);
            record(ids);
        })),
        ..config
    });
    let stream = named("stream", sampled(&prompt(5, 1), 200, 1));
    let long = (0..4).map(|salt| named("long", embedding(&prompt(1000, 10 + salt))));
    let stream = engine.submit(admit(stream)).await.expect("accepted");
    let long = run_together(&engine, &gate, long.collect());
    let (stream, _) = tokio::join!(finish(stream), long);
    assert_eq!(stream.expect("it does not fail").tokens.len(), 200);
    let steps = steps.lock().expect("not poisoned");
    let last = steps.iter().rposition(|step| has(step, "stream"));
    let beside: Vec<_> = steps[..=last.expect("it ran")]
        .iter()
        .filter(|step| has(step, "long"))
        .collect();
    // 4000 tokens, in chunks of the rest of 64.
    assert!(beside.len() > 60, "{}", beside.len());
    assert!(beside.iter().all(|step| has(step, "stream")));
}

#[tokio::test]
async fn a_bulk_waits_for_its_places_and_leaves_half_the_queue() {
    let engine = engine(EngineConfig {
        max_batch: 1,
        queue_limit: 4,
        ..EngineConfig::default()
    });
    let mut endless = engine
        .submit(admit(sampled(&prompt(10, 1), 1000, 1)))
        .await
        .expect("accepted");
    endless.next().await;
    let bulk = engine.bulk(Tenant::ANONYMOUS).expect("a place");
    let waiting = &bulk;
    let inputs: Vec<_> = (0..20).map(|salt| prompt(3, salt)).collect();
    let all = inputs.iter().map(|input| async move {
        let generation = waiting.submit(admit(embedding(input))).await?;
        finish(generation).await
    });
    let all = futures_util::future::join_all(all);
    let beside = async {
        until("waiting", async || engine.status().waiting == 2).await;
        let others = [
            engine.submit(admit(greedy(&prompt(10, 2), 1))).await,
            engine.submit(admit(greedy(&prompt(10, 3), 1))).await,
        ];
        assert!(others.iter().all(Result::is_ok), "two places are left");
        let refused = engine.submit(admit(greedy(&prompt(10, 4), 1))).await.err();
        assert!(matches!(
            refused,
            Some(GenerateError::QueueFull { limit: 4, .. })
        ));
        drop((endless, others));
    };
    let (outcomes, ()) = tokio::join!(all, beside);
    for (input, outcome) in inputs.iter().zip(outcomes) {
        let outcome = outcome.expect("none is refused");
        assert_eq!(bits(outcome.prompt.embedding), embed(&engine, input).await);
    }
    // As many bulk requests as the queue has places.
    let bulks: Vec<_> = (0..3)
        .map(|_| engine.bulk(Tenant::ANONYMOUS).expect("a place"))
        .collect();
    let refused = engine.bulk(Tenant::ANONYMOUS).err();
    assert!(matches!(
        refused,
        Some(GenerateError::QueueFull { limit: 4, .. })
    ));
    drop((bulk, bulks));
    assert!(engine.bulk(Tenant::ANONYMOUS).is_ok());
}
