//! Histories in a PostgreSQL database, for servers on many machines.
//!
//! | module | what it is for |
//! |---|---|
//! | `url`, `tls` | where the database is, and how to speak to it |
//! | `link` | connections, and what happens while the database is away |
//! | `schema` | the tables, and how they are brought up to date |
//! | `rows` | every statement on sessions |
//! | `lease` | a turn's hold on a session, and how a turn is committed |
//!
//! **A turn is held by a lease, not by an advisory lock.** An advisory lock lives as long as its
//! connection, so each running turn would occupy one: hundreds of connections for one server's
//! queue, none of which could go through a pooler; and a lock that is lost with its connection says
//! nothing to a server that was merely stopped for a while. A lease is three columns of the session's
//! own row: the holder, until when, and a version that no other turn ever had (a sequence). Running
//! turns cost one statement per server and renewal, however many they are.
//!
//! **The version fences.** Whoever takes a session gives it a new version, and a turn is committed by
//! one `UPDATE … WHERE version = …` with the version it took. A server that was dead, stopped or cut
//! off for longer than its lease finds another version there, and its write does nothing. The lease's
//! time decides only when others may take a session over, never what may be written; all times are the
//! database's, so servers' clocks need not agree.
//!
//! **A commit without an answer** is asked about. A row lists the versions of the turns last kept, so
//! a server that has connected again can tell that its turn is among them even if another's came
//! after it.
//!
//! **Waiting for another server's turn is polling**, with pauses that grow: `LISTEN` would need a
//! connection of its own outside of any pooler, and only the first in a server's queue asks. Within a
//! server turns come in order of arrival; between servers the order is chance.
//!
//! **Tokens are bytes**, 4 each, as in the files of `dir`: an `int4[]` takes twice the bytes on the
//! wire, has no unsigned integers, and no one does arithmetic with token ids in SQL.
//!
//! The tokenizer's fingerprint is part of a session's key: servers of different models can share a
//! database, and each has its own sessions.
//!
//! Nothing here may show the password, or wait for the database without a limit.

mod lease;
mod link;
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

use self::lease::{Leases, Take};
use self::link::{Fault, Link, jittered};
use self::rows::Rows;
pub use self::url::{InvalidUrl, has_password};
use super::history::History;
use super::queue::busy;
use super::store::{Entry, Held, Store};
use super::{Fingerprint, IfBusy, SessionError, SessionKey};
use crate::request::Tenant;

/// How long to wait before a session is asked for again that another server holds: at first, and at
/// most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(500));
/// How often it is asked for if the request does not wait: the other may be about to give it back.
const GLANCES: usize = 3;
/// For how long a count is good, and how long counting may take.
const COUNT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1));

/// Why a database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The URL is not one of a PostgreSQL database.
    #[error("the URL of the session database is not valid: {0}")]
    Url(#[from] InvalidUrl),
    /// TLS can't be set up.
    #[error("TLS to the session database can't be set up: {0}")]
    Tls(String),
    /// The database refuses this server, or its schema is not one that this server knows.
    #[error("the session database {database} can't be used: {reason}")]
    Unusable {
        /// Its URL without the password.
        database: String,
        /// The database's reason.
        reason: String,
    },
}

/// A database of sessions; cheap to clone.
#[derive(Clone)]
pub struct Database {
    link: Arc<Link>,
    lease: Duration,
    /// Where renewals run.
    runtime: Handle,
}

impl Database {
    /// Connects to the database at a `postgres://` URL and brings its schema up to date. `password`
    /// is used where the URL has none. A turn that a server no longer answers for is given up after
    /// `lease`.
    ///
    /// A database that is away is not an error: it is connected to when it is there. Must be called
    /// in a tokio runtime, which must outlive the sessions.
    ///
    /// # Errors
    /// [`DatabaseError`], where trying again would not help.
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
    /// The last count, and when it was.
    counted: Mutex<(usize, Option<Instant>)>,
}

impl Postgres {
    pub fn new(database: Database, tokenizer: Fingerprint) -> Self {
        let rows = Rows::new(database.link, tokenizer, database.lease);
        Self {
            leases: Leases::keep(rows.clone(), database.lease, &database.runtime),
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
    async fn hold(&self, key: &SessionKey, if_busy: IfBusy) -> Result<Held, SessionError> {
        let (mut pause, longest) = PAUSE;
        let mut attempts = 0;
        loop {
            match self.leases.take(key).await? {
                Take::Taken { history, lease } => {
                    return Ok(Held {
                        history,
                        // A row that can't be read is an error each time.
                        lost: false,
                        hold: Box::new(lease),
                    });
                }
                Take::Busy => attempts += 1,
            }
            if if_busy == IfBusy::Error && attempts >= GLANCES {
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
            Err(fault) => Err(failed(fault, "the session is not deleted")),
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
        // The last count stands in for one that can't be had, if there has been one.
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
        swept.map_err(|fault| failed(fault, "expired sessions are not deleted"))
    }

    async fn close(&self) {
        if let Err(fault) = self.rows.release_all().await {
            tracing::debug!(?fault, "leases not given back; they expire");
        }
    }
}

/// What a client is told of a fault.
fn failed(fault: Fault, what: &'static str) -> SessionError {
    match fault {
        Fault::Away | Fault::Unanswered => SessionError::Away { what },
        Fault::Refused(why) => SessionError::Database(why),
    }
}
