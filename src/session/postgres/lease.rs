//! A turn's hold on its session: taken, renewed, and given back with what the turn made.

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
use super::rows::{Deleted, Outcome, Rows, Version};
use crate::session::history::History;
use crate::session::store::Hold;
use crate::session::{SessionError, SessionKey};

/// How long a turn may wait to be kept while the database is away.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a turn is tried to be kept again.
const PAUSE: Duration = Duration::from_millis(50);
/// Renewals in the time of one lease: two may fail.
const RENEWALS: u32 = 3;

/// The leases of this server's turns.
pub(super) struct Leases {
    rows: Rows,
    live: Mutex<HashMap<Version, Live>>,
    dropped: UnboundedSender<(SessionKey, Version)>,
}

struct Live {
    key: SessionKey,
    state: Arc<State>,
}

/// How it is with a lease.
#[derive(Default)]
struct State {
    /// Another server has taken the session.
    lost: AtomicBool,
    /// The turn is being kept, or the session removed: then a lease that is not there is no loss.
    ending: AtomicBool,
}

/// What comes of an attempt to take a session.
pub(super) enum Take {
    Taken {
        history: Option<History>,
        lease: Lease,
    },
    /// Another server has it.
    Busy,
}

/// One turn's. Dropped before the turn is kept, it gives the session back as it is.
pub(super) struct Lease {
    leases: Arc<Leases>,
    key: SessionKey,
    version: Version,
    had_history: bool,
    state: Arc<State>,
    /// The session is given back.
    over: AtomicBool,
}

impl Leases {
    /// Begins to renew what is taken, and to give back what is dropped.
    pub fn keep(rows: Rows, lease: Duration, runtime: &Handle) -> Arc<Self> {
        let (dropped, given_back) = unbounded_channel();
        let leases = Arc::new(Self {
            rows: rows.clone(),
            live: Mutex::default(),
            dropped,
        });
        runtime.spawn(renew(Arc::downgrade(&leases), lease / RENEWALS));
        runtime.spawn(give_back(rows, given_back));
        leases
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Version, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a session for a turn.
    ///
    /// # Errors
    /// [`SessionError::Away`], [`SessionError::Database`].
    pub async fn take(self: &Arc<Self>, key: &SessionKey) -> Result<Take, SessionError> {
        let (leases, key) = (Arc::clone(self), key.clone());
        // To its end even if the client goes away, so that what is taken is also given back.
        let taking = tokio::spawn(async move {
            let taken = leases.rows.take(&key).await;
            let taken = taken.map_err(|fault| failed(fault, "the session was not changed"))?;
            let Some(taken) = taken else {
                return Ok(Take::Busy);
            };
            let state = Arc::<State>::default();
            let live = Live {
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
            Ok(Take::Taken { history, lease })
        });
        let taken = taking.await;
        taken.unwrap_or_else(|panic| Err(SessionError::Database(panic.to_string())))
    }
}

/// Renews all leases, again and again.
async fn renew(leases: Weak<Leases>, every: Duration) {
    let mut ticks = interval(every);
    // After a while in which the process was stopped, one renewal will do.
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
        // While the database is away no one takes anything over either.
        let Ok(renewed) = leases.rows.renew(&live).await else {
            continue;
        };
        let left = leases.live();
        for (key, version) in live {
            if let Some(Live { state, .. }) = left.get(&version)
                && !renewed.contains(&version)
                && !state.ending.load(Ordering::SeqCst)
                && !state.lost.swap(true, Ordering::SeqCst)
            {
                tracing::warn!(id = %key.id, "session taken over by another server");
            }
        }
    }
}

/// Gives back what was dropped. What can't be given back expires.
async fn give_back(rows: Rows, mut dropped: UnboundedReceiver<(SessionKey, Version)>) {
    let mut held = Vec::new();
    while dropped.recv_many(&mut held, 100).await > 0 {
        if let Err(fault) = rows.release(&held).await {
            tracing::debug!(?fault, "leases not given back; they expire");
        }
        held.clear();
    }
}

impl Lease {
    /// The session is given back.
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.leases.live().remove(&self.version);
    }

    fn taken_over(&self) -> SessionError {
        SessionError::TakenOver {
            id: self.key.id.to_string(),
        }
    }

    /// Tries to keep a turn; `None` if it should be tried again. `in_doubt`: an earlier attempt may
    /// have succeeded.
    async fn try_to_keep(
        &self,
        is_first: bool,
        tokens: &[u32],
        in_doubt: &mut bool,
    ) -> Option<Result<(SystemTime, SystemTime), SessionError>> {
        let rows = &self.leases.rows;
        match rows.keep(&self.key, self.version, is_first, tokens).await {
            Ok(Some(times)) => return Some(Ok(times)),
            Ok(None) => (),
            Err(Fault::Away) => return None,
            Err(Fault::Unanswered) => {
                *in_doubt = true;
                return None;
            }
            Err(Fault::Refused(why)) => return Some(Err(SessionError::Database(why))),
        }
        // Its row is not this turn's: an earlier attempt has kept it, or another server has it.
        if !*in_doubt {
            return Some(Err(self.taken_over()));
        }
        match rows.outcome(&self.key, self.version).await {
            Ok(Outcome::Kept { created, last_used }) => Some(Ok((created, last_used))),
            Ok(Outcome::NotKept) => Some(Err(self.taken_over())),
            Ok(Outcome::Unknown) => Some(Err(self.unknown())),
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

    async fn write(
        &self,
        created: Option<SystemTime>,
        tokens: Arc<[u32]>,
    ) -> Result<History, SessionError> {
        self.state.ending.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        let mut in_doubt = false;
        loop {
            let kept = self.try_to_keep(created.is_none(), &tokens, &mut in_doubt);
            match kept.await {
                Some(Ok((created, last_used))) => {
                    self.end();
                    return Ok(History {
                        tokens,
                        created,
                        last_used,
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
                        what: "the turn was not kept",
                    }
                });
            }
        }
    }

    async fn remove(&self) -> Result<bool, SessionError> {
        self.state.ending.store(true, Ordering::SeqCst);
        let deleted = self.leases.rows.delete(&self.key, self.version).await;
        let deleted = deleted.map_err(|fault| failed(fault, "the session is not deleted"))?;
        let is_lost = self.had_history && !self.over.load(Ordering::SeqCst);
        self.end();
        match deleted {
            Deleted::Ours { had_history } => Ok(had_history),
            Deleted::NotOurs if is_lost => Err(self.taken_over()),
            Deleted::NotOurs | Deleted::Before => Ok(false),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.live().remove(&self.version);
        if !self.over.load(Ordering::SeqCst) {
            let held = (self.key.clone(), self.version);
            // Without a runtime there is no one to give it back, and it expires.
            let _ = self.leases.dropped.send(held);
        }
    }
}
