//! The way to the database: a pool of connections, and whether there is anyone at the other end.
//!
//! A connection that breaks, or a statement without an answer, closes the way: statements fail at
//! once, and one task tries to connect, again and again with growing pauses, until the database is
//! there and its schema is checked. So an outage costs requests no waiting, and the database no
//! storm of connections when it comes back. The first moments of an outage are waited for, since a
//! database that drops one connection is there for the next.
//!
//! Every wait has a bound. No statement is prepared: each is sent in one round trip with its types,
//! which also works through a pooler that hands out connections transaction by transaction.

use std::error::Error as _;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, NoTls, Row};

use super::DatabaseError;
use super::schema::{self, SchemaError};
use super::tls::Tls;
use super::url::Target;

/// Connections of one server at most. A statement takes about as long as the database takes to write
/// its log, and no turn keeps a connection.
const CONNECTIONS: usize = 8;
/// How long a statement may wait for one of them.
const WAIT: Duration = Duration::from_secs(5);
/// How long an answer may take.
pub(super) const ANSWER: Duration = Duration::from_secs(7);
/// How long a schema may take to be brought up to date.
const MIGRATION: Duration = Duration::from_secs(120);
/// Pauses between attempts to connect, the first after one that failed, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// For how long an outage is waited for from its beginning.
const GRACE: Duration = Duration::from_millis(500);

/// A parameter of a statement.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Why a statement has no result.
#[derive(Debug)]
pub(super) enum Fault {
    /// It was not carried out: the database is away or too busy.
    Away,
    /// It was sent and may have been carried out: the connection broke before the answer.
    Unanswered,
    /// The database refused it, for this reason.
    Refused(String),
}

/// Whether there is anyone at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Closed { since: Instant },
}

/// See the module.
pub(super) struct Link {
    pool: Pool,
    /// The database, without a password.
    name: String,
    way: watch::Sender<Way>,
}

impl Link {
    /// Connects and brings the schema up to date. A database that is away is waited for in the
    /// background; must be called in a runtime.
    ///
    /// # Errors
    /// [`DatabaseError`] if waiting would not help.
    pub async fn open(target: Target) -> Result<Arc<Self>, DatabaseError> {
        let recycling_method = RecyclingMethod::Fast;
        let config = ManagerConfig { recycling_method };
        let manager = match &target.trust {
            None => Manager::from_config(target.config.clone(), NoTls, config),
            Some(trust) => {
                let tls = Tls::new(trust).map_err(DatabaseError::Tls)?;
                Manager::from_config(target.config.clone(), tls, config)
            }
        };
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(WAIT))
            // The connection's own limit is for each address of each host.
            .create_timeout(Some(WAIT * 4))
            .recycle_timeout(Some(WAIT));
        let pool = pool
            .build()
            .map_err(|e| DatabaseError::Tls(e.to_string()))?;
        let link = Arc::new(Self {
            pool,
            name: target.name,
            way: watch::Sender::new(Way::Open),
        });
        match link.connect().await {
            Ok(()) => tracing::info!(database = link.name, "session database connected"),
            Err(Attempt::Away(why)) => link.close(&why),
            Err(Attempt::Unusable(reason)) => {
                return Err(DatabaseError::Unusable {
                    database: link.name.clone(),
                    reason,
                });
            }
        }
        tokio::spawn(keep_open(Arc::downgrade(&link), link.way.subscribe()));
        Ok(link)
    }

    /// Runs a statement that may be run twice: once more if the first has no answer.
    pub async fn query(&self, sql: &str, with: &[Parameter<'_>]) -> Result<Vec<Row>, Fault> {
        match self.query_once(sql, with).await {
            Err(Fault::Unanswered) => self.query_once(sql, with).await,
            first => first,
        }
    }

    /// Runs a statement.
    pub async fn query_once(&self, sql: &str, with: &[Parameter<'_>]) -> Result<Vec<Row>, Fault> {
        self.until_open().await?;
        let connection = match self.pool.get().await {
            Ok(connection) => connection,
            Err(PoolError::Timeout(deadpool_postgres::TimeoutType::Wait)) => {
                return Err(Fault::Away);
            }
            Err(error) => {
                self.close(&pool_message(&error));
                return Err(Fault::Away);
            }
        };
        let fault = match timeout(ANSWER, connection.query_typed(sql, with)).await {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(error)) => {
                let fault = fault(&error);
                if matches!(fault, Fault::Unanswered) || is_read_only(&error) {
                    self.close(&message(&error));
                }
                fault
            }
            Err(_) => {
                self.close(&format!("no answer within {ANSWER:?}"));
                Fault::Unanswered
            }
        };
        if matches!(fault, Fault::Unanswered) {
            drop(Object::take(connection));
        }
        Err(fault)
    }

    /// Whether statements are worth trying.
    pub fn is_open(&self) -> bool {
        *self.way.borrow() == Way::Open
    }

    /// Waits for so long until statements are worth trying; returns whether they are.
    pub async fn opens_within(&self, patience: Duration) -> bool {
        let mut way = self.way.subscribe();
        let opened = timeout(patience, way.wait_for(|way| *way == Way::Open)).await;
        matches!(opened, Ok(Ok(_)))
    }

    /// Waits if an outage has only just begun.
    async fn until_open(&self) -> Result<(), Fault> {
        let Way::Closed { since } = *self.way.borrow() else {
            return Ok(());
        };
        if self
            .opens_within(GRACE.saturating_sub(since.elapsed()))
            .await
        {
            Ok(())
        } else {
            Err(Fault::Away)
        }
    }

    /// Notes that the database is away; the first to do so says why.
    fn close(&self, why: &str) {
        let now_closed = self.way.send_if_modified(|way| {
            let was_open = *way == Way::Open;
            if was_open {
                let since = Instant::now();
                *way = Way::Closed { since };
            }
            was_open
        });
        if now_closed {
            // What is idle is from before.
            self.pool.retain(|_, _| false);
            tracing::warn!(
                database = self.name,
                error = why,
                "session database unavailable"
            );
        }
    }

    /// Opens a connection and checks the schema.
    async fn connect(&self) -> Result<(), Attempt> {
        let connection = self.pool.get().await.map_err(|error| match &error {
            PoolError::Backend(error) if is_final(error) => Attempt::Unusable(message(error)),
            error => Attempt::Away(pool_message(error)),
        })?;
        let checked = async {
            schema::migrate(&connection).await?;
            warn_of_loss(&connection).await?;
            Ok(())
        };
        let checked = timeout(MIGRATION, checked).await;
        let checked = checked.unwrap_or_else(|_| {
            Err(Attempt::Away(format!(
                "the schema was not up to date within {MIGRATION:?}"
            )))
        });
        if checked.is_err() {
            drop(Object::take(connection));
        }
        checked
    }
}

/// What came of an attempt to connect.
enum Attempt {
    /// Another may succeed.
    Away(String),
    /// It takes a person.
    Unusable(String),
}

impl From<SchemaError> for Attempt {
    fn from(error: SchemaError) -> Self {
        match &error {
            SchemaError::Newer { .. } => Self::Unusable(error.to_string()),
            SchemaError::Database(error) => error.into(),
        }
    }
}

impl From<&Error> for Attempt {
    fn from(error: &Error) -> Self {
        if is_final(error) {
            Self::Unusable(message(error))
        } else {
            Self::Away(message(error))
        }
    }
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        (&error).into()
    }
}

/// Warns of a database that confirms what a crash may undo.
async fn warn_of_loss(client: &tokio_postgres::Client) -> Result<(), Error> {
    let row = client
        .query_typed_one("SHOW synchronous_commit", &[])
        .await?;
    if row.try_get::<_, String>(0)? == "off" {
        tracing::warn!("synchronous_commit is off: a crash of the session database loses turns");
    }
    Ok(())
}

/// Opens the way whenever it is closed, until the link is gone.
async fn keep_open(link: Weak<Link>, mut way: watch::Receiver<Way>) {
    loop {
        let closed = way.wait_for(|way| *way != Way::Open).await;
        let since = match closed.map(|way| *way) {
            Ok(Way::Closed { since }) => since,
            Ok(Way::Open) => continue,
            Err(_) => return,
        };
        let (mut pause, longest) = PAUSE;
        let mut told = String::new();
        loop {
            let Some(link) = link.upgrade() else {
                return;
            };
            match link.connect().await {
                Ok(()) => {
                    link.way.send_replace(Way::Open);
                    let seconds = since.elapsed().as_secs_f32();
                    tracing::info!(
                        database = link.name,
                        seconds,
                        "session database available again"
                    );
                    break;
                }
                Err(Attempt::Away(why)) => {
                    tracing::debug!(error = why, "session database still unavailable");
                }
                Err(Attempt::Unusable(why)) if why != told => {
                    tracing::error!(
                        database = link.name,
                        error = why,
                        "session database unusable"
                    );
                    told = why;
                }
                Err(Attempt::Unusable(_)) => (),
            }
            drop(link);
            tokio::time::sleep(jittered(pause)).await;
            pause = longest.min(pause * 2);
        }
    }
}

/// Up to a quarter longer, so that servers do not come all at once.
pub(super) fn jittered(pause: Duration) -> Duration {
    let quarter = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / f64::from(u8::MAX) / 4.0;
    pause.mul_f64(1.0 + quarter)
}

/// What is known of a statement that ended with this error.
fn fault(error: &Error) -> Fault {
    let Some(refusal) = error.as_db_error() else {
        return if error
            .source()
            .is_some_and(|source| !source.is::<io::Error>())
        {
            // A value of the wrong type, say: not for want of a connection.
            Fault::Refused(message(error))
        } else {
            Fault::Unanswered
        };
    };
    let code = refusal.code().code();
    match code.get(..2).unwrap_or_default() {
        // The session ends; whether the statement had before is not said.
        "57" if code != "57014" => Fault::Unanswered,
        "08" => Fault::Unanswered,
        // Timeouts, locks, deadlocks, want of memory or disk, a server that takes no writes.
        "57" | "40" | "53" | "55" | "25" => Fault::Away,
        _ => Fault::Refused(message(error)),
    }
}

/// The server is a standby (now).
fn is_read_only(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code() == "25006")
}

/// Whether connecting again can't help: a wrong password, no such database, no right.
fn is_final(error: &Error) -> bool {
    if let Some(refusal) = error.as_db_error() {
        let code = refusal.code().code();
        return code.starts_with("28") || ["3D000", "3F000", "42501"].contains(&code);
    }
    match error
        .source()
        .map(|source| source.downcast_ref::<io::Error>())
    {
        // Closed, or without an answer.
        None => false,
        // A certificate that does not hold, or no database at all.
        Some(Some(error)) => error.kind() == io::ErrorKind::InvalidData,
        // No TLS there, or a password that is missing.
        Some(None) => true,
    }
}

/// The error with what it comes from.
pub(super) fn message(error: &Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn pool_message(error: &PoolError) -> String {
    match error {
        PoolError::Backend(error) => message(error),
        PoolError::Timeout(_) => "connecting took too long".to_owned(),
        error => error.to_string(),
    }
}
