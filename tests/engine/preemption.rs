//! Requests that are preempted and computed again give the same result.

use skald::engine::{EngineConfig, EngineHandle};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::{Overflow, RequestDraft, SamplingOverrides, Tenant};

use crate::model::{engine, gpt2_in, prompt, run, run_together, sampled};
use crate::pace::{Gate, PATIENCE};

/// Starts an engine with this many blocks; it is held.
fn tight(blocks: u64) -> (EngineHandle, Gate) {
    let block = gpt2_in(WeightDtype::F32).kv_block_bytes(KvDtype::F32) as u64;
    let gate = Gate::after(0);
    let engine = engine(EngineConfig {
        kv_memory: bytesize::ByteSize::b(block * blocks),
        max_step_tokens: 100,
        // The choice of the preempted request must not depend on the speed of the machine.
        step_time: PATIENCE,
        step_hook: Some(gate.hook()),
        ..EngineConfig::default()
    });
    (engine, gate)
}

/// Returns a request with penalties, so that sampling depends on all tokens so far.
fn penalized(prompt: &[u32], max_tokens: usize, seed: u64) -> RequestDraft {
    RequestDraft {
        sampling: SamplingOverrides {
            temperature: Some(1.0),
            repetition_penalty: Some(1.3),
            top_p: Some(0.95),
            min_p: Some(0.01),
            ..SamplingOverrides::default()
        },
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        ..sampled(prompt, max_tokens, seed)
    }
}

/// Asserts that concurrent requests in little memory give the same as one after the other in much.
async fn assert_the_same(
    requests: impl Fn() -> Vec<RequestDraft>,
    (tight, gate): (EngineHandle, Gate),
) {
    let roomy = engine(EngineConfig::default());
    let mut alone = Vec::new();
    for draft in requests() {
        alone.push(run(&roomy, draft).await);
    }
    assert_eq!(roomy.status().preemptions, 0);
    let together = run_together(&tight, &gate, requests()).await;
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.tokens, together.tokens);
    }
    let preemptions = tight.status().preemptions;
    assert!(preemptions > 0, "no one was preempted");
}

#[tokio::test]
async fn sampling_with_penalties_is_the_same_after_a_preemption() {
    let requests = || {
        let draft = |i: u32| penalized(&prompt(20 + 7 * i as usize, i), 100, u64::from(i));
        (0..8).map(draft).collect()
    };
    assert_the_same(requests, tight(24)).await;
}

/// Long histories of several tenants, as sessions have them, with common prefixes that end in the middle of
/// blocks.
#[tokio::test]
async fn long_histories_that_share_beginnings_are_the_same_after_a_preemption() {
    let requests = || {
        let history = prompt(430, 1);
        let draft = |i: u32| {
            let common = &history[..430 - 37 * i as usize];
            let ids = [common, &prompt(11, 50 + i)].concat();
            let tenants = [Tenant::ANONYMOUS, Tenant::of_key(b"a")];
            RequestDraft {
                tenant: tenants[i as usize % 2],
                ..penalized(&ids, 120, u64::from(i))
            }
        };
        (0..8).map(draft).collect()
    };
    assert_the_same(requests, tight(75)).await;
}

/// Beyond the window, where the context starts over.
#[tokio::test]
async fn a_context_that_slides_is_the_same_after_a_preemption() {
    let requests = || {
        let draft = |i: u32| RequestDraft {
            overflow: Overflow::Slide,
            ..penalized(&prompt(980 - 4 * i as usize, i), 90, u64::from(i))
        };
        (0..4).map(draft).collect()
    };
    assert_the_same(requests, tight(126)).await;
}
