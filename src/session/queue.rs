//! Serializes the turns on each session within this process, in order of arrival.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::OwnedMutexGuard;

use super::sharing::Sharing;
use super::{IfBusy, SessionError, SessionKey};
use crate::fair::Holds;

/// The sessions that requests of this process use or wait for.
pub(super) struct Queue {
    slots: Mutex<HashMap<SessionKey, Arc<Slot>>>,
    waiting: Holds,
    max_waiting: usize,
    sharing: Sharing,
}

/// The queue of one session.
struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    since: SystemTime,
    /// Whether the session was deleted during the current turn.
    deleted: AtomicBool,
}

/// The current turn on a session; the next one begins when it is dropped.
pub(super) struct TurnGuard {
    queue: Arc<Queue>,
    key: SessionKey,
    slot: Arc<Slot>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Queue {
    /// Creates a queue in which `max_waiting` requests may wait, over all sessions. When it is full, a
    /// tenant below its share may still wait.
    pub fn new(max_waiting: usize, sharing: Sharing) -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            waiting: Holds::new(max_waiting),
            max_waiting,
            sharing,
        })
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<SessionKey, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a turn; `if_busy` decides whether to wait for earlier ones.
    ///
    /// # Errors
    /// [`SessionError::Busy`] or [`SessionError::TooManyWait`].
    pub async fn begin(
        self: &Arc<Self>,
        key: &SessionKey,
        if_busy: IfBusy,
    ) -> Result<TurnGuard, SessionError> {
        let slot = Arc::clone(self.slots().entry(key.clone()).or_insert_with(|| {
            Arc::new(Slot {
                turn: Arc::default(),
                since: SystemTime::now(),
                deleted: AtomicBool::new(false),
            })
        }));
        // Dropping it removes the slot if no other request uses it.
        let mut current = TurnGuard {
            queue: Arc::clone(self),
            key: key.clone(),
            slot,
            guard: None,
        };
        let turn = Arc::clone(&current.slot.turn);
        current.guard = Some(match Arc::clone(&turn).try_lock_owned() {
            Ok(guard) => guard,
            Err(_) if if_busy == IfBusy::Error => return Err(busy(key)),
            Err(_) => {
                let waits = self.waiting.try_hold(self.sharing.share(key.tenant), 1);
                let _waits = waits.ok_or(SessionError::TooManyWait {
                    limit: self.max_waiting,
                })?;
                turn.lock_owned().await
            }
        });
        Ok(current)
    }

    /// Returns the time since which the session has been continuously in use or waited for; `None` if
    /// it is not, or was deleted.
    pub fn since(&self, key: &SessionKey) -> Option<SystemTime> {
        let slots = self.slots();
        let slot = slots.get(key);
        let slot = slot.filter(|slot| !slot.deleted.load(Ordering::SeqCst));
        slot.map(|slot| slot.since)
    }

    /// Returns the sessions that are in use or waited for.
    pub fn keys(&self) -> Vec<SessionKey> {
        self.slots().keys().cloned().collect()
    }

    /// Returns the number of waiting requests.
    pub fn waiting(&self) -> usize {
        self.waiting.total()
    }

    /// Marks a session as deleted while a turn runs on it. Returns `None` if no turn runs on it,
    /// `false` if it was already marked.
    pub fn delete_under(&self, key: &SessionKey) -> Option<bool> {
        let slots = self.slots();
        let slot = slots.get(key).filter(|s| s.turn.try_lock().is_err())?;
        Some(!slot.deleted.swap(true, Ordering::SeqCst))
    }

    /// Undoes [`delete_under`](Self::delete_under).
    pub fn undelete(&self, key: &SessionKey) {
        if let Some(slot) = self.slots().get(key) {
            slot.deleted.store(false, Ordering::SeqCst);
        }
    }
}

impl TurnGuard {
    /// Returns the session.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// Returns whether the session was deleted since the turn began.
    pub fn is_deleted(&self) -> bool {
        self.slot.deleted.load(Ordering::SeqCst)
    }

    /// Ends the turn, unless the session was deleted while it ran: then the caller must first remove
    /// what the turn wrote, or the next turn would find it. Returns whether the turn has ended.
    pub fn end_unless_deleted(&mut self) -> bool {
        // Prevents a deletion between the check and the end.
        let _slots = self.queue.slots();
        let ends = !self.slot.deleted.load(Ordering::SeqCst);
        if ends {
            self.guard = None;
        }
        ends
    }
}

impl Drop for TurnGuard {
    fn drop(&mut self) {
        let mut slots = self.queue.slots();
        if self.guard.is_some() {
            self.slot.deleted.store(false, Ordering::SeqCst);
        }
        self.guard = None;
        // The map holds one reference and this guard the other.
        if Arc::strong_count(&self.slot) == 2 {
            slots.remove(&self.key);
        }
    }
}

/// Returns the error for a session that another request is using.
pub(super) fn busy(key: &SessionKey) -> SessionError {
    SessionError::Busy {
        id: key.id.to_string(),
    }
}
