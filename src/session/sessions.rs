//! The operations on sessions.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::dir::Directory;
use super::guarded::Guarded;
use super::history::{History, has_expired};
use super::memory::Memory;
use super::postgres::{Database, Postgres};
use super::queue::{Queue, TurnGuard};
use super::sealed::Fingerprint;
use super::sharing::Sharing;
use super::snapshots::Snapshots;
use super::store::{Entry, HeldSession, Store};
use super::sweep::sweep;
use super::turn::Turn;
use super::{ForkedFrom, IfBusy, SessionError, SessionInfo, SessionKey};
use crate::engine::EngineHandle;
use crate::engine::blocks::BLOCK_SIZE;
use crate::engine::sequence::context_start;
use crate::fair::Turns;
use crate::request::{GenerateRequest, SessionId, Tenant};

/// Maximum concurrent lists.
const LISTS: usize = 2;
/// Maximum sessions of a list that are queried from the worker at once.
const QUERIES: usize = 8;

/// Configuration of session storage.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Database for histories.
    pub database: Option<Database>,
    /// Directory for KV blocks, and for histories if there is no database. Without either, histories
    /// are in memory.
    pub dir: Option<std::path::PathBuf>,
    /// Disk space for KV blocks in that directory; zero stores none.
    pub kv_size: ByteSize,
    /// Idle time after which a session is deleted.
    pub ttl: Option<Duration>,
    /// Maximum sessions per tenant.
    pub per_tenant: Option<usize>,
    /// Maximum sessions in memory, if there is neither database nor directory. A session counts once
    /// for every 2,048 tokens that it begins; beyond the maximum, the least recently used is evicted.
    pub max_in_memory: usize,
    /// Maximum requests waiting for busy sessions, over all sessions.
    pub max_waiting: usize,
    /// Which tenants get their own share of the two maxima above.
    pub sharing: Sharing,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            database: None,
            dir: None,
            kv_size: ByteSize::gib(4),
            ttl: None,
            per_tenant: None,
            max_in_memory: 10_000,
            max_waiting: 256,
            sharing: Sharing::default(),
        }
    }
}

impl SessionConfig {
    /// Returns whether histories are lost when the process ends.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.database.is_none() && self.dir.is_none()
    }

    fn open_store(&self, tokenizer: Fingerprint) -> Result<Arc<dyn Store>, SessionError> {
        let store: Arc<dyn Store> = match (&self.database, &self.dir) {
            (Some(database), _) => Arc::new(Postgres::new(database.clone(), tokenizer)),
            (None, Some(dir)) => Arc::new(Directory::open(dir, tokenizer)?),
            (None, None) => Arc::new(Memory::new(self.max_in_memory, self.sharing)),
        };
        Ok(Arc::new(Guarded(store)))
    }
}

/// All sessions of this server; cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<SessionsInner>);

struct SessionsInner {
    engine: EngineHandle,
    context_length: usize,
    config: SessionConfig,
    store: Arc<dyn Store>,
    queue: Arc<Queue>,
    /// Bounds concurrent lists, each of which queries the worker for up to a thousand contexts.
    lists: Turns,
    snapshots: Option<Arc<Snapshots>>,
    /// Turns that are committed after their client has disconnected.
    background: TaskTracker,
    sweeping: OnceLock<DropGuard>,
}

impl Sessions {
    /// Opens the session store.
    ///
    /// `snapshots` receive the KV blocks that the engine evicts.
    ///
    /// # Errors
    /// [`SessionError::Directory`] if the directory can't be written to.
    pub fn open(
        config: SessionConfig,
        engine: EngineHandle,
        context_length: usize,
        tokenizer: Fingerprint,
        snapshots: Option<Arc<Snapshots>>,
    ) -> Result<Self, SessionError> {
        let store = config.open_store(tokenizer)?;
        let sessions = Self(Arc::new(SessionsInner {
            engine,
            context_length,
            queue: Queue::new(config.max_waiting, config.sharing),
            lists: Turns::new(LISTS),
            config,
            store,
            snapshots,
            background: TaskTracker::new(),
            sweeping: OnceLock::new(),
        }));
        sessions.start_sweeping();
        Ok(sessions)
    }

    /// Starts the sweep for expired sessions once there is a runtime, unless it is running.
    fn start_sweeping(&self) {
        if let Ok(runtime) = Handle::try_current() {
            self.0.sweeping.get_or_init(|| {
                let stop = CancellationToken::new();
                let (store, ttl) = (Arc::clone(&self.0.store), self.0.config.ttl);
                runtime.spawn(sweep(store, ttl, stop.clone()));
                stop.drop_guard()
            });
        }
    }

    /// Begins a turn on a session, which need not exist yet.
    ///
    /// # Errors
    /// [`SessionError::Busy`] if another turn is running and `if_busy` says not to wait;
    /// [`SessionError::WaitTimedOut`] if the session is not free within the engine's `queue_timeout`;
    /// [`SessionError::Limit`] if the tenant has too many sessions; [`SessionError::Disk`].
    pub async fn begin(&self, key: &SessionKey, if_busy: IfBusy) -> Result<Turn, SessionError> {
        self.start_sweeping();
        let (guard, mut held) = self.take(key, if_busy).await?;
        held.history = held
            .history
            .filter(|history| !history.has_expired(self.0.config.ttl));
        let turn = self.turn(guard, held);
        if !turn.exists() {
            self.check_limit(key).await?;
        }
        Ok(turn)
    }

    /// Waits until the session is free, in this process and in other servers that share the store.
    async fn take(
        &self,
        key: &SessionKey,
        if_busy: IfBusy,
    ) -> Result<(TurnGuard, HeldSession), SessionError> {
        let limit = self.0.engine.limits().queue_timeout;
        let taken = timeout(limit, async {
            let guard = self.0.queue.begin(key, if_busy).await?;
            let held = self.0.store.hold(key, if_busy).await?;
            Ok((guard, held))
        });
        taken.await.unwrap_or_else(|_| {
            Err(SessionError::WaitTimedOut {
                id: key.id.to_string(),
                limit,
            })
        })
    }

    /// Checks that the tenant may have one more session.
    async fn check_limit(&self, key: &SessionKey) -> Result<(), SessionError> {
        let Some(limit) = self.0.config.per_tenant else {
            return Ok(());
        };
        let (ttl, beginning) = (self.0.config.ttl, self.0.queue.keys());
        let count = self.0.store.count_others(key, ttl, &beginning).await?;
        if count >= limit {
            return Err(SessionError::Limit { limit });
        }
        Ok(())
    }

    /// Restores KV blocks of a request's context from disk into the KV cache, if that is faster than
    /// computing them. Blocks that can't be restored are computed.
    pub async fn restore(&self, request: &GenerateRequest) {
        let Some(snapshots) = self.0.snapshots.as_ref().filter(|_| request.keep_kv) else {
            return;
        };
        let tokens = [&request.history[..], &request.prompt].concat();
        let start = context_start(tokens.len(), self.0.context_length);
        // The last token is computed in any case.
        let context = tokens.get(start..tokens.len().saturating_sub(1));
        let context = context.unwrap_or_default();
        let restored = snapshots.restore(&self.0.engine, request.tenant, context);
        if let Err(error) = restored.await {
            tracing::warn!(%error, "KV blocks of a session not restored; recomputing them");
        }
    }

    /// Lists the sessions of a tenant, most recently used first: at most `limit` of those after
    /// `after`. Also returns whether there are more.
    ///
    /// # Errors
    /// [`SessionError::Disk`]; [`SessionError::NotFound`] if `after` is not one of them;
    /// [`SessionError::Engine`] if the worker has stopped.
    pub async fn list(
        &self,
        tenant: Tenant,
        after: Option<&SessionId>,
        limit: usize,
    ) -> Result<(Vec<SessionInfo>, bool), SessionError> {
        let share = self.0.config.sharing.share(tenant);
        let _turn = self.0.lists.wait(share, 0, 1).await;
        // Before the histories are read, so that a session reported as not busy is complete.
        let busy = self.0.queue.keys().into_iter();
        let busy = busy.filter(|key| key.tenant == tenant);
        let busy = busy.filter_map(|key| Some((self.0.queue.since(&key)?, key)));
        let mut busy: HashMap<_, _> = busy.map(|(since, key)| (key, since)).collect();
        let mut all = self.0.store.list(tenant).await?;
        all.retain(|entry| !has_expired(entry.last_used, self.0.config.ttl));
        let mut all: Vec<_> = all
            .into_iter()
            .map(|entry| (busy.remove(&entry.key), entry))
            .collect();
        all.extend(busy.into_iter().map(|(key, since)| {
            let last_used = since;
            (Some(since), Entry { key, last_used })
        }));
        all.sort_by(|(_, was), (_, is)| {
            let by_use = is.last_used.cmp(&was.last_used);
            by_use.then_with(|| was.key.cmp(&is.key))
        });
        if let Some(after) = after {
            let at = all.iter().position(|(_, entry)| entry.key.id == *after);
            let at = at.ok_or_else(|| SessionError::NotFound {
                id: after.to_string(),
            })?;
            all.drain(..=at);
        }
        let has_more = all.len() > limit;
        all.truncate(limit);
        let keys: Vec<_> = all.iter().map(|(_, entry)| entry.key.clone()).collect();
        let histories = self.0.store.read(&keys).await?;
        let mut histories: HashMap<_, _> = histories.into_iter().collect();
        let infos = all.into_iter().filter_map(|(since, Entry { key, .. })| {
            // Sessions deleted in the meantime are left out.
            let history = histories
                .remove(&key)
                .or_else(|| since.map(empty_history))?;
            Some(self.info(key, history, since.is_some()))
        });
        // A few at a time: the worker answers all pending queries before its next step.
        let infos = stream::iter(infos).buffered(QUERIES).try_collect().await?;
        Ok((infos, has_more))
    }

    /// Returns one session.
    ///
    /// # Errors
    /// [`SessionError::NotFound`], [`SessionError::Disk`], [`SessionError::Engine`].
    pub async fn get(&self, key: &SessionKey) -> Result<SessionInfo, SessionError> {
        // Before the history is read, so that a session reported as not busy is complete.
        let since = self.0.queue.since(key);
        let found = self.0.store.read(std::slice::from_ref(key)).await?;
        let found = found.into_iter().next().map(|(_, history)| history);
        let found = found.filter(|history| !history.has_expired(self.0.config.ttl));
        let history = found.or_else(|| since.map(empty_history));
        let history = history.ok_or_else(|| not_found(key))?;
        self.info(key.clone(), history, since.is_some()).await
    }

    /// Deletes a session. A running turn continues, but is not stored.
    ///
    /// # Errors
    /// [`SessionError::NotFound`]; [`SessionError::Busy`] if another server is using it.
    pub async fn delete(&self, key: &SessionKey) -> Result<(), SessionError> {
        match self.0.queue.delete_under(key) {
            Some(true) => {
                let forgotten = self.0.store.forget(key).await;
                if forgotten.is_err() {
                    // The running turn is to be stored after all.
                    self.0.queue.undelete(key);
                }
                forgotten
            }
            Some(false) => Err(not_found(key)),
            None => {
                let turn = self.begin_existing(key, IfBusy::Error).await?;
                turn.delete().await
            }
        }
    }

    /// Creates a session from the first `at` tokens of another session's history, or from all of it.
    ///
    /// # Errors
    /// [`SessionError::NotFound`], [`SessionError::Exists`], [`SessionError::BeyondHistory`], and
    /// those of [`begin`](Self::begin).
    pub async fn fork(
        &self,
        from: &SessionKey,
        to: SessionId,
        at: Option<usize>,
    ) -> Result<SessionInfo, SessionError> {
        let source = self.get(from).await?.tokens;
        self.0.store.used(from);
        let tokens = match at {
            None => source,
            Some(at) => source
                .get(..at)
                .ok_or_else(|| beyond(from, "at", at, &source))?
                .into(),
        };
        let to = SessionKey {
            tenant: from.tenant,
            id: to,
        };
        let exists = || SessionError::Exists {
            id: to.id.to_string(),
        };
        if to == *from {
            return Err(exists());
        }
        let turn = self.begin(&to, IfBusy::Wait).await?;
        if turn.exists() {
            return Err(exists());
        }
        let forked_from = ForkedFrom {
            id: from.id.clone(),
            at: tokens.len(),
        };
        let stored = turn.fork(forked_from, tokens).await?;
        self.info_after_change(to, stored).await
    }

    /// Drops the last `count` tokens of a session.
    ///
    /// # Errors
    /// [`SessionError::NotFound`], [`SessionError::BeyondHistory`], and those of
    /// [`begin`](Self::begin).
    pub async fn rewind(
        &self,
        key: &SessionKey,
        count: usize,
        if_busy: IfBusy,
    ) -> Result<SessionInfo, SessionError> {
        let mut turn = self.begin_existing(key, if_busy).await?;
        let history = turn.history();
        let left = history
            .len()
            .checked_sub(count)
            .and_then(|left| history.get(..left))
            .ok_or_else(|| beyond(key, "tokens", count, history))?;
        let left = Arc::from(left);
        let rewound = turn.end(Some(left)).await?;
        self.info_after_change(key.clone(), rewound).await
    }

    /// Counts the sessions of all tenants.
    ///
    /// # Errors
    /// [`SessionError::Disk`].
    pub async fn count(&self) -> Result<usize, SessionError> {
        self.0.store.count().await
    }

    /// Returns the number of requests waiting for busy sessions.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.queue.waiting()
    }

    /// Returns the KV blocks on disk, if they are stored.
    #[must_use]
    pub fn snapshots(&self) -> Option<&Snapshots> {
        self.0.snapshots.as_deref()
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        &self.0.config
    }

    /// Waits until all background commits are done and all blocks that the engine evicted when it
    /// stopped are on disk. The engine must have been told to stop.
    pub async fn saved(&self) {
        self.0.background.close();
        self.0.background.wait().await;
        self.0.store.close().await;
        if let Some(snapshots) = &self.0.snapshots {
            snapshots.written().await;
        }
    }

    fn turn(&self, guard: TurnGuard, held: HeldSession) -> Turn {
        let background = self.0.background.clone();
        Turn::new(guard, held, background, self.0.snapshots.is_some())
    }

    async fn begin_existing(
        &self,
        key: &SessionKey,
        if_busy: IfBusy,
    ) -> Result<Turn, SessionError> {
        let (guard, held) = self.take(key, if_busy).await?;
        let expired = held
            .history
            .as_ref()
            .is_none_or(|history| history.has_expired(self.0.config.ttl));
        let turn = self.turn(guard, held);
        if expired {
            return Err(not_found(key));
        }
        Ok(turn)
    }

    /// Returns the session after a change, which may have been deleted while it ran.
    async fn info_after_change(
        &self,
        key: SessionKey,
        history: Option<History>,
    ) -> Result<SessionInfo, SessionError> {
        let history = history.ok_or_else(|| not_found(&key))?;
        let busy = self.0.queue.since(&key).is_some();
        self.info(key, history, busy).await
    }

    async fn info(
        &self,
        key: SessionKey,
        history: History,
        busy: bool,
    ) -> Result<SessionInfo, SessionError> {
        let start = context_start(history.tokens.len(), self.0.context_length);
        let context = history.tokens.get(start..).unwrap_or_default();
        let (tenant, tokens) = (key.tenant, context.to_vec());
        let cached_tokens = self.0.engine.resident_tokens(tenant, tokens).await?;
        Ok(SessionInfo {
            busy,
            id: key.id,
            cached_tokens,
            kv_resident: !context.is_empty()
                && cached_tokens >= context.len() / BLOCK_SIZE * BLOCK_SIZE,
            created: history.created,
            last_used: history.last_used,
            tokens: history.tokens,
            forked_from: history.forked_from,
        })
    }
}

/// Returns the history that is shown for a session in its first turn.
fn empty_history(since: SystemTime) -> History {
    History {
        tokens: Arc::from([]),
        created: since,
        last_used: since,
        forked_from: None,
    }
}

fn not_found(key: &SessionKey) -> SessionError {
    SessionError::NotFound {
        id: key.id.to_string(),
    }
}

fn beyond(key: &SessionKey, field: &'static str, value: usize, tokens: &[u32]) -> SessionError {
    SessionError::BeyondHistory {
        field,
        value,
        id: key.id.to_string(),
        tokens: tokens.len(),
    }
}
