//! Histories in memory: the store without a session directory or a database.
//!
//! Memory is counted in slots of [`SLOT_TOKENS`] tokens: a session takes one for each that it begins, and at
//! least one, so a limit on slots bounds memory. When all slots are taken, the least recently used session of
//! the share with the most slots is evicted, so no share can evict another's sessions.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::history::{History, NewHistory};
use super::sharing::Sharing;
use super::store::{Entry, HeldSession, Hold, Store};
use super::{IfBusy, SessionError, SessionKey};
use crate::recency::{LastUse, Recency};
use crate::request::Tenant;

/// Tokens per slot: 8 KiB.
pub(super) const SLOT_TOKENS: usize = 2048;

/// A store in memory.
#[derive(Clone)]
pub(super) struct Memory {
    histories: Arc<Mutex<Histories>>,
    /// Maximum slots.
    limit: usize,
    sharing: Sharing,
}

#[derive(Default)]
struct Histories {
    sessions: HashMap<SessionKey, Session>,
    shares: HashMap<Tenant, Share>,
    /// The shares, ordered by slots.
    order: BTreeSet<(usize, Tenant)>,
    slots: usize,
}

/// A session, and its place among those of its share.
struct Session {
    history: History,
    last_use: LastUse,
}

/// The sessions of one share.
#[derive(Default)]
struct Share {
    slots: usize,
    /// Sessions by last use, least recent first.
    by_use: Recency<SessionKey>,
}

/// A hold without a lock: the queue of this process, the only one, already grants one turn at a time.
struct MemoryHold {
    memory: Memory,
    key: SessionKey,
}

/// Returns the slots that a history takes.
fn slots(history: &History) -> usize {
    history.tokens.len().div_ceil(SLOT_TOKENS).max(1)
}

impl Histories {
    fn put(&mut self, share: Tenant, key: &SessionKey, history: History) {
        self.take(share, key);
        let slots = slots(&history);
        let last_use = self.change(share, |share| {
            share.slots += slots;
            share.by_use.push(key.clone())
        });
        self.sessions
            .insert(key.clone(), Session { history, last_use });
        self.slots += slots;
    }

    fn take(&mut self, share: Tenant, key: &SessionKey) -> bool {
        let Some(Session { history, last_use }) = self.sessions.remove(key) else {
            return false;
        };
        let slots = slots(&history);
        self.change(share, |share| {
            share.slots -= slots;
            share.by_use.remove(last_use);
        });
        self.slots -= slots;
        true
    }

    /// Evicts the least recently used session of the share with the most slots.
    fn evict(&mut self) -> bool {
        let Some(&(_, share)) = self.order.last() else {
            return false;
        };
        let oldest = self.shares.get(&share);
        let oldest = oldest.and_then(|share| share.by_use.oldest().cloned());
        oldest.is_some_and(|key| self.take(share, &key))
    }

    fn change<T>(&mut self, of: Tenant, change: impl FnOnce(&mut Share) -> T) -> T {
        let share = self.shares.entry(of).or_default();
        self.order.remove(&(share.slots, of));
        let changed = change(share);
        if share.by_use.is_empty() {
            self.shares.remove(&of);
        } else {
            self.order.insert((share.slots, of));
        }
        changed
    }
}

impl Memory {
    /// Creates an empty store with `limit` slots.
    pub fn new(limit: usize, sharing: Sharing) -> Self {
        Self {
            histories: Arc::default(),
            limit,
            sharing,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Histories> {
        self.histories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &SessionKey) -> Option<History> {
        let histories = self.lock();
        histories
            .sessions
            .get(key)
            .map(|session| session.history.clone())
    }

    fn put(&self, key: &SessionKey, history: History) {
        let mut histories = self.lock();
        histories.put(self.sharing.share(key.tenant), key, history);
        // A session that takes more than `limit` slots stays until the next one is stored.
        while histories.slots > self.limit && histories.sessions.len() > 1 && histories.evict() {}
    }

    fn take(&self, key: &SessionKey) -> bool {
        self.lock().take(self.sharing.share(key.tenant), key)
    }
}

#[async_trait]
impl Store for Memory {
    async fn hold(&self, key: &SessionKey, _if_busy: IfBusy) -> Result<HeldSession, SessionError> {
        Ok(HeldSession {
            history: self.get(key),
            lost: false,
            hold: Box::new(MemoryHold {
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

    fn used(&self, key: &SessionKey) {
        let mut histories = self.lock();
        if let Some(session) = histories.sessions.get(key) {
            let history = session.history.clone();
            histories.put(self.sharing.share(key.tenant), key, history);
        }
    }

    async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, SessionError> {
        let histories = self.lock();
        let theirs = histories
            .sessions
            .iter()
            .filter(|(key, _)| key.tenant == tenant);
        let entries = theirs.map(|(key, session)| Entry {
            key: key.clone(),
            last_used: session.history.last_used,
        });
        Ok(entries.collect())
    }

    async fn count_others(
        &self,
        key: &SessionKey,
        ttl: Option<Duration>,
        beginning: &[SessionKey],
    ) -> Result<usize, SessionError> {
        let histories = self.lock();
        let is_other = |other: &SessionKey| other.tenant == key.tenant && other != key;
        let there = histories
            .sessions
            .iter()
            .filter(|(other, session)| is_other(other) && !session.history.has_expired(ttl));
        let new = beginning
            .iter()
            .filter(|other| is_other(other) && !histories.sessions.contains_key(*other));
        Ok(there.count() + new.count())
    }

    async fn count(&self) -> Result<usize, SessionError> {
        Ok(self.lock().sessions.len())
    }

    async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, SessionError> {
        let mut histories = self.lock();
        let expired = histories
            .sessions
            .iter()
            .filter(|(_, session)| session.history.has_expired(ttl));
        let expired: Vec<_> = expired.map(|(key, _)| key.clone()).collect();
        for key in &expired {
            histories.take(self.sharing.share(key.tenant), key);
        }
        Ok(expired.len())
    }
}

#[async_trait]
impl Hold for MemoryHold {
    async fn write(&self, new: NewHistory) -> Result<History, SessionError> {
        let history = new.used_now();
        self.memory.put(&self.key, history.clone());
        Ok(history)
    }

    async fn remove(&self) -> Result<bool, SessionError> {
        Ok(self.memory.take(&self.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::SessionId;

    fn tenant(n: u8) -> Tenant {
        Tenant::of_key(&[n])
    }

    fn key(tenant: Tenant, name: &str) -> SessionKey {
        let id = SessionId::parse(name).expect("a valid name");
        SessionKey { tenant, id }
    }

    fn history(tokens: usize) -> History {
        NewHistory::first(vec![0; tokens]).used_now()
    }

    fn names(memory: &Memory) -> Vec<String> {
        let histories = memory.lock();
        let mut names: Vec<_> = histories
            .sessions
            .keys()
            .map(|key| key.id.to_string())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_long_history_takes_the_room_of_many() {
        let memory = Memory::new(10, Sharing::ByTenant);
        for n in 0..10 {
            memory.put(&key(tenant(0), &format!("short-{n}")), history(5));
        }
        memory.used(&key(tenant(0), "short-0"));
        memory.put(&key(tenant(0), "long"), history(8 * SLOT_TOKENS));
        assert_eq!(names(&memory), ["long", "short-0", "short-9"]);
        // As many as there can be hold no more tokens than the room has.
        for n in 0..2000 {
            let fork = key(tenant(0), &format!("fork-{n}"));
            memory.put(&fork, history(5 * SLOT_TOKENS - 10));
        }
        let histories = memory.lock();
        let tokens = histories
            .sessions
            .values()
            .map(|session| session.history.tokens.len());
        assert_eq!((histories.slots, histories.sessions.len()), (10, 2));
        assert!(tokens.sum::<usize>() <= 10 * SLOT_TOKENS);
    }

    #[test]
    fn one_tenant_cannot_evict_anothers_sessions() {
        let memory = Memory::new(10, Sharing::ByTenant);
        let (honest, greedy) = (tenant(0), tenant(1));
        memory.put(&key(honest, "mine"), history(5));
        memory.put(&key(honest, "mine-too"), history(5));
        for n in 0..1000 {
            memory.put(&key(greedy, &format!("theirs-{n}")), history(5));
        }
        assert!(memory.get(&key(honest, "mine")).is_some());
        assert!(memory.get(&key(honest, "mine-too")).is_some());
        let histories = memory.lock();
        assert_eq!((histories.slots, histories.shares.len()), (10, 2));
    }

    #[test]
    fn tenants_that_are_not_checked_share_as_one() {
        let memory = Memory::new(2, Sharing::AsOne);
        for n in 0..3 {
            memory.put(&key(tenant(n), &format!("of-{n}")), history(5));
        }
        assert_eq!(names(&memory), ["of-1", "of-2"]);
        assert!(memory.take(&key(tenant(1), "of-1")));
        assert!(!memory.take(&key(tenant(1), "of-1")));
        assert!(memory.take(&key(tenant(2), "of-2")));
        let histories = memory.lock();
        assert_eq!(
            (
                histories.slots,
                histories.shares.len(),
                histories.order.len()
            ),
            (0, 0, 0)
        );
    }
}
