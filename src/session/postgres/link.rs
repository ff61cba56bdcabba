//! The link to the database: a pool of connections, and a circuit breaker.
//!
//! A broken connection or a statement without a response closes the link: statements then fail
//! immediately, and one task reconnects with growing pauses until the database is available and its
//! schema is checked. So an outage does not make requests wait, and the database gets no storm of
//! connections when it returns. Statements wait only for the first moments of an outage, since a
//! database that drops one connection often accepts the next.
//!
//! Every wait must have a limit. Statements must not be prepared: each is sent in one round trip with
//! its types, which also works through a pooler in transaction mode.

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
use super::message::message;
use super::schema::{self, SchemaError};
use super::tls::Tls;
use super::url::Target;

/// Maximum connections per server. A statement takes about as long as the database takes to write its
/// log, and no turn keeps a connection.
const CONNECTIONS: usize = 8;
/// Maximum time for which a statement waits for a connection.
const WAIT: Duration = Duration::from_secs(5);
/// Time limit for the response to a statement.
pub(super) const ANSWER: Duration = Duration::from_secs(7);
/// Time limit for a migration of the schema.
const MIGRATION: Duration = Duration::from_secs(120);
/// First and longest pause between attempts to connect.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Time from the start of an outage during which statements wait for its end.
const GRACE: Duration = Duration::from_millis(500);

/// A parameter of a statement.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Why a statement has no result.
#[derive(Debug)]
pub(super) enum Fault {
    /// The statement was not executed: the database is unavailable or too busy.
    Away,
    /// The statement may have been executed: the connection broke before the response.
    Unanswered,
    /// The database refused the statement, for this reason.
    Refused(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Open,
    Closed { since: Instant },
}

/// The link to one database; see the module documentation.
pub(super) struct Link {
    pool: Pool,
    /// URL of the database, without the password.
    name: String,
    state: watch::Sender<LinkState>,
}

impl Link {
    /// Connects and migrates the schema. If the database is unavailable, connects in the background.
    /// Must be called in a runtime.
    ///
    /// # Errors
    /// [`DatabaseError`] if retrying would not help.
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
            // The connection's own limit applies to each address of each host.
            .create_timeout(Some(WAIT * 4))
            .recycle_timeout(Some(WAIT));
        let pool = pool
            .build()
            .map_err(|e| DatabaseError::Tls(e.to_string()))?;
        let link = Arc::new(Self {
            pool,
            name: target.name,
            state: watch::Sender::new(LinkState::Open),
        });
        match link.connect().await {
            Ok(()) => tracing::info!(database = link.name, "session database connected"),
            Err(ConnectError::Away(why)) => link.close(&why),
            Err(ConnectError::Unusable(reason)) => {
                return Err(DatabaseError::Unusable {
                    database: link.name.clone(),
                    reason,
                });
            }
        }
        tokio::spawn(keep_open(Arc::downgrade(&link), link.state.subscribe()));
        Ok(link)
    }

    /// Runs a statement that may be run twice, and retries it once if there is no response.
    pub async fn query(&self, sql: &str, with: &[Parameter<'_>]) -> Result<Vec<Row>, Fault> {
        match self.query_once(sql, with).await {
            Err(Fault::Unanswered) => self.query_once(sql, with).await,
            first => first,
        }
    }

    /// Runs a statement, without a retry.
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
                self.close(&format!("no response within {ANSWER:?}"));
                Fault::Unanswered
            }
        };
        if matches!(fault, Fault::Unanswered) {
            drop(Object::take(connection));
        }
        Err(fault)
    }

    /// Returns whether the link is open.
    pub fn is_open(&self) -> bool {
        *self.state.borrow() == LinkState::Open
    }

    /// Waits at most `patience` for the link to open, and returns whether it is open.
    pub async fn opens_within(&self, patience: Duration) -> bool {
        let mut state = self.state.subscribe();
        let opened = timeout(patience, state.wait_for(|state| *state == LinkState::Open)).await;
        matches!(opened, Ok(Ok(_)))
    }

    /// Waits for the link to open if an outage has only just begun.
    async fn until_open(&self) -> Result<(), Fault> {
        let LinkState::Closed { since } = *self.state.borrow() else {
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

    /// Closes the link. Logs the reason if it was open.
    fn close(&self, why: &str) {
        let now_closed = self.state.send_if_modified(|state| {
            let was_open = *state == LinkState::Open;
            if was_open {
                let since = Instant::now();
                *state = LinkState::Closed { since };
            }
            was_open
        });
        if now_closed {
            // Idle connections are from before the outage.
            self.pool.retain(|_, _| false);
            tracing::warn!(
                database = self.name,
                error = why,
                "session database unavailable"
            );
        }
    }

    /// Opens a connection and checks the schema.
    async fn connect(&self) -> Result<(), ConnectError> {
        let connection = self.pool.get().await.map_err(|error| match &error {
            PoolError::Backend(error) if is_final(error) => ConnectError::Unusable(message(error)),
            error => ConnectError::Away(pool_message(error)),
        })?;
        let checked = async {
            schema::migrate(&connection).await?;
            warn_of_loss(&connection).await?;
            Ok(())
        };
        let checked = timeout(MIGRATION, checked).await;
        let checked = checked.unwrap_or_else(|_| {
            Err(ConnectError::Away(format!(
                "the schema was not migrated within {MIGRATION:?}"
            )))
        });
        if checked.is_err() {
            drop(Object::take(connection));
        }
        checked
    }
}

/// Why an attempt to connect failed.
enum ConnectError {
    /// A later attempt may succeed.
    Away(String),
    /// Retrying can't help: the configuration has to change.
    Unusable(String),
}

impl From<SchemaError> for ConnectError {
    fn from(error: SchemaError) -> Self {
        match &error {
            SchemaError::Newer { .. } => Self::Unusable(error.to_string()),
            SchemaError::Database(error) => error.into(),
        }
    }
}

impl From<&Error> for ConnectError {
    fn from(error: &Error) -> Self {
        if is_final(error) {
            Self::Unusable(message(error))
        } else {
            Self::Away(message(error))
        }
    }
}

impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        (&error).into()
    }
}

/// Warns if the database confirms commits that a crash can undo.
async fn warn_of_loss(client: &tokio_postgres::Client) -> Result<(), Error> {
    let row = client
        .query_typed_one("SHOW synchronous_commit", &[])
        .await?;
    if row.try_get::<_, String>(0)? == "off" {
        tracing::warn!("synchronous_commit is off: a crash of the session database loses turns");
    }
    Ok(())
}

/// Reopens the link whenever it is closed, until it is dropped.
async fn keep_open(link: Weak<Link>, mut state: watch::Receiver<LinkState>) {
    loop {
        let closed = state.wait_for(|state| *state != LinkState::Open).await;
        let since = match closed.map(|state| *state) {
            Ok(LinkState::Closed { since }) => since,
            Ok(LinkState::Open) => continue,
            Err(_) => return,
        };
        let (mut pause, longest) = PAUSE;
        let mut logged = String::new();
        loop {
            let Some(link) = link.upgrade() else {
                return;
            };
            match link.connect().await {
                Ok(()) => {
                    link.state.send_replace(LinkState::Open);
                    let seconds = since.elapsed().as_secs_f32();
                    tracing::info!(
                        database = link.name,
                        seconds,
                        "session database available again"
                    );
                    break;
                }
                Err(ConnectError::Away(why)) => {
                    tracing::debug!(error = why, "session database still unavailable");
                }
                Err(ConnectError::Unusable(why)) if why != logged => {
                    tracing::error!(
                        database = link.name,
                        error = why,
                        "session database unusable"
                    );
                    logged = why;
                }
                Err(ConnectError::Unusable(_)) => (),
            }
            drop(link);
            tokio::time::sleep(jittered(pause)).await;
            pause = longest.min(pause * 2);
        }
    }
}

/// Lengthens a pause by up to a quarter, so that servers do not retry simultaneously.
pub(super) fn jittered(pause: Duration) -> Duration {
    let quarter = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / f64::from(u8::MAX) / 4.0;
    pause.mul_f64(1.0 + quarter)
}

/// Classifies the error of a statement.
fn fault(error: &Error) -> Fault {
    let Some(refusal) = error.as_db_error() else {
        return if error
            .source()
            .is_some_and(|source| !source.is::<io::Error>())
        {
            // A value of the wrong type, for example; not a connection failure.
            Fault::Refused(message(error))
        } else {
            Fault::Unanswered
        };
    };
    let code = refusal.code().code();
    match code.get(..2).unwrap_or_default() {
        // The connection was ended by the database; the statement may have been executed.
        "57" if code != "57014" => Fault::Unanswered,
        "08" => Fault::Unanswered,
        // Timeouts, locks, deadlocks, lack of memory or disk space, a read-only server.
        "57" | "40" | "53" | "55" | "25" => Fault::Away,
        _ => Fault::Refused(message(error)),
    }
}

/// Returns whether the database is a standby, perhaps since a failover.
fn is_read_only(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code() == "25006")
}

/// Returns whether retrying can't help: a wrong password, a missing database or privilege.
fn is_final(error: &Error) -> bool {
    if let Some(refusal) = error.as_db_error() {
        let code = refusal.code().code();
        return code.starts_with("28") || ["3D000", "3F000", "42501"].contains(&code);
    }
    match error
        .source()
        .map(|source| source.downcast_ref::<io::Error>())
    {
        // The connection was closed, or there was no response.
        None => false,
        // An invalid certificate, or a server that is not a database.
        Some(Some(error)) => error.kind() == io::ErrorKind::InvalidData,
        // TLS is not available, or the password is missing.
        Some(None) => true,
    }
}

fn pool_message(error: &PoolError) -> String {
    match error {
        PoolError::Backend(error) => message(error),
        PoolError::Timeout(_) => "connection attempt timed out".to_owned(),
        error => error.to_string(),
    }
}
