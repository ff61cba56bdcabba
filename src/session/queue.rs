//! Whose turn it is on each session, in this process: one at a time, in order of arrival.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::OwnedMutexGuard;

use super::sharing::Sharing;
use super::{IfBusy, SessionError, SessionKey};
use crate::fair::Holds;

/// The sessions that someone is on or waits for.
pub(super) struct Queue {
    places: Mutex<HashMap<SessionKey, Arc<Place>>>,
    waiting: Holds,
    max_waiting: usize,
    sharing: Sharing,
}

/// One session's.
struct Place {
    turn: Arc<tokio::sync::Mutex<()>>,
    since: SystemTime,
    /// The session was deleted under the present turn.
    deleted: AtomicBool,
}

/// The present turn on a session; the next one begins when it is dropped.
pub(super) struct OnTurn {
    queue: Arc<Queue>,
    key: SessionKey,
    place: Arc<Place>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Queue {
    /// `max_waiting` requests may wait for their turns, over all sessions. A tenant beyond them may still
    /// wait with its share.
    pub fn new(max_waiting: usize, sharing: Sharing) -> Arc<Self> {
        Arc::new(Self {
            places: Mutex::default(),
            waiting: Holds::new(max_waiting),
            max_waiting,
            sharing,
        })
    }

    fn places(&self) -> MutexGuard<'_, HashMap<SessionKey, Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn, or not.
    ///
    /// # Errors
    /// [`SessionError::Busy`] or [`SessionError::TooManyWait`].
    pub async fn begin(
        self: &Arc<Self>,
        key: &SessionKey,
        if_busy: IfBusy,
    ) -> Result<OnTurn, SessionError> {
        let place = Arc::clone(self.places().entry(key.clone()).or_insert_with(|| {
            Arc::new(Place {
                turn: Arc::default(),
                since: SystemTime::now(),
                deleted: AtomicBool::new(false),
            })
        }));
        // From here on its drop takes the place away again if nobody else is there.
        let mut on_turn = OnTurn {
            queue: Arc::clone(self),
            key: key.clone(),
            place,
            guard: None,
        };
        let turn = Arc::clone(&on_turn.place.turn);
        on_turn.guard = Some(match Arc::clone(&turn).try_lock_owned() {
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
        Ok(on_turn)
    }

    /// Since when someone has been on or has waited for this session without a break; `None` if
    /// nobody is, or it was deleted since.
    pub fn since(&self, key: &SessionKey) -> Option<SystemTime> {
        let places = self.places();
        let place = places.get(key);
        let place = place.filter(|place| !place.deleted.load(Ordering::SeqCst));
        place.map(|place| place.since)
    }

    /// The sessions that someone is on.
    pub fn keys(&self) -> Vec<SessionKey> {
        self.places().keys().cloned().collect()
    }

    /// Requests that wait for their turns.
    pub fn waiting(&self) -> usize {
        self.waiting.total()
    }

    /// Marks the session of the present turn as deleted; `None` if it is nobody's turn, `false` if
    /// it was deleted before.
    pub fn delete_under(&self, key: &SessionKey) -> Option<bool> {
        let places = self.places();
        let place = places.get(key).filter(|p| p.turn.try_lock().is_err())?;
        Some(!place.deleted.swap(true, Ordering::SeqCst))
    }

    /// Takes the mark of [`delete_under`](Self::delete_under) back.
    pub fn undelete(&self, key: &SessionKey) {
        if let Some(place) = self.places().get(key) {
            place.deleted.store(false, Ordering::SeqCst);
        }
    }
}

impl OnTurn {
    /// The session it is on.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// Whether the session was deleted since the turn began.
    pub fn is_deleted(&self) -> bool {
        self.place.deleted.load(Ordering::SeqCst)
    }

    /// Ends the turn, unless the session was deleted under it: then what the turn has written must
    /// go first, or who comes next would find it.
    pub fn end_unless_deleted(&mut self) -> bool {
        // Nobody deletes it between the question and the answer.
        let _places = self.queue.places();
        let ends = !self.place.deleted.load(Ordering::SeqCst);
        if ends {
            self.guard = None;
        }
        ends
    }
}

impl Drop for OnTurn {
    fn drop(&mut self) {
        let mut places = self.queue.places();
        if self.guard.is_some() {
            self.place.deleted.store(false, Ordering::SeqCst);
        }
        self.guard = None;
        // One is the map's and one ours.
        if Arc::strong_count(&self.place) == 2 {
            places.remove(&self.key);
        }
    }
}

/// The refusal where someone else is on the session.
pub(super) fn busy(key: &SessionKey) -> SessionError {
    SessionError::Busy {
        id: key.id.to_string(),
    }
}
