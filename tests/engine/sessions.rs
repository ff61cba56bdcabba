//! Sessions over a real engine: committed and expired histories, waiting turns, and blocks restored from
//! disk.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use skald::engine::{EngineConfig, EngineHandle, GenerateError, TokenEvent};
use skald::kernels::kv::KvDtype;
use skald::request::{Limits, RequestDraft, SessionId, Tenant};
use skald::session::snapshots::{SnapshotConfig, Snapshots};
use skald::session::{
    Delivered, Fingerprint, IfBusy, SessionConfig, SessionError, SessionKey, Sessions, Sharing,
};

use crate::model::{
    Outcome, admit, after, engine, finish, gpt2, greedy, idle, limits, prompt, run, sampled,
};
use crate::pace::until;

const N_POSITIONS: usize = 1024;

/// An engine and its sessions.
struct Server {
    engine: EngineHandle,
    sessions: Sessions,
    snapshots: Option<Arc<Snapshots>>,
}

impl Server {
    fn new() -> Self {
        Self::with(SessionConfig::default())
    }

    fn with(config: SessionConfig) -> Self {
        let engine = engine(EngineConfig::default());
        let tokenizer = Fingerprint([1; 32]);
        let sessions = Sessions::open(config, engine.clone(), N_POSITIONS, tokenizer, None);
        Self {
            engine,
            sessions: sessions.expect("a directory"),
            snapshots: None,
        }
    }

    /// Creates a server with a session directory and a KV cache of `kv_blocks` blocks.
    fn durable(dir: &Path, kv_blocks: u64) -> Self {
        let model = gpt2();
        let block_bytes = model.kv_block_bytes(KvDtype::F32);
        let config = SnapshotConfig {
            model: Fingerprint([2; 32]),
            block_bytes,
            windows: None,
            size: ByteSize::mib(64),
            shared_prefixes: false,
        };
        let (snapshots, evicted) = Snapshots::open(dir, config).expect("a directory");
        let engine = EngineConfig {
            kv_memory: ByteSize::b(block_bytes as u64 * kv_blocks),
            evicted: Some(evicted),
            ..EngineConfig::default()
        };
        let engine = skald::engine::start(model, engine).expect("the engine starts");
        let config = SessionConfig {
            dir: Some(dir.to_owned()),
            ..SessionConfig::default()
        };
        let sessions = Sessions::open(
            config,
            engine.clone(),
            N_POSITIONS,
            Fingerprint([1; 32]),
            Some(Arc::clone(&snapshots)),
        );
        Self {
            engine,
            sessions: sessions.expect("a directory"),
            snapshots: Some(snapshots),
        }
    }

    /// Runs a whole turn.
    async fn turn(&self, name: &str, draft: RequestDraft) -> Outcome {
        self.turn_of(&key(name), draft).await
    }

    async fn turn_of(&self, key: &SessionKey, draft: RequestDraft) -> Outcome {
        run_turn(&self.sessions, &self.engine, &limits(), key, draft).await
    }

    async fn history(&self, name: &str) -> Option<Vec<u32>> {
        match self.sessions.get(&key(name)).await {
            Ok(info) => Some(info.tokens.to_vec()),
            Err(SessionError::NotFound { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Stops in the order in which a server stops.
    async fn stop(self) {
        self.engine.stop();
        self.sessions.saved().await;
    }
}

/// Runs a whole turn of a session.
pub async fn run_turn(
    sessions: &Sessions,
    engine: &EngineHandle,
    limits: &Limits,
    key: &SessionKey,
    draft: RequestDraft,
) -> Outcome {
    let turn = sessions.begin(key, IfBusy::Wait).await;
    let mut turn = turn.expect("its turn");
    let request = limits.admit(RequestDraft {
        keep_kv: turn.keeps_kv(),
        tenant: key.tenant,
        ..after(turn.history(), draft)
    });
    let request = request.expect("a valid request");
    turn.prompt(&request.prompt);
    sessions.restore(&request).await;
    let generation = engine.submit(request).await.expect("accepted");
    let outcome = finish(generation).await.expect("it does not fail");
    outcome.ids().into_iter().for_each(|id| turn.push(id));
    let kept = Delivered {
        tokens: outcome.tokens.len(),
        tail: Vec::new(),
    };
    turn.commit(kept).await.expect("it is kept");
    outcome
}

fn id(name: &str) -> SessionId {
    SessionId::parse(name).expect("a session id")
}

fn key(name: &str) -> SessionKey {
    SessionKey {
        tenant: Tenant::ANONYMOUS,
        id: id(name),
    }
}

/// Returns the outcome of a fresh engine for the same tokens as one prompt.
async fn plainly(tokens: &[u32], draft: RequestDraft) -> Outcome {
    let fresh = engine(EngineConfig::default());
    let prompt = [tokens, &draft.prompt].concat();
    run(&fresh, RequestDraft { prompt, ..draft }).await
}

#[tokio::test]
async fn a_session_keeps_prompt_and_output() {
    let server = Server::new();
    let ids = prompt(20, 1);
    let turn = server.turn("a", greedy(&ids, 10)).await;
    assert_eq!(server.history("a").await, Some([ids, turn.ids()].concat()));
    assert_eq!(server.history("b").await, None);
}

#[tokio::test]
async fn a_session_keeps_what_was_delivered_and_not_what_was_generated() {
    let server = Server::new();
    let mut turn = server
        .sessions
        .begin(&key("a"), IfBusy::Wait)
        .await
        .unwrap();
    turn.prompt(&[1, 2]);
    turn.push(10);
    // A turn that is dropped without a commit leaves no trace.
    drop(turn);
    assert_eq!(server.history("a").await, None);
    let mut turn = server
        .sessions
        .begin(&key("a"), IfBusy::Wait)
        .await
        .unwrap();
    turn.prompt(&[1, 2]);
    (10..20).for_each(|id| turn.push(id));
    let tail = vec![7, 8];
    turn.commit(Delivered { tokens: 3, tail }).await.unwrap();
    assert_eq!(
        server.history("a").await,
        Some(vec![1, 2, 10, 11, 12, 7, 8])
    );
}

#[tokio::test]
async fn turns_on_one_session_come_in_order() {
    let server = Server::new();
    let parts: Vec<Vec<u32>> = (0..4).map(|i| prompt(10, i)).collect();
    let turns = parts.iter().map(|ids| server.turn("a", greedy(ids, 5)));
    let turns = futures_util::future::join_all(turns).await;
    let expected: Vec<u32> = parts
        .iter()
        .zip(&turns)
        .flat_map(|(ids, turn)| [ids.clone(), turn.ids()].concat())
        .collect();
    assert_eq!(server.history("a").await, Some(expected));
}

#[tokio::test]
async fn who_does_not_want_to_wait_is_told_and_too_many_may_not() {
    let server = Server::with(SessionConfig {
        max_waiting: 1,
        ..SessionConfig::default()
    });
    let begin = |if_busy| {
        let sessions = server.sessions.clone();
        async move { sessions.begin(&key("a"), if_busy).await }
    };
    let first = begin(IfBusy::Wait).await.expect("nobody is there");
    assert!(matches!(
        begin(IfBusy::Error).await,
        Err(SessionError::Busy { .. })
    ));
    let second = tokio::spawn(begin(IfBusy::Wait));
    until("waiting", async || server.sessions.waiting() == 1).await;
    assert!(matches!(
        begin(IfBusy::Wait).await,
        Err(SessionError::TooManyWait { limit: 1 })
    ));
    assert!(server.sessions.get(&key("a")).await.unwrap().busy);
    drop(first);
    assert!(second.await.unwrap().is_ok());
    assert!(begin(IfBusy::Error).await.is_ok());
    assert_eq!(server.history("a").await, None);
}

#[tokio::test]
async fn a_tenants_waiting_requests_leave_another_tenant_its_share() {
    let server = Server::with(SessionConfig {
        max_waiting: 2,
        sharing: Sharing::ByTenant,
        ..SessionConfig::default()
    });
    let (many, few) = (Tenant::of_key(b"many"), Tenant::of_key(b"few"));
    let begin = |tenant| {
        let sessions = server.sessions.clone();
        let key = SessionKey {
            tenant,
            id: id("a"),
        };
        async move { sessions.begin(&key, IfBusy::Wait).await }
    };
    let _of_many = begin(many).await.expect("nobody is there");
    let _waiting = [(); 2].map(|()| tokio::spawn(begin(many)));
    until("waiting", async || server.sessions.waiting() == 2).await;
    let refused = begin(many).await;
    assert!(matches!(refused, Err(SessionError::TooManyWait { .. })));
    let of_few = begin(few).await.expect("nobody is there");
    let waits = tokio::spawn(begin(few));
    until("waiting", async || server.sessions.waiting() == 3).await;
    drop(of_few);
    assert!(waits.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn in_memory_the_least_recently_used_session_is_forgotten_first() {
    let server = Server::with(SessionConfig {
        max_in_memory: 2,
        ..SessionConfig::default()
    });
    for name in ["a", "b", "a", "c"] {
        server.turn(name, greedy(&prompt(5, 1), 2)).await;
    }
    let (list, more) = server
        .sessions
        .list(Tenant::ANONYMOUS, None, 10)
        .await
        .unwrap();
    let names: Vec<&str> = list.iter().map(|s| s.id.as_str()).collect();
    assert_eq!((names, more), (vec!["c", "a"], false));
    let (list, more) = server
        .sessions
        .list(Tenant::ANONYMOUS, None, 1)
        .await
        .unwrap();
    assert_eq!((list[0].id.as_str(), more), ("c", true));
    let after = id("c");
    let page = server.sessions.list(Tenant::ANONYMOUS, Some(&after), 1);
    let (list, more) = page.await.unwrap();
    assert_eq!((list[0].id.as_str(), more), ("a", false));
}

#[tokio::test]
async fn a_deleted_session_starts_anew_and_a_running_turn_does_not_bring_it_back() {
    let dir = tempfile::tempdir().unwrap();
    for server in [Server::new(), Server::durable(dir.path(), 100)] {
        server.turn("a", greedy(&prompt(5, 1), 2)).await;
        let mut turn = server
            .sessions
            .begin(&key("a"), IfBusy::Wait)
            .await
            .unwrap();
        turn.prompt(&[1]);
        server.sessions.delete(&key("a")).await.unwrap();
        assert_eq!(server.history("a").await, None);
        let again = server.sessions.delete(&key("a")).await;
        assert!(matches!(again, Err(SessionError::NotFound { .. })));
        turn.commit(Delivered::default()).await.unwrap();
        assert_eq!(server.history("a").await, None);
        assert!(matches!(
            server.sessions.delete(&key("a")).await,
            Err(SessionError::NotFound { .. })
        ));
        server.turn("a", greedy(&prompt(3, 1), 2)).await;
        assert_eq!(server.history("a").await.unwrap().len(), 5);
        server.sessions.delete(&key("a")).await.unwrap();
        assert_eq!(server.history("a").await, None);
    }
}

#[tokio::test]
async fn a_fork_and_what_is_rewound_go_on_as_the_tokens_they_have() {
    let server = Server::new();
    let ids = prompt(50, 1);
    let said = server.turn("a", greedy(&ids, 20)).await.ids();
    let whole = [ids, said].concat();
    let (a, nobody) = (key("a"), key("nobody"));
    let fork = |at| server.sessions.fork(&a, id("b"), at);
    assert!(matches!(
        fork(Some(71)).await,
        Err(SessionError::BeyondHistory { tokens: 70, .. })
    ));
    assert_eq!(*fork(Some(37)).await.unwrap().tokens, whole[..37]);
    assert!(matches!(fork(None).await, Err(SessionError::Exists { .. })));
    let next = sampled(&prompt(9, 5), 12, 3);
    let forked = server.turn("b", next.clone()).await;
    assert_eq!(forked.prompt.cached_tokens, 37);
    assert_eq!(
        forked.tokens,
        plainly(&whole[..37], next.clone()).await.tokens
    );
    assert_eq!(server.history("a").await.unwrap(), whole);
    let rewind = |n| server.sessions.rewind(&a, n, IfBusy::Wait);
    assert!(matches!(
        rewind(71).await,
        Err(SessionError::BeyondHistory { .. })
    ));
    assert_eq!(*rewind(25).await.unwrap().tokens, whole[..45]);
    let rewound = server.turn("a", next.clone()).await;
    assert_eq!(rewound.prompt.cached_tokens, 45);
    assert_eq!(rewound.tokens, plainly(&whole[..45], next).await.tokens);
    let gone = server.sessions.rewind(&nobody, 1, IfBusy::Wait).await;
    assert!(matches!(gone, Err(SessionError::NotFound { .. })));
}

#[tokio::test]
async fn tenants_do_not_see_each_others_sessions_and_have_a_limit_each() {
    let server = Server::with(SessionConfig {
        per_tenant: Some(1),
        ..SessionConfig::default()
    });
    let of = |tenant: &str, name: &str| SessionKey {
        tenant: Tenant::of_key(tenant.as_bytes()),
        id: id(name),
    };
    for (tenant, tokens) in [("x", 3), ("y", 4)] {
        let ids = prompt(tokens, 1);
        server.turn_of(&of(tenant, "a"), greedy(&ids, 0)).await;
    }
    assert_eq!(
        server
            .sessions
            .get(&of("x", "a"))
            .await
            .unwrap()
            .tokens
            .len(),
        3
    );
    assert_eq!(
        server
            .sessions
            .get(&of("y", "a"))
            .await
            .unwrap()
            .tokens
            .len(),
        4
    );
    assert_eq!(server.history("a").await, None);
    let one_more = server.sessions.begin(&of("x", "b"), IfBusy::Wait).await;
    assert!(matches!(one_more, Err(SessionError::Limit { limit: 1 })));
    assert!(
        server
            .sessions
            .begin(&of("x", "a"), IfBusy::Wait)
            .await
            .is_ok()
    );
    assert!(
        server
            .sessions
            .begin(&of("z", "b"), IfBusy::Wait)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_session_that_is_not_used_expires() {
    const TTL: Duration = Duration::from_millis(500);
    let dir = tempfile::tempdir().unwrap();
    for dir in [None, Some(dir.path().to_owned())] {
        let server = Server::with(SessionConfig {
            dir: dir.clone(),
            ttl: Some(TTL),
            ..SessionConfig::default()
        });
        for tokens in [5, 2] {
            let begun = Instant::now();
            server.turn("a", greedy(&prompt(tokens, 1), 0)).await;
            let history = server.history("a").await;
            // The name starts a new history. On a slow machine that may have expired already.
            assert!(history.is_some() || begun.elapsed() > TTL);
            assert!(history.is_none_or(|history| history.len() == tokens));
            // Reading a session does not count as use.
            until("expired", async || server.history("a").await.is_none()).await;
            let gone = server.sessions.delete(&key("a")).await;
            assert!(matches!(gone, Err(SessionError::NotFound { .. })));
        }
        until("forgotten", async || {
            server.sessions.count().await.unwrap() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn what_had_to_leave_the_cache_comes_back_from_the_disk_with_the_same_result() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::durable(dir.path(), 64);
    let (first, second) = (prompt(300, 1), prompt(20, 2));
    let said = server.turn("a", greedy(&first, 10)).await.ids();
    // Fills the whole cache with other tokens.
    run(&server.engine, greedy(&prompt(1000, 9), 10)).await;
    let snapshots = server.snapshots.as_ref().unwrap();
    until("on disk", async || snapshots.len() >= 19).await;
    let turn = server.turn("a", sampled(&second, 10, 4)).await;
    assert_eq!(turn.prompt.cached_tokens, 304);
    let whole = [first, said].concat();
    assert_eq!(
        turn.tokens,
        plainly(&whole, sampled(&second, 10, 4)).await.tokens
    );
}

#[tokio::test]
async fn after_a_stop_another_server_goes_on_from_the_same_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (prompt(100, 1), prompt(20, 2));
    let server = Server::durable(dir.path(), 64);
    let said = server.turn("a", greedy(&first, 10)).await.ids();
    server.stop().await;
    let server = Server::durable(dir.path(), 64);
    let whole = [first, said].concat();
    assert_eq!(server.history("a").await.unwrap(), whole);
    let turn = server.turn("a", greedy(&second, 10)).await;
    assert_eq!(turn.prompt.cached_tokens, 96);
    assert_eq!(
        turn.tokens,
        plainly(&whole, greedy(&second, 10)).await.tokens
    );
}

#[tokio::test]
async fn two_servers_on_one_directory_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (
        Server::durable(dir.path(), 64),
        Server::durable(dir.path(), 64),
    );
    let mut expected = Vec::new();
    for n in 0..4 {
        let server = if n % 2 == 0 { &here } else { &there };
        let ids = prompt(7, n);
        let said = server.turn("a", greedy(&ids, 5)).await.ids();
        expected.extend([ids, said].concat());
        assert_eq!(here.history("a").await.as_ref(), Some(&expected));
    }
    let turn = here.sessions.begin(&key("a"), IfBusy::Wait).await.unwrap();
    let refused = there.sessions.begin(&key("a"), IfBusy::Error).await;
    assert!(matches!(refused, Err(SessionError::Busy { .. })));
    let waiting = tokio::spawn({
        let sessions = there.sessions.clone();
        async move { sessions.begin(&key("a"), IfBusy::Wait).await }
    });
    // The test can't see whether it is waiting for the lock yet; it gets its turn either way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(turn);
    assert_eq!(waiting.await.unwrap().unwrap().history(), expected);
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_engine_within_a_step() {
    let engine = engine(EngineConfig::default());
    let generation = engine.submit(admit(greedy(&prompt(20, 1), 1000))).await;
    let mut generation = generation.expect("accepted");
    let mut received = 0;
    while received < 4 {
        received += usize::from(matches!(
            generation.next().await,
            Some(TokenEvent::Token(_))
        ));
    }
    drop(generation);
    idle(&engine).await;
    engine.stop();
    let refused = engine.submit(admit(greedy(&prompt(20, 1), 1))).await;
    assert!(matches!(
        refused.err(),
        Some(GenerateError::EngineGone | GenerateError::ShuttingDown)
    ));
}

#[test]
fn a_session_with_nothing_to_continue_is_refused() {
    let refused = limits()
        .admit(after(&[], greedy(&[], 5)))
        .expect_err("nothing");
    assert_eq!(refused.field, "session_id");
    assert!(
        refused.message.contains("no history"),
        "{}",
        refused.message
    );
    assert!(limits().admit(after(&[1], greedy(&[], 5))).is_ok());
}
