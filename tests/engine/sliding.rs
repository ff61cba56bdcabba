//! In a cache with hardly more than one context, and the slots of one window for sliding layers, every request
//! gives the same as in a large one: for tiny models of every architecture, with windows of 16 positions.

use std::path::Path;
use std::sync::Arc;

use bytesize::ByteSize;
use skald::engine::kv_memory::{KvLayout, WindowLayout};
use skald::engine::{EngineConfig, EngineHandle};
use skald::kernels::kv::{BLOCK_SIZE, KvDtype, KvPart, SequenceSpan};
use skald::kernels::linear::WeightDtype;
use skald::model::Model;
use skald::model::batch::Batch;
use skald::request::{BeamParams, EarlyStopping, Overflow, RequestDraft, SessionId, Tenant};
use skald::session::snapshots::{SnapshotConfig, Snapshots};
use skald::session::{Fingerprint, SessionConfig, SessionKey, Sessions};

use crate::model::{Outcome, after, finish, greedy, sampled};
use crate::pace::until;
use crate::sessions::run_turn;
use crate::tiny::{CHECKPOINTS, limits, load, prompt, run, run_all};

const CONTEXT: usize = 256;
/// Checkpoints whose layers slide and do not, in turn or one in six.
const SLIDING: [&str; 3] = ["gemma2", "gemma3", "gemma3-untied"];
const DTYPES: [(WeightDtype, KvDtype); 2] = [
    (WeightDtype::F32, KvDtype::F32),
    (WeightDtype::Bf16, KvDtype::Bf16),
];

/// Returns the layout of a model's cache and that of its windows.
fn layout(model: &Model, dtype: KvDtype) -> (KvLayout, WindowLayout) {
    let layout = KvLayout::of(model, dtype, CONTEXT);
    let windows = layout.windows.expect("sliding layers");
    (layout, windows)
}

/// Returns a configuration with room for one whole context and `spare` bytes more, in steps of up to 32
/// tokens.
fn tight(model: &Model, dtype: KvDtype, spare: usize) -> EngineConfig {
    let layout = KvLayout::of(model, dtype, CONTEXT);
    let config = EngineConfig {
        max_step_tokens: 32,
        max_batch: 4,
        kv_dtype: dtype,
        ..EngineConfig::default()
    };
    let memory = layout.context_bytes(CONTEXT, config.max_step_tokens) + spare as u64;
    EngineConfig {
        kv_memory: ByteSize::b(memory),
        ..config
    }
}

fn start(model: Model, config: EngineConfig) -> EngineHandle {
    skald::engine::start(model, config).expect("the engine starts")
}

fn roomy(name: &str, dtype: WeightDtype, kv_dtype: KvDtype) -> EngineHandle {
    let config = EngineConfig {
        kv_dtype,
        ..EngineConfig::default()
    };
    start(load(name, dtype), config)
}

/// Returns the outcome of a request on an engine that computes all of it.
async fn cold(name: &str, draft: RequestDraft) -> Outcome {
    let outcome = run(&roomy(name, WeightDtype::F32, KvDtype::F32), draft).await;
    assert_eq!(outcome.prompt.cached_tokens, 0);
    outcome
}

/// The engine's slots: used, cached, in total.
fn slots(engine: &EngineHandle) -> (usize, usize, usize) {
    let status = engine.status();
    (
        status.kv_slots_used,
        status.kv_slots_cached,
        status.kv_slots,
    )
}

#[test]
fn logits_are_the_same_when_slots_are_reused_behind_the_window() {
    for name in SLIDING {
        for (dtype, kv_dtype) in DTYPES {
            let model = load(name, dtype);
            let (layout, windows) = layout(&model, kv_dtype);
            assert_eq!(windows.window, 16);
            let ids = prompt(200, 1);
            let blocks = ids.len().div_ceil(BLOCK_SIZE);
            let logits = |rows: usize, slots: Option<u32>| -> Vec<Vec<f32>> {
                let window_blocks = slots.unwrap_or_default() as usize;
                let kv = match slots {
                    None => model.kv_cache(kv_dtype, blocks),
                    Some(_) => {
                        model.divided_kv_cache(kv_dtype, &layout.parts, blocks, window_blocks)
                    }
                };
                let kv = kv.expect("a cache");
                let mut logits = Vec::new();
                for (n, chunk) in ids.chunks(rows).enumerate() {
                    let (first, count) = (n * rows, chunk.len());
                    let table = 0..blocks as u32;
                    let batch = Batch {
                        ids: chunk.to_vec(),
                        positions: (first as u32..).take(count).collect(),
                        spans: vec![SequenceSpan {
                            rows: 0..count,
                            first_position: first,
                            block_table: table.clone().collect(),
                            window_table: slots.map_or(Vec::new(), |slots| {
                                table.map(|block| block % slots).collect()
                            }),
                        }],
                        logits_rows: (0..count as u32).collect(),
                        ..Batch::default()
                    };
                    let outputs = model.forward(batch, &kv).expect("a pass");
                    logits.extend(outputs.logits.to_vec2().expect("logits"));
                }
                logits
            };
            let expected = logits(ids.len(), None);
            for (rows, slots) in [(1, 2), (16, 2), (7, 3), (20, 4), (200, 13)] {
                let found = logits(rows, Some(slots));
                assert!(found == expected, "{name} {dtype:?} {rows} {slots}");
            }
        }
    }
}

#[tokio::test]
async fn in_hardly_more_slots_than_one_window_every_request_gives_the_same() {
    let requests = || -> Vec<RequestDraft> {
        let lengths = [1, 15, 16, 17, 33, 64, 65, 100, 150, 200];
        let requests = (0..).zip(lengths).map(|(i, length)| {
            let draft = sampled(&prompt(length, i), 40, u64::from(i) + 1);
            RequestDraft {
                ignore_end_of_text: true,
                ..draft
            }
        });
        requests.collect()
    };
    for name in SLIDING {
        for (dtype, kv_dtype) in DTYPES {
            let roomy = roomy(name, dtype, kv_dtype);
            let mut alone = Vec::new();
            for mut draft in requests() {
                // Log-probabilities of the prompt prevent the use of cached blocks.
                draft.logprobs.prompt = true;
                alone.push(run(&roomy, draft).await);
            }
            let model = load(name, dtype);
            let config = tight(&model, kv_dtype, 0);
            let engine = start(model, config);
            // A window of 16 positions is in two blocks, and a step in two.
            assert_eq!(slots(&engine), (0, 0, 4));
            assert_eq!(engine.status().kv_blocks, CONTEXT / BLOCK_SIZE);
            let together = run_all(&engine, requests()).await;
            for (alone, together) in alone.iter().zip(&together) {
                assert_eq!(alone.tokens, together.tokens, "{name} {dtype:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_prefix_is_reused_as_far_as_its_last_window_is_there() {
    for name in SLIDING {
        let model = load(name, WeightDtype::F32);
        let (_, windows) = layout(&model, KvDtype::F32);
        // Blocks for both contexts, and few slots.
        let config = tight(&model, KvDtype::F32, 2 * windows.slot_bytes);
        let engine = start(model, config);
        let (first, second) = (prompt(100, 1), prompt(30, 2));
        let turn = run(&engine, greedy(&first, 15)).await;
        let history = [first.clone(), turn.ids()].concat();
        // The end of the context is there.
        let turn = run(&engine, after(&history, sampled(&second, 15, 3))).await;
        assert_eq!(turn.prompt.cached_tokens, 114, "{name}");
        let whole = [&history[..], &second].concat();
        assert_eq!(turn.tokens, cold(name, sampled(&whole, 15, 3)).await.tokens);
        // Its beginning is not: the slots behind the window were reused.
        let fork = [&history[..40], &prompt(20, 5)].concat();
        let forked = run(&engine, sampled(&fork, 15, 4)).await;
        assert!(forked.prompt.cached_tokens < 40, "{name}");
        assert_eq!(
            forked.tokens,
            cold(name, sampled(&fork, 15, 4)).await.tokens,
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_context_that_slides_past_the_end_and_drafts_give_the_same() {
    for name in CHECKPOINTS {
        let draft = |greedily: bool| {
            let phrase = prompt(9, 3);
            let ids = [&phrase[..], &phrase, &prompt(200, 7), &phrase, &phrase].concat();
            let mut draft = sampled(&ids, 150, 9);
            if greedily {
                draft.sampling.temperature = Some(0.0);
            }
            RequestDraft {
                overflow: Overflow::Slide,
                ..draft
            }
        };
        for greedily in [true, false] {
            let without = EngineConfig {
                speculative_rows: 0,
                ..EngineConfig::default()
            };
            let without = start(load(name, WeightDtype::F32), without);
            let expected = run(&without, draft(greedily)).await;
            let model = load(name, WeightDtype::F32);
            let config = tight(&model, KvDtype::F32, 0);
            let found = run(&start(model, config), draft(greedily)).await;
            assert_eq!(expected.tokens.len(), 150);
            assert_eq!(expected.tokens, found.tokens, "{name} {greedily}");
        }
    }
}

#[tokio::test]
async fn beams_find_the_same_in_few_blocks_and_slots() {
    for name in CHECKPOINTS {
        let draft = |salt| RequestDraft {
            beams: Some(BeamParams {
                width: 3,
                returned: 3,
                length_penalty: 1.0,
                early_stopping: EarlyStopping::Never,
            }),
            ignore_end_of_text: true,
            ..greedy(&prompt(70 + salt as usize, salt), 40)
        };
        let beams = async |engine: &EngineHandle, salt| {
            let request = limits().admit(draft(salt)).expect("a valid request");
            let beams = engine.submit_all(request).await.expect("accepted");
            let beams = futures_util::future::try_join_all(beams.into_iter().map(finish));
            let beams = beams.await.expect("it does not fail");
            beams.iter().map(Outcome::ids).collect::<Vec<_>>()
        };
        let roomy = roomy(name, WeightDtype::F32, KvDtype::F32);
        let model = load(name, WeightDtype::F32);
        let layout = KvLayout::of(&model, KvDtype::F32, CONTEXT);
        let windows = layout.windows;
        // Enough for each of them, not for all at once.
        let spare = windows.map_or(0, |windows| 28 * windows.slot_bytes);
        let config = tight(&model, KvDtype::F32, spare);
        let tight = start(model, config);
        let slots = slots(&tight).2;
        let enough = if windows.is_some() { 14..30 } else { 0..1 };
        assert!(enough.contains(&slots), "{name}: {slots}");
        let found = tokio::join!(beams(&tight, 1), beams(&tight, 2), beams(&tight, 3));
        assert_eq!(found.0, beams(&roomy, 1).await, "{name}");
        assert_eq!(found.1, beams(&roomy, 2).await, "{name}");
        assert_eq!(found.2, beams(&roomy, 3).await, "{name}");
    }
}

/// An engine with sessions in a directory.
struct Server {
    engine: EngineHandle,
    sessions: Sessions,
    snapshots: Arc<Snapshots>,
}

impl Server {
    /// Starts a server with little more than the memory of one context.
    fn new(name: &str, dir: &Path) -> Self {
        let model = load(name, WeightDtype::F32);
        let layout = KvLayout::of(&model, KvDtype::F32, CONTEXT);
        let spare = layout.windows.map_or(0, |windows| 3 * windows.slot_bytes);
        let config = SnapshotConfig {
            model: Fingerprint([2; 32]),
            block_bytes: layout.block_bytes,
            windows: layout.windows,
            size: ByteSize::mib(64),
            shared_prefixes: false,
        };
        let (snapshots, evicted) = Snapshots::open(dir, config).expect("a directory");
        let config = EngineConfig {
            evicted: Some(evicted),
            ..tight(&model, KvDtype::F32, spare)
        };
        let engine = start(model, config);
        let sessions = Sessions::open(
            SessionConfig {
                dir: Some(dir.to_owned()),
                ..SessionConfig::default()
            },
            engine.clone(),
            CONTEXT,
            Fingerprint([1; 32]),
            Some(Arc::clone(&snapshots)),
        );
        Self {
            engine,
            sessions: sessions.expect("a directory"),
            snapshots,
        }
    }

    /// Runs a whole turn; returns the history after it too.
    async fn turn(&self, draft: RequestDraft) -> (Outcome, Vec<u32>) {
        let key = SessionKey {
            tenant: Tenant::ANONYMOUS,
            id: SessionId::parse("s").expect("a session id"),
        };
        let outcome = run_turn(&self.sessions, &self.engine, &limits(), &key, draft).await;
        let history = self.sessions.get(&key).await.expect("a session");
        (outcome, history.tokens.to_vec())
    }

    async fn stop(self) {
        self.engine.stop();
        self.sessions.saved().await;
    }
}

#[tokio::test]
async fn a_session_goes_on_from_the_disk_with_the_parts_of_its_last_window() {
    for name in CHECKPOINTS {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::new(name, dir.path());
        let (_, history) = server.turn(greedy(&prompt(150, 1), 10)).await;
        server.stop().await;
        // Another process goes on from the blocks on disk: the window is in the last full block.
        let server = Server::new(name, dir.path());
        let (turn, _) = server.turn(sampled(&prompt(20, 2), 10, 4)).await;
        assert_eq!(turn.prompt.cached_tokens, 144, "{name}");
        let context = [&history[..], &prompt(20, 2)].concat();
        let expected = cold(name, sampled(&context, 10, 4)).await;
        assert_eq!(turn.tokens, expected.tokens, "{name}");
    }
}

#[tokio::test]
async fn parts_that_left_the_cache_come_back_from_the_disk() {
    for name in SLIDING {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::new(name, dir.path());
        let (_, history) = server.turn(greedy(&prompt(150, 1), 10)).await;
        // Fills the whole cache with other tokens.
        run(&server.engine, greedy(&prompt(240, 9), 10)).await;
        until("on disk", async || server.snapshots.len() >= 10).await;
        let (turn, _) = server.turn(sampled(&prompt(20, 3), 10, 5)).await;
        assert_eq!(turn.prompt.cached_tokens, 144, "{name}");
        let context = [&history[..], &prompt(20, 3)].concat();
        let expected = cold(name, sampled(&context, 10, 5)).await;
        assert_eq!(turn.tokens, expected.tokens, "{name}");
    }
}

#[tokio::test]
async fn a_session_whose_window_is_not_on_disk_is_computed_again() {
    for name in SLIDING {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::new(name, dir.path());
        let (_, history) = server.turn(greedy(&prompt(150, 1), 10)).await;
        server.stop().await;
        // Each part has a directory of its own. The window is in fewer blocks than the context.
        let parts = std::fs::read_dir(dir.path().join("kv")).expect("a directory");
        let parts = parts.map(|part| part.expect("an entry").path());
        let window = parts.min_by_key(|part| walk(part).len()).expect("a part");
        assert_eq!(walk(&window).len(), 1, "{name}");
        std::fs::remove_dir_all(window).expect("removed");
        let server = Server::new(name, dir.path());
        let (turn, _) = server.turn(sampled(&prompt(20, 2), 10, 4)).await;
        assert_eq!(turn.prompt.cached_tokens, 0, "{name}");
        let context = [&history[..], &prompt(20, 2)].concat();
        let expected = cold(name, sampled(&context, 10, 4)).await;
        assert_eq!(turn.tokens, expected.tokens, "{name}");
    }
}

/// Returns all files below a directory.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let entries = entries.map(|entry| entry.expect("an entry").path());
    let files = entries.flat_map(|path| {
        if path.is_dir() {
            walk(&path)
        } else {
            vec![path]
        }
    });
    files.collect()
}

#[test]
fn a_model_without_sliding_layers_has_no_slots() {
    for name in ["gemma", "llama", "qwen3"] {
        let model = load(name, WeightDtype::F32);
        let layout = KvLayout::of(&model, KvDtype::F32, CONTEXT);
        assert_eq!(layout.windows, None, "{name}");
        assert!(layout.parts.iter().all(|&part| part == KvPart::Global));
        assert_eq!(layout.block_bytes, model.kv_block_bytes(KvDtype::F32));
    }
}
