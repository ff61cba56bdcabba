//! Leases: a turn's hold on its session is taken, renewed, and released with the turn's commit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval};

use super::failed;
use super::link::{Fault, jittered};
use super::rows::{CommitOutcome, DeleteOutcome, Rows, Version};
use crate::session::history::{History, NewHistory};
use crate::session::store::Hold;
use crate::session::{SessionError, SessionKey};

/// Maximum time for which a commit waits for an unavailable database.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a commit is retried.
const PAUSE: Duration = Duration::from_millis(50);
/// Renewals within the duration of a lease: two may fail.
const RENEWALS: u32 = 3;

/// The leases of this server's turns.
pub(super) struct Leases {
    rows: Rows,
    live: Mutex<HashMap<Version, LiveLease>>,
    dropped: UnboundedSender<(SessionKey, Version)>,
}

struct LiveLease {
    key: SessionKey,
    state: Arc<LeaseState>,
}

#[derive(Default)]
struct LeaseState {
    /// Another server has taken the session.
    lost: AtomicBool,
    /// The turn is being committed or the session removed, so a missing row does not mean that the
    /// lease was lost.
    ending: AtomicBool,
}

/// The outcome of an attempt to take a session.
pub(super) enum TakeOutcome {
    Taken {
        history: Option<History>,
        lease: Lease,
    },
    /// Another server holds the session.
    Busy,
}

/// The lease of one turn. Dropping it before the commit releases the session unchanged.
pub(super) struct Lease {
    leases: Arc<Leases>,
    key: SessionKey,
    version: Version,
    had_history: bool,
    state: Arc<LeaseState>,
    /// Whether the session has been released.
    over: AtomicBool,
}

impl Leases {
    /// Starts the tasks that renew live leases and release dropped ones.
    pub fn start(rows: Rows, lease: Duration, runtime: &Handle) -> Arc<Self> {
        let (dropped, to_release) = unbounded_channel();
        let leases = Arc::new(Self {
            rows: rows.clone(),
            live: Mutex::default(),
            dropped,
        });
        runtime.spawn(renew(Arc::downgrade(&leases), lease / RENEWALS));
        runtime.spawn(release(rows, to_release));
        leases
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Version, LiveLease>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a session for a turn.
    ///
    /// # Errors
    /// [`SessionError::Away`], [`SessionError::Database`].
    pub async fn take(self: &Arc<Self>, key: &SessionKey) -> Result<TakeOutcome, SessionError> {
        let (leases, key) = (Arc::clone(self), key.clone());
        // Spawned, so that it completes even if the client disconnects: what is taken must be released.
        let taking = tokio::spawn(async move {
            let taken = leases.rows.take(&key).await;
            let taken = taken.map_err(|fault| failed(fault, "the session was not changed"))?;
            let Some(taken) = taken else {
                return Ok(TakeOutcome::Busy);
            };
            let state = Arc::<LeaseState>::default();
            let live = LiveLease {
                key: key.clone(),
                state: Arc::clone(&state),
            };
            leases.live().insert(taken.version, live);
            let lease = Lease {
                leases,
                key,
                version: taken.version,
                had_history: taken.history.is_some(),
                state,
                over: AtomicBool::new(false),
            };
            let history = taken.history;
            Ok(TakeOutcome::Taken { history, lease })
        });
        let taken = taking.await;
        taken.unwrap_or_else(|panic| Err(SessionError::Database(panic.to_string())))
    }
}

/// Renews all live leases periodically.
async fn renew(leases: Weak<Leases>, every: Duration) {
    let mut ticks = interval(every);
    // If the process was stopped for a while, one renewal is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(leases) = leases.upgrade() else {
            return;
        };
        let live: Vec<(SessionKey, Version)> = leases
            .live()
            .iter()
            .map(|(version, live)| (live.key.clone(), *version))
            .collect();
        if live.is_empty() {
            continue;
        }
        // While the database is unavailable, no other server can take over a session either.
        let Ok(renewed) = leases.rows.renew(&live).await else {
            continue;
        };
        let left = leases.live();
        for (key, version) in live {
            if let Some(LiveLease { state, .. }) = left.get(&version)
                && !renewed.contains(&version)
                && !state.ending.load(Ordering::SeqCst)
                && !state.lost.swap(true, Ordering::SeqCst)
            {
                tracing::warn!(id = %key.id, "session taken over by another server");
            }
        }
    }
}

/// Releases dropped leases. Those that can't be released expire.
async fn release(rows: Rows, mut dropped: UnboundedReceiver<(SessionKey, Version)>) {
    let mut held = Vec::new();
    while dropped.recv_many(&mut held, 100).await > 0 {
        if let Err(fault) = rows.release(&held).await {
            tracing::debug!(?fault, "leases not released; they will expire");
        }
        held.clear();
    }
}

impl Lease {
    /// Marks the session as released.
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.leases.live().remove(&self.version);
    }

    fn taken_over(&self) -> SessionError {
        SessionError::TakenOver {
            id: self.key.id.to_string(),
        }
    }

    /// Tries to commit a turn; `None` if it should be retried. `in_doubt` is true if an earlier
    /// attempt may have succeeded.
    async fn try_commit(
        &self,
        new: &NewHistory,
        in_doubt: &mut bool,
    ) -> Option<Result<(SystemTime, SystemTime), SessionError>> {
        let rows = &self.leases.rows;
        let committed = rows.commit(&self.key, self.version, new);
        match committed.await {
            Ok(Some(times)) => return Some(Ok(times)),
            Ok(None) => (),
            Err(Fault::Away) => return None,
            Err(Fault::Unanswered) => {
                *in_doubt = true;
                return None;
            }
            Err(Fault::Refused(why)) => return Some(Err(SessionError::Database(why))),
        }
        // The row no longer has this version: an earlier attempt was committed, or another server took
        // the session.
        if !*in_doubt {
            return Some(Err(self.taken_over()));
        }
        match rows.outcome(&self.key, self.version).await {
            Ok(CommitOutcome::Committed { created, last_used }) => Some(Ok((created, last_used))),
            Ok(CommitOutcome::NotCommitted) => Some(Err(self.taken_over())),
            Ok(CommitOutcome::Unknown) => Some(Err(self.unknown())),
            Err(Fault::Refused(why)) => Some(Err(SessionError::Database(why))),
            Err(_) => None,
        }
    }

    fn unknown(&self) -> SessionError {
        SessionError::Unknown {
            id: self.key.id.to_string(),
        }
    }
}

#[async_trait]
impl Hold for Lease {
    fn check(&self) -> Result<(), SessionError> {
        if self.state.lost.load(Ordering::SeqCst) {
            return Err(self.taken_over());
        }
        Ok(())
    }

    async fn write(&self, new: NewHistory) -> Result<History, SessionError> {
        self.state.ending.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        let mut in_doubt = false;
        loop {
            let committed = self.try_commit(&new, &mut in_doubt);
            match committed.await {
                Some(Ok((created, last_used))) => {
                    self.end();
                    return Ok(History {
                        tokens: new.tokens,
                        created,
                        last_used,
                        forked_from: new.forked_from,
                    });
                }
                Some(Err(error)) => return Err(error),
                None => (),
            }
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let link = &self.leases.rows.link;
            tokio::time::sleep(jittered(PAUSE)).await;
            if left.is_zero() || !link.opens_within(left).await {
                return Err(if in_doubt {
                    self.unknown()
                } else {
                    SessionError::Away {
                        what: "the turn was not stored",
                    }
                });
            }
        }
    }

    async fn remove(&self) -> Result<bool, SessionError> {
        self.state.ending.store(true, Ordering::SeqCst);
        let deleted = self.leases.rows.delete(&self.key, self.version).await;
        let deleted = deleted.map_err(|fault| failed(fault, "the session was not deleted"))?;
        let is_lost = self.had_history && !self.over.load(Ordering::SeqCst);
        self.end();
        match deleted {
            DeleteOutcome::Deleted { had_history } => Ok(had_history),
            DeleteOutcome::TakenOver if is_lost => Err(self.taken_over()),
            DeleteOutcome::TakenOver | DeleteOutcome::NotFound => Ok(false),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.live().remove(&self.version);
        if !self.over.load(Ordering::SeqCst) {
            let held = (self.key.clone(), self.version);
            // If the runtime has ended, the lease is not released and expires.
            let _ = self.leases.dropped.send(held);
        }
    }
}
