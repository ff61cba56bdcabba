//! No token is computed twice: cached prefixes are found to the token, whichever request computed them, are
//! imported again after an eviction, and are not shared between tenants.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use skald::engine::{
    EngineConfig, EngineHandle, EvictedBlock, GenerateError, PrefixId, StoredBlock, TokenEvent,
};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::{RequestDraft, RequestId, Tenant};

use crate::model::{Outcome, admit, gpt2_in, greedy, prompt, run, run_all, run_together, sampled};
use crate::pace::{Gate, until};

const BLOCK_SIZE: usize = skald::kernels::kv::BLOCK_SIZE;

const DTYPES: [(WeightDtype, KvDtype); 3] = [
    (WeightDtype::F32, KvDtype::F32),
    (WeightDtype::F32, KvDtype::Bf16),
    (WeightDtype::Q8, KvDtype::Bf16),
];

fn engine_in((dtype, kv_dtype): (WeightDtype, KvDtype), config: EngineConfig) -> EngineHandle {
    let config = EngineConfig { kv_dtype, ..config };
    skald::engine::start(gpt2_in(dtype), config).expect("the engine starts")
}

fn engine(config: EngineConfig) -> EngineHandle {
    engine_in(DTYPES[0], config)
}

/// A block of a model without window slots.
fn whole(bytes: Vec<u8>) -> StoredBlock {
    StoredBlock {
        global: Some(bytes),
        window: None,
    }
}

fn blocks(n: usize) -> bytesize::ByteSize {
    let block = gpt2_in(WeightDtype::F32).kv_block_bytes(KvDtype::F32);
    bytesize::ByteSize::b((n * block) as u64)
}

/// Returns the outcome of a request on an engine with an empty cache.
async fn cold(dtypes: (WeightDtype, KvDtype), draft: RequestDraft) -> Outcome {
    let outcome = run(&engine_in(dtypes, EngineConfig::default()), draft).await;
    assert_eq!(outcome.prompt.cached_tokens, 0);
    outcome
}

fn ways(prompt: &[u32]) -> [RequestDraft; 2] {
    [greedy(prompt, 20), sampled(prompt, 20, 7)]
}

/// A prompt that diverges from a finished request's text after `common` tokens, at any position.
#[tokio::test]
async fn what_goes_on_in_the_middle_of_a_block_of_a_finished_request_computes_only_its_new_tokens()
{
    for dtypes in DTYPES {
        let engine = engine_in(dtypes, EngineConfig::default());
        let ids = prompt(100, 1);
        let text = [&ids[..], &run(&engine, sampled(&ids, 30, 3)).await.ids()].concat();
        // The last sampled token was never computed.
        let computed = text.len() - 1;
        for (salt, common) in (2..).zip([5, 17, 90, 107, computed]) {
            let ids = [&text[..common], &prompt(10, salt)].concat();
            for (n, draft) in ways(&ids).into_iter().enumerate() {
                let warm = run(&engine, draft.clone()).await;
                // The second round finds the tokens of the first one too.
                let expected = if n == 0 { common } else { ids.len() - 1 };
                assert_eq!(warm.prompt.cached_tokens, expected, "{dtypes:?}");
                assert_eq!(warm.tokens, cold(dtypes, draft).await.tokens, "{dtypes:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_goes_on_from_a_running_request_computes_only_its_new_tokens() {
    for dtypes in DTYPES {
        let engine = engine_in(dtypes, EngineConfig::default());
        let ids = prompt(70, 1);
        let first = admit(sampled(&ids, 400, 3));
        let mut first = engine.submit(first).await.expect("accepted");
        let mut text = ids.clone();
        while text.len() < 90 {
            match first.next().await.expect("it goes on") {
                TokenEvent::Token(token) => text.push(token.token.id),
                TokenEvent::Prefilled(_) => (),
                TokenEvent::Failed(error) => panic!("{error}"),
            }
        }
        for (salt, common) in [(2, 68), (3, 75), (4, 89)] {
            let ids = [&text[..common], &prompt(9, salt)].concat();
            let draft = sampled(&ids, 20, 9);
            let warm = run(&engine, draft.clone()).await;
            assert_eq!(warm.prompt.cached_tokens, common, "{dtypes:?}");
            assert_eq!(warm.tokens, cold(dtypes, draft).await.tokens);
        }
        // Its client is not reading, so it may be set aside.
        let status = engine.status();
        assert!(status.running + status.stalled > 0, "it has ended");
        // Requests that copied its blocks did not change them.
        while text.len() < 120 {
            if let Some(TokenEvent::Token(token)) = first.next().await {
                text.push(token.token.id);
            }
        }
        drop(first);
        let alone = cold(dtypes, sampled(&ids, 50, 3)).await;
        assert_eq!(text[70..], alone.ids());
    }
}

/// A conversation of many turns, each a little longer than the previous one: of a turn's prefix, only the
/// last sampled token is computed again.
#[tokio::test]
async fn a_conversation_computes_each_token_once() {
    let engine = engine(EngineConfig::default());
    let mut history = Vec::new();
    for turn in 0..12 {
        let known = history.len();
        history.extend(prompt(3 + turn * 5 % 11, turn as u32));
        let draft = sampled(&history, 7 + turn % 4, turn as u64);
        let outcome = run(&engine, draft.clone()).await;
        assert_eq!(outcome.prompt.cached_tokens, known.saturating_sub(1));
        assert_eq!(outcome.tokens, cold(DTYPES[0], draft).await.tokens);
        history.extend(outcome.ids());
    }
}

#[tokio::test]
async fn a_head_that_many_requests_share_is_computed_once_and_held_once() {
    let gate = Gate::after(0);
    let pass = gate.hook();
    let most = Arc::new(AtomicUsize::new(0));
    let (seen, watched) = (Arc::clone(&most), Arc::new(OnceLock::<EngineHandle>::new()));
    let itself = Arc::clone(&watched);
    let engine = engine(EngineConfig {
        max_step_tokens: 150,
        // However slow the machine is, all of them have to run at the same time.
        step_time: Duration::from_secs(3600),
        // Before each step, the status is that of the previous step.
        step_hook: Some(Arc::new(move |ids: &[RequestId]| {
            pass(ids);
            let used = itself
                .get()
                .map_or(0, |engine| engine.status().kv_blocks_used);
            seen.fetch_max(used, Ordering::Relaxed);
        })),
        ..EngineConfig::default()
    });
    watched.set(engine.clone()).ok().expect("set once");
    let head = prompt(512, 1);
    let draft = |n: u32| {
        let ids = [&head[..], &prompt(9, 100 + n)].concat();
        sampled(&ids, 40, u64::from(n))
    };
    let drafts: Vec<_> = (0..64).map(draft).collect();
    let outcomes = run_together(&engine, &gate, drafts.clone()).await;
    engine.stop();
    let most = most.load(Ordering::Relaxed);
    let computed = outcomes
        .iter()
        .map(|o| o.prompt.prompt_tokens - o.prompt.cached_tokens);
    assert_eq!(computed.sum::<usize>(), 512 + 64 * 9);
    // 49 tokens of its own for each, and the shared prefix.
    assert!(
        (64 * 3..=64 * 4 + 512 / BLOCK_SIZE).contains(&most),
        "{most}"
    );
    for n in [0, 31, 63] {
        let alone = cold(DTYPES[0], drafts[n].clone()).await;
        assert_eq!(outcomes[n].tokens, alone.tokens);
    }
}

fn of(tenant: Tenant, draft: RequestDraft) -> RequestDraft {
    RequestDraft { tenant, ..draft }
}

#[tokio::test]
async fn tenants_share_prefixes_only_where_that_is_asked_for() {
    let (a, b) = (Tenant::of_key(b"a"), Tenant::of_key(b"b"));
    let ids = prompt(100, 1);
    for share_prefixes in [false, true] {
        let engine = engine(EngineConfig {
            share_prefixes,
            ..EngineConfig::default()
        });
        let mut outcomes = Vec::new();
        for tenant in [a, b, Tenant::ANONYMOUS, b] {
            outcomes.push(run(&engine, of(tenant, sampled(&ids, 9, 1))).await);
        }
        let cached: Vec<_> = outcomes.iter().map(|o| o.prompt.cached_tokens).collect();
        let others = if share_prefixes { 99 } else { 0 };
        assert_eq!(cached, [0, others, others, 99]);
        assert!(outcomes.iter().all(|o| o.tokens == outcomes[0].tokens));
        for (tenant, known) in [
            (a, 96),
            (Tenant::of_key(b"c"), if share_prefixes { 96 } else { 0 }),
        ] {
            let resident = engine.resident_tokens(tenant, ids.clone()).await;
            assert_eq!(resident, Ok(known));
        }
    }
}

/// Returns a request with `keep_kv`.
fn kept(draft: RequestDraft) -> RequestDraft {
    RequestDraft {
        keep_kv: true,
        ..draft
    }
}

/// Starts an engine of `n` blocks, and returns the channel of its evicted blocks.
fn leaving(
    dtypes: (WeightDtype, KvDtype),
    n: usize,
    room: usize,
) -> (EngineHandle, Receiver<EvictedBlock>) {
    let (sender, receiver) = sync_channel(room);
    let (dtype, kv_dtype) = dtypes;
    let block = gpt2_in(dtype).kv_block_bytes(kv_dtype);
    let config = EngineConfig {
        kv_memory: bytesize::ByteSize::b((n * block) as u64),
        evicted: Some(sender),
        ..EngineConfig::default()
    };
    (engine_in(dtypes, config), receiver)
}

/// Returns the ids of the prefixes of a context's blocks.
fn prefixes(tenant: Tenant, tokens: &[u32]) -> Vec<PrefixId> {
    let blocks = tokens.as_chunks().0.iter();
    let ids = blocks.scan(PrefixId::root(tenant), |id, tokens| {
        *id = id.then(tokens);
        Some(*id)
    });
    ids.collect()
}

#[tokio::test]
async fn blocks_that_left_one_engine_serve_another_bit_for_bit() {
    for dtypes in DTYPES {
        let tenant = Tenant::of_key(b"a");
        let (first, left) = leaving(dtypes, 40, 100);
        let ids = prompt(200, 1);
        let turn = run(&first, of(tenant, kept(sampled(&ids, 30, 5)))).await;
        let text = [&ids[..], &turn.ids()].concat();
        // Other requests take its blocks; theirs are not exported.
        run_all(
            &first,
            (0..6)
                .map(|i| sampled(&prompt(250, 10 + i), 20, 1))
                .collect(),
        )
        .await;
        let left: HashMap<_, _> = left.try_iter().map(|b| (b.prefix, b.bytes)).collect();
        let names = prefixes(tenant, &text[..text.len() - 1]);
        assert_eq!(names.len(), 14);
        assert_eq!(
            left.len(),
            14,
            "only what is worth keeping leaves, and all of it"
        );
        let status = first.status();
        assert_eq!((status.evicted_blocks, status.lost_blocks), (14, 0));
        assert_eq!(first.resident_tokens(tenant, text.clone()).await, Ok(0));

        let (second, _left) = leaving(dtypes, 40, 100);
        let size = second.status().kv_block_bytes;
        assert!(left.values().all(|bytes| bytes.len() == size));
        let bytes = |range: std::ops::Range<usize>| -> Vec<StoredBlock> {
            let blocks = names[range].iter();
            blocks.map(|name| whole(left[name].clone())).collect()
        };
        let import = |first, bytes| second.import_kv(tenant, text.clone(), first, bytes);
        assert_eq!(
            import(3, bytes(3..5)).await,
            Ok(0),
            "what is before is not there"
        );
        assert_eq!(import(0, bytes(0..5)).await, Ok(5));
        assert_eq!(second.resident_tokens(tenant, text.clone()).await, Ok(80));
        assert_eq!(import(3, bytes(3..14)).await, Ok(11));
        let half = whole(left[&names[0]][..size / 2].to_vec());
        assert_eq!(import(14, vec![half]).await, Ok(0), "half a block is none");
        assert_eq!(second.status().kv_blocks_cached, 14);
        assert_eq!(
            second
                .resident_tokens(Tenant::ANONYMOUS, text.clone())
                .await,
            Ok(0)
        );

        let draft = sampled(&[&text[..], &prompt(6, 3)].concat(), 20, 8);
        let warm = run(&second, of(tenant, draft.clone())).await;
        assert_eq!(warm.prompt.cached_tokens, 14 * BLOCK_SIZE);
        assert_eq!(warm.tokens, cold(dtypes, draft).await.tokens, "{dtypes:?}");
    }
}

#[tokio::test]
async fn an_import_takes_no_block_that_someone_needs_and_none_of_its_own() {
    let (first, left) = leaving(DTYPES[0], 40, 100);
    let ids = prompt(200, 1);
    run(&first, kept(sampled(&ids, 1, 5))).await;
    first.stop();
    let left: HashMap<_, _> = left.iter().map(|b| (b.prefix, b.bytes)).collect();
    let names = prefixes(Tenant::ANONYMOUS, &ids);
    let stored = names.iter().map(|name| whole(left[name].clone()));
    let bytes: Vec<StoredBlock> = stored.collect();

    let gate = Gate::after(1);
    let small = engine(EngineConfig {
        kv_memory: blocks(30),
        step_hook: Some(gate.hook()),
        speculative_rows: 0,
        ..EngineConfig::default()
    });
    // It needs no further block for the steps that are allowed here.
    let running = admit(sampled(&prompt(290, 7), 180, 3));
    let running = small.submit(running).await.expect("accepted");
    until("running", async || small.status().kv_blocks_used > 0).await;
    let room = 30 - small.status().kv_blocks_used;
    assert!((1..12).contains(&room), "{room}");
    for _ in 0..2 {
        let taken = small.import_kv(Tenant::ANONYMOUS, ids.clone(), 0, bytes.clone());
        // The worker answers between two steps.
        let (taken, ()) = tokio::join!(taken, async { gate.allow(1) });
        assert_eq!(taken, Ok(room));
    }
    let resident = small.resident_tokens(Tenant::ANONYMOUS, ids.clone());
    let (resident, ()) = tokio::join!(resident, async { gate.allow(1) });
    assert_eq!(resident, Ok(room * BLOCK_SIZE));
    drop(running);
    gate.open();
    let taken = small.import_kv(Tenant::ANONYMOUS, ids, 0, bytes).await;
    assert_eq!(taken, Ok(12));
}

#[tokio::test]
async fn at_the_end_what_is_worth_keeping_is_given_away_the_last_used_first() {
    let (engine, left) = leaving(DTYPES[0], 60, 1);
    let (old, new, other) = (prompt(60, 1), prompt(60, 2), prompt(60, 3));
    run(&engine, kept(sampled(&old, 1, 1))).await;
    run(&engine, kept(sampled(&new, 1, 1))).await;
    run(&engine, sampled(&other, 1, 1)).await;
    // Blocks of a request that still runs are exported too.
    let running = prompt(60, 4);
    let generation = engine.submit(admit(kept(sampled(&running, 900, 1)))).await;
    let mut generation = generation.expect("accepted");
    assert!(matches!(
        generation.next().await,
        Some(TokenEvent::Prefilled(_))
    ));
    engine.stop();
    let left: Vec<_> = left.iter().map(|block| block.prefix).collect();
    let of = |tokens: &[u32]| prefixes(Tenant::ANONYMOUS, tokens);
    let expected = [of(&running), of(&new), of(&old)].concat();
    let known: Vec<_> = left
        .into_iter()
        .filter(|prefix| expected.contains(prefix))
        .collect();
    assert_eq!(known, expected);
    let gone = engine.resident_tokens(Tenant::ANONYMOUS, old).await;
    assert_eq!(gone, Err(GenerateError::EngineGone));
}

#[tokio::test]
async fn requests_do_not_wait_for_a_slow_receiver_of_evicted_blocks() {
    let (engine, left) = leaving(DTYPES[0], 30, 2);
    let drafts = || (0..8).map(|i| kept(sampled(&prompt(200, i), 20, 1)));
    let mut outcomes = Vec::new();
    for draft in drafts() {
        outcomes.push(run(&engine, draft).await);
    }
    let status = engine.status();
    assert_eq!(status.evicted_blocks, 2);
    assert!(status.lost_blocks > 50, "{status:?}");
    drop(left);
    for (draft, outcome) in drafts().zip(outcomes).take(2) {
        assert_eq!(run(&engine, draft.clone()).await.tokens, outcome.tokens);
    }
}

#[tokio::test]
async fn the_engine_says_what_it_has_measured() {
    let engine = engine(EngineConfig::default());
    assert_eq!(engine.status().prefill_seconds_per_token, None);
    run(&engine, greedy(&prompt(200, 1), 2)).await;
    let seconds = engine.status().prefill_seconds_per_token;
    assert!(seconds.is_some_and(|s| s > 0.0 && s < 1.0), "{seconds:?}");
    assert_eq!(engine.status().preemptions, 0);
}
