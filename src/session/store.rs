//! The interface of session stores. There are three implementations: [`memory`](super::memory),
//! [`dir`](super::dir) and [`postgres`](super::postgres).
//!
//! A store does not know about turns within this process: [`queue`](super::queue) ensures that one
//! turn at a time requests a session here. A store must exclude the other processes that share it:
//! while a session is held, either no other process changes it, or the holder's write fails.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::history::{History, NewHistory};
use super::{IfBusy, SessionError, SessionKey};
use crate::request::Tenant;

/// A store of histories.
#[async_trait]
pub(super) trait Store: Send + Sync {
    /// Acquires a session, which need not exist, and reads it. The caller must have the turn on it in
    /// this process.
    ///
    /// # Errors
    /// [`SessionError::Busy`] if another process holds it and `if_busy` says not to wait.
    async fn hold(&self, key: &SessionKey, if_busy: IfBusy) -> Result<HeldSession, SessionError>;

    /// Removes the history of a session on which a turn of this process is running. The turn
    /// continues.
    ///
    /// # Errors
    /// [`SessionError::Busy`] if another process holds it.
    async fn forget(&self, key: &SessionKey) -> Result<(), SessionError>;

    /// Reads sessions without holding them: each is as it was either before or after a concurrent
    /// change. Missing sessions are left out.
    async fn read(&self, keys: &[SessionKey]) -> Result<Vec<(SessionKey, History)>, SessionError>;

    /// Records a use other than a turn, for stores that evict the least recently used session.
    fn used(&self, _key: &SessionKey) {}

    /// Lists the sessions of a tenant, in any order.
    async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, SessionError>;

    /// Counts the sessions of a tenant other than `key`: those that were used within `ttl`, and those
    /// in their first turn. `beginning` are the sessions in use by this process.
    async fn count_others(
        &self,
        key: &SessionKey,
        ttl: Option<Duration>,
        beginning: &[SessionKey],
    ) -> Result<usize, SessionError>;

    /// Counts the sessions of all tenants. An unavailable store returns its last count, so that metrics
    /// do not depend on it.
    async fn count(&self) -> Result<usize, SessionError>;

    /// Deletes the sessions that were not used within `ttl`, and the leftovers of processes that died.
    /// Returns the number of deleted sessions.
    async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, SessionError>;

    /// Releases everything that this process holds, before it ends.
    async fn close(&self) {}
}

/// A process's hold on a session. Dropping it releases the session unchanged.
#[async_trait]
pub(super) trait Hold: Send + Sync {
    /// Checks that the session is still held, without querying the store.
    ///
    /// # Errors
    /// [`SessionError::TakenOver`].
    fn check(&self) -> Result<(), SessionError> {
        Ok(())
    }

    /// Replaces the history. On return it is as durable as the store.
    ///
    /// # Errors
    /// If the history was not replaced, or if the outcome is unknown ([`SessionError::Unknown`]).
    async fn write(&self, new: NewHistory) -> Result<History, SessionError>;

    /// Removes the session; returns whether it had a history.
    async fn remove(&self) -> Result<bool, SessionError>;
}

/// A session that this process holds, with its state at the time of acquisition.
pub(super) struct HeldSession {
    /// `None` if the session does not exist.
    pub history: Option<History>,
    /// Whether its history could not be read, and no turn has been stored since.
    pub lost: bool,
    pub hold: Box<dyn Hold>,
}

/// A session in a list.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: SessionKey,
    pub last_used: SystemTime,
}
