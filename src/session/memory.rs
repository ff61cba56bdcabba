//! Histories in memory: all that is kept without a session directory or a database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::history::History;
use super::store::{Entry, Held, Hold, Store};
use super::{IfBusy, SessionError, SessionKey};
use crate::request::Tenant;

/// Histories by name; beyond a limit the least recently used is forgotten.
#[derive(Clone)]
pub(super) struct Memory {
    kept: Arc<Mutex<Kept>>,
    limit: usize,
}

#[derive(Default)]
struct Kept {
    histories: HashMap<SessionKey, (History, u64)>,
    /// Larger is later; times may be equal.
    clock: u64,
}

/// A session whose turn it is in this process, which is the only one.
struct InMemory {
    memory: Memory,
    key: SessionKey,
}

impl Memory {
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Arc::default(),
            limit,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &SessionKey) -> Option<History> {
        let kept = self.kept();
        kept.histories.get(key).map(|(history, _)| history.clone())
    }

    fn put(&self, key: &SessionKey, history: History) {
        let mut kept = self.kept();
        kept.clock += 1;
        let now = kept.clock;
        kept.histories.insert(key.clone(), (history, now));
        while kept.histories.len() > self.limit {
            let oldest = kept.histories.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            kept.histories.remove(&oldest);
        }
    }

    fn take(&self, key: &SessionKey) -> bool {
        self.kept().histories.remove(key).is_some()
    }
}

#[async_trait]
impl Store for Memory {
    async fn hold(&self, key: &SessionKey, _if_busy: IfBusy) -> Result<Held, SessionError> {
        Ok(Held {
            history: self.get(key),
            lost: false,
            hold: Box::new(InMemory {
                memory: self.clone(),
                key: key.clone(),
            }),
        })
    }

    async fn forget(&self, key: &SessionKey) -> Result<(), SessionError> {
        self.take(key);
        Ok(())
    }

    async fn read(&self, keys: &[SessionKey]) -> Result<Vec<(SessionKey, History)>, SessionError> {
        let found = keys
            .iter()
            .filter_map(|key| Some((key.clone(), self.get(key)?)));
        Ok(found.collect())
    }

    async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, SessionError> {
        let kept = self.kept();
        let theirs = kept
            .histories
            .iter()
            .filter(|(key, _)| key.tenant == tenant);
        let entries = theirs.map(|(key, (history, _))| Entry {
            key: key.clone(),
            last_used: history.last_used,
        });
        Ok(entries.collect())
    }

    async fn count_others(
        &self,
        key: &SessionKey,
        ttl: Option<Duration>,
        beginning: &[SessionKey],
    ) -> Result<usize, SessionError> {
        let kept = self.kept();
        let is_other = |other: &SessionKey| other.tenant == key.tenant && other != key;
        let there = kept
            .histories
            .iter()
            .filter(|(other, (history, _))| is_other(other) && !history.has_expired(ttl));
        let new = beginning
            .iter()
            .filter(|other| is_other(other) && !kept.histories.contains_key(*other));
        Ok(there.count() + new.count())
    }

    async fn count(&self) -> Result<usize, SessionError> {
        Ok(self.kept().histories.len())
    }

    async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, SessionError> {
        let mut kept = self.kept();
        let before = kept.histories.len();
        kept.histories
            .retain(|_, (history, _)| !history.has_expired(ttl));
        Ok(before - kept.histories.len())
    }
}

#[async_trait]
impl Hold for InMemory {
    async fn write(
        &self,
        created: Option<SystemTime>,
        tokens: Arc<[u32]>,
    ) -> Result<History, SessionError> {
        let history = History::used_now(created, tokens);
        self.memory.put(&self.key, history.clone());
        Ok(history)
    }

    async fn remove(&self) -> Result<bool, SessionError> {
        Ok(self.memory.take(&self.key))
    }
}
