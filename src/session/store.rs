//! What a place for histories does. There are three: [`memory`](super::memory),
//! [`dir`](super::dir) and [`postgres`](super::postgres).
//!
//! A store knows nothing of turns within this process: [`queue`](super::queue) has seen to it that
//! one turn at a time asks for a session here. What a store must see to is the other processes that
//! share it: while a session is held, no other process changes it, or the holder's write fails.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::history::History;
use super::{IfBusy, SessionError, SessionKey};
use crate::request::Tenant;

/// All histories.
#[async_trait]
pub(super) trait Store: Send + Sync {
    /// Takes hold of a session, which need not exist, and reads it. Its turn must have come in this
    /// process.
    ///
    /// # Errors
    /// [`SessionError::Busy`] if another process holds it and `if_busy` says not to wait.
    async fn hold(&self, key: &SessionKey, if_busy: IfBusy) -> Result<Held, SessionError>;

    /// Removes the history of a session that a turn of this process is on; the turn goes on.
    ///
    /// # Errors
    /// [`SessionError::Busy`] if another process holds it.
    async fn forget(&self, key: &SessionKey) -> Result<(), SessionError>;

    /// Reads sessions that others may be changing: each as it was before a change or after. Those
    /// that do not exist are left out.
    async fn read(&self, keys: &[SessionKey]) -> Result<Vec<(SessionKey, History)>, SessionError>;

    /// Notes that a session was used otherwise than by a turn, where the store evicts those that were not.
    fn used(&self, _key: &SessionKey) {}

    /// Lists the sessions of a tenant, in any order.
    async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, SessionError>;

    /// Counts the sessions of a tenant beside `key`: those that were used within `ttl`, and those in
    /// their first turn. `beginning` are the sessions that turns of this process are on.
    async fn count_others(
        &self,
        key: &SessionKey,
        ttl: Option<Duration>,
        beginning: &[SessionKey],
    ) -> Result<usize, SessionError>;

    /// Counts the sessions of all tenants. A store that is away gives its last count, so that
    /// metrics do not depend on it.
    async fn count(&self) -> Result<usize, SessionError>;

    /// Deletes the sessions that were not used within `ttl`, and what is left of processes that
    /// died; returns the number of sessions deleted.
    async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, SessionError>;

    /// Gives back all that this process holds, before it ends.
    async fn close(&self) {}
}

/// One process's hold on a session. Dropping it gives the session back as it is.
#[async_trait]
pub(super) trait Hold: Send + Sync {
    /// Checks that the session is still held, as far as it is known without asking.
    ///
    /// # Errors
    /// [`SessionError::TakenOver`].
    fn check(&self) -> Result<(), SessionError> {
        Ok(())
    }

    /// Replaces the history; on return it is as durable as the store is. `created` is when the
    /// session's first turn ended, `None` if this is its first.
    ///
    /// # Errors
    /// If the history is not replaced, or if that is not known ([`SessionError::Unknown`]).
    async fn write(
        &self,
        created: Option<SystemTime>,
        tokens: Arc<[u32]>,
    ) -> Result<History, SessionError>;

    /// Removes the session; returns whether it had a history.
    async fn remove(&self) -> Result<bool, SessionError>;
}

/// A session that is held, with what it was when it was taken hold of.
pub(super) struct Held {
    /// `None` if there is no such session.
    pub history: Option<History>,
    /// There was one whose history could not be read, and no turn was kept since.
    pub lost: bool,
    pub hold: Box<dyn Hold>,
}

/// A session in a list.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: SessionKey,
    pub last_used: SystemTime,
}
