//! Histories in memory: all that is kept without a session directory.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::SessionKey;
use super::history::History;

/// Histories by name; beyond a limit the least recently used is forgotten.
pub(super) struct Memory {
    kept: Mutex<Kept>,
    limit: usize,
}

#[derive(Default)]
struct Kept {
    histories: HashMap<SessionKey, (History, u64)>,
    /// Larger is later; times may be equal.
    clock: u64,
}

impl Memory {
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Mutex::default(),
            limit,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read(&self, key: &SessionKey) -> Option<History> {
        let kept = self.kept();
        kept.histories.get(key).map(|(history, _)| history.clone())
    }

    pub fn write(&self, key: &SessionKey, history: History) {
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

    pub fn remove(&self, key: &SessionKey) -> bool {
        self.kept().histories.remove(key).is_some()
    }

    pub fn count_all(&self) -> usize {
        self.kept().histories.len()
    }

    /// All that `wanted` picks.
    pub fn list(&self, wanted: impl Fn(&SessionKey) -> bool) -> Vec<(SessionKey, History)> {
        let kept = self.kept();
        let wanted = kept.histories.iter().filter(|(key, _)| wanted(key));
        wanted
            .map(|(key, (history, _))| (key.clone(), history.clone()))
            .collect()
    }
}
