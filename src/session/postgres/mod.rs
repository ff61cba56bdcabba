//! Histories in a PostgreSQL database, for servers on many machines.
//!
//! | module | purpose |
//! |---|---|
//! | `url`, `tls` | address, credentials and TLS of the database |
//! | `link` | connections, and the behaviour during an outage |
//! | `schema` | the tables and their migrations |
//! | `rows` | every statement on sessions |
//! | `lease` | a turn's hold on a session, and its commit |
//!
//! **A turn holds a lease, not an advisory lock.** An advisory lock lives as long as its connection,
//! so each running turn would occupy one: hundreds of connections per server, none of which could go
//! through a pooler. And the loss of a lock with its connection goes unnoticed by a server that was
//! stopped for a while. A lease is three columns of the session's row: the holder, the expiry, and a
//! version that no other turn ever has (from a sequence). Renewal costs one statement per server,
//! regardless of the number of running turns.
//!
//! **The version is the fencing token.** Taking a session gives it a new version, and a turn is
//! committed by one `UPDATE … WHERE version = …` with that version. A server that was dead, stopped or
//! cut off for longer than its lease finds another version there, and its write does nothing. The
//! expiry only decides when another server may take over a session, never what may be written. All
//! times are measured by the database, so the servers' clocks need not agree.
//!
//! **A commit without a response** is looked up. A row lists the versions of the turns committed last,
//! so a server that has reconnected can find its own turn among them even if later turns followed.
//!
//! **Waiting for another server's turn is polling**, with growing pauses: `LISTEN` would need its own
//! connection outside any pooler, and only the first request in a server's queue polls. Within a
//! server, turns run in order of arrival; between servers, in any order.
//!
//! **Tokens are stored as bytes**, 4 each, as in the files of `dir`: an `int4[]` takes twice the bytes
//! on the wire and has no unsigned integers, and SQL never computes with token ids.
//!
//! The tokenizer's fingerprint is part of a session's key, so servers of different models can share a
//! database without seeing each other's sessions.
//!
//! This module must not reveal the password, and must not wait for the database without a limit.

mod lease;
mod link;
mod message;
mod rows;
mod schema;
mod tls;
mod url;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::timeout;

use self::lease::{Leases, TakeOutcome};
use self::link::{Fault, Link, jittered};
use self::rows::Rows;
pub use self::url::{InvalidUrl, has_password};
use super::history::History;
use super::queue::busy;
use super::store::{Entry, HeldSession, Store};
use super::{Fingerprint, IfBusy, SessionError, SessionKey};
use crate::request::Tenant;

/// First and longest pause between attempts to take a session that another server holds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(500));
/// Attempts for a request that does not wait: the other server may be about to release the session.
const NO_WAIT_ATTEMPTS: usize = 3;
/// Lifetime of a cached count, and time limit for counting.
const COUNT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1));

/// Why a database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The URL is not a valid URL of a PostgreSQL database.
    #[error("the URL of the session database is not valid: {0}")]
    Url(#[from] InvalidUrl),
    /// TLS can't be set up.
    #[error("TLS to the session database can't be set up: {0}")]
    Tls(String),
    /// The database refuses this server, or its schema is newer than this server supports.
    #[error("the session database {database} can't be used: {reason}")]
    Unusable {
        /// URL of the database, without the password.
        database: String,
        /// Reason given by the database.
        reason: String,
    },
}

/// A database of sessions; cheap to clone.
#[derive(Clone)]
pub struct Database {
    link: Arc<Link>,
    lease: Duration,
    /// Runs the renewals of leases.
    runtime: Handle,
}

impl Database {
    /// Connects to the database at a `postgres://` URL and migrates its schema. `password` is used if
    /// the URL has none. `lease` is the time after which the sessions of a dead server become
    /// available to others.
    ///
    /// An unavailable database is not an error: the connection is made once it is available. Must be
    /// called in a tokio runtime, which must outlive the sessions.
    ///
    /// # Errors
    /// [`DatabaseError`], if retrying would not help.
    pub async fn open(
        url: &str,
        password: Option<&str>,
        lease: Duration,
    ) -> Result<Self, DatabaseError> {
        Ok(Self {
            link: Link::open(url::parse(url, password)?).await?,
            lease,
            runtime: Handle::current(),
        })
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// The sessions of one tokenizer in a database.
pub(super) struct Postgres {
    rows: Rows,
    leases: Arc<Leases>,
    /// The last count and its time.
    counted: Mutex<(usize, Option<Instant>)>,
}

impl Postgres {
    pub fn new(database: Database, tokenizer: Fingerprint) -> Self {
        let rows = Rows::new(database.link, tokenizer, database.lease);
        Self {
            leases: Leases::start(rows.clone(), database.lease, &database.runtime),
            rows,
            counted: Mutex::new((0, None)),
        }
    }

    fn counted(&self) -> (usize, Option<Instant>) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for Postgres {
    async fn hold(&self, key: &SessionKey, if_busy: IfBusy) -> Result<HeldSession, SessionError> {
        let (mut pause, longest) = PAUSE;
        let mut attempts = 0;
        loop {
            match self.leases.take(key).await? {
                TakeOutcome::Taken { history, lease } => {
                    return Ok(HeldSession {
                        history,
                        // A row that can't be read is an error each time.
                        lost: false,
                        hold: Box::new(lease),
                    });
                }
                TakeOutcome::Busy => attempts += 1,
            }
            if if_busy == IfBusy::Error && attempts >= NO_WAIT_ATTEMPTS {
                return Err(busy(key));
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = longest.min(pause * 2);
        }
    }

    async fn forget(&self, key: &SessionKey) -> Result<(), SessionError> {
        match self.rows.delete_unless_held(key).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(busy(key)),
            Err(fault) => Err(failed(fault, "the session was not deleted")),
        }
    }

    async fn read(&self, keys: &[SessionKey]) -> Result<Vec<(SessionKey, History)>, SessionError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.rows.read(keys).await;
        found.map_err(|fault| failed(fault, "sessions can't be read"))
    }

    async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, SessionError> {
        let listed = self.rows.list(tenant).await;
        listed.map_err(|fault| failed(fault, "sessions can't be listed"))
    }

    async fn count_others(
        &self,
        key: &SessionKey,
        ttl: Option<Duration>,
        beginning: &[SessionKey],
    ) -> Result<usize, SessionError> {
        let count = self.rows.count_others(key, ttl, beginning).await;
        count.map_err(|fault| failed(fault, "sessions can't be counted"))
    }

    async fn count(&self) -> Result<usize, SessionError> {
        let (fresh, patience) = COUNT;
        let (last, at) = self.counted();
        // Falls back to the last count, if there is one.
        let last = || match at {
            Some(_) => Ok(last),
            None => Err(failed(Fault::Away, "sessions can't be counted")),
        };
        if !self.rows.link.is_open() || at.is_some_and(|at| at.elapsed() < fresh) {
            return last();
        }
        let Ok(Ok(count)) = timeout(patience, self.rows.count()).await else {
            return last();
        };
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        *counted = (count, Some(Instant::now()));
        Ok(count)
    }

    async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, SessionError> {
        let swept = self.rows.sweep(ttl).await;
        swept.map_err(|fault| failed(fault, "expired sessions were not deleted"))
    }

    async fn close(&self) {
        if let Err(fault) = self.rows.release_all().await {
            tracing::debug!(?fault, "leases not released; they will expire");
        }
    }
}

/// Returns the client's error for a fault.
fn failed(fault: Fault, what: &'static str) -> SessionError {
    match fault {
        Fault::Away | Fault::Unanswered => SessionError::Away { what },
        Fault::Refused(why) => SessionError::Database(why),
    }
}
