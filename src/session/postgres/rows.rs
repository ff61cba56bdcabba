//! Every statement on sessions. Each commits by itself, so no transaction is ever left open, and each
//! may be run twice.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};
use uuid::Uuid;

use super::link::{Fault, Link, Parameter};
use crate::request::{SessionId, Tenant};
use crate::session::history::{History, NewHistory, decode_tokens, encode_tokens};
use crate::session::store::Entry;
use crate::session::{Fingerprint, ForkedFrom, SessionKey};

/// The version that a session gets when a turn takes it. No other turn ever has the same.
pub(super) type Version = i64;

/// Committed turns that a row remembers. Turns on a session do not overlap, so a server that looks up its
/// own commit within seconds finds it among these.
const REMEMBERED: i32 = 16;
/// Maximum sessions deleted by one statement.
const SWEEP: i64 = 1000;

/// The rows of one tokenizer's sessions, accessed by one server.
#[derive(Clone)]
pub(super) struct Rows {
    pub link: Arc<Link>,
    tokenizer: Vec<u8>,
    /// Id of this server, new at each start.
    server: String,
    /// Duration of a lease, in seconds.
    lease: f64,
}

/// A session taken for a turn.
pub(super) struct Taken {
    pub version: Version,
    pub history: Option<History>,
}

/// The outcome of a turn's commit, according to the session's row.
pub(super) enum CommitOutcome {
    Committed {
        created: SystemTime,
        last_used: SystemTime,
    },
    /// The turn was not committed, and can't be any more.
    NotCommitted,
    /// Too many turns were committed since, or the session was deleted.
    Unknown,
}

/// The outcome of deleting a turn's session.
pub(super) enum DeleteOutcome {
    Deleted {
        had_history: bool,
    },
    /// The session had already been deleted.
    NotFound,
    /// Another turn has taken the session.
    TakenOver,
}

impl Rows {
    pub fn new(link: Arc<Link>, tokenizer: Fingerprint, lease: Duration) -> Self {
        let server = Uuid::new_v4().to_string();
        tracing::info!(holder = server, "session leases");
        Self {
            link,
            tokenizer: tokenizer.0.to_vec(),
            server,
            lease: lease.as_secs_f64(),
        }
    }

    /// Takes a session for a turn, whether it exists or not; `None` if another server holds it. A
    /// session held by this server itself is taken again: that lease is from a turn that has ended.
    pub async fn take(&self, key: &SessionKey) -> Result<Option<Taken>, Fault> {
        let sql = "
            WITH taken AS (
                UPDATE skald_sessions
                SET version = nextval('skald_session_version'), holder = $4,
                    held_until = clock_timestamp() + make_interval(secs => $5)
                WHERE tokenizer = $1 AND tenant = $2 AND id = $3
                    AND (holder IS NULL OR holder = $4 OR held_until < clock_timestamp())
                RETURNING version, tokens, created, last_used, forked_from, forked_at
            ), made AS (
                INSERT INTO skald_sessions (tokenizer, tenant, id, version, holder, held_until)
                SELECT $1, $2, $3, nextval('skald_session_version'), $4,
                    clock_timestamp() + make_interval(secs => $5)
                WHERE NOT EXISTS (SELECT FROM taken) AND NOT EXISTS (
                    SELECT FROM skald_sessions WHERE tokenizer = $1 AND tenant = $2 AND id = $3
                )
                ON CONFLICT DO NOTHING
                RETURNING version, tokens, created, last_used, forked_from, forked_at
            )
            SELECT version, tokens, created, last_used, forked_from, forked_at FROM taken
            UNION ALL SELECT version, tokens, created, last_used, forked_from, forked_at FROM made";
        let (tenant, id) = (key.tenant.to_string(), key.id.as_str());
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenant, Type::TEXT),
            (&id, Type::TEXT),
            (&self.server, Type::TEXT),
            (&self.lease, Type::FLOAT8),
        ];
        let rows = self.link.query(sql, with).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        Ok(Some(Taken {
            version: get(row, "version")?,
            history: history(row)?,
        }))
    }

    /// Commits a turn and releases its session. Returns the times of the first and the last turn;
    /// `None` if the session no longer belongs to this turn.
    pub async fn commit(
        &self,
        key: &SessionKey,
        version: Version,
        new: &NewHistory,
    ) -> Result<Option<(SystemTime, SystemTime)>, Fault> {
        let sql = "
            UPDATE skald_sessions
            SET tokens = $5, last_used = statement_timestamp(),
                created = CASE WHEN $6 THEN statement_timestamp() ELSE created END,
                forked_from = $9, forked_at = $10,
                turns = (turns || version)[greatest(1, cardinality(turns) + 2 - $7):],
                holder = NULL, held_until = NULL
            WHERE tokenizer = $1 AND tenant = $2 AND id = $3 AND version = $4 AND holder = $8
            RETURNING created, last_used";
        let forked = new.forked_from.as_ref();
        let forked_at = forked.and_then(|from| i64::try_from(from.at).ok());
        let (tenant, id) = (key.tenant.to_string(), key.id.as_str());
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenant, Type::TEXT),
            (&id, Type::TEXT),
            (&version, Type::INT8),
            (&encode_tokens(&new.tokens), Type::BYTEA),
            (&new.created.is_none(), Type::BOOL),
            (&REMEMBERED, Type::INT4),
            (&self.server, Type::TEXT),
            (&forked.map(|from| from.id.as_str()), Type::TEXT),
            (&forked_at, Type::INT8),
        ];
        let rows = self.link.query_once(sql, with);
        match rows.await?.first() {
            Some(row) => Ok(Some((get(row, "created")?, get(row, "last_used")?))),
            None => Ok(None),
        }
    }

    /// Looks up the outcome of a commit that returned no row, perhaps because an earlier attempt
    /// succeeded.
    pub async fn outcome(
        &self,
        key: &SessionKey,
        version: Version,
    ) -> Result<CommitOutcome, Fault> {
        let sql = "
            SELECT $4 = ANY (turns) AS kept, created, last_used,
                cardinality(turns) >= $5 AND turns[1] > $4 AS forgotten
            FROM skald_sessions
            WHERE tokenizer = $1 AND tenant = $2 AND id = $3";
        let (tenant, id) = (key.tenant.to_string(), key.id.as_str());
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenant, Type::TEXT),
            (&id, Type::TEXT),
            (&version, Type::INT8),
            (&REMEMBERED, Type::INT4),
        ];
        let rows = self.link.query(sql, with).await?;
        let Some(row) = rows.first() else {
            return Ok(CommitOutcome::Unknown);
        };
        if get(row, "kept")? {
            return Ok(CommitOutcome::Committed {
                created: get(row, "created")?,
                last_used: get(row, "last_used")?,
            });
        }
        let forgotten: Option<bool> = get(row, "forgotten")?;
        Ok(if forgotten == Some(true) {
            CommitOutcome::Unknown
        } else {
            CommitOutcome::NotCommitted
        })
    }

    /// Deletes the session of a turn.
    pub async fn delete(&self, key: &SessionKey, version: Version) -> Result<DeleteOutcome, Fault> {
        let sql = "
            WITH gone AS (
                DELETE FROM skald_sessions
                WHERE tokenizer = $1 AND tenant = $2 AND id = $3 AND version = $4
                RETURNING tokens IS NOT NULL AS had_history
            )
            SELECT (SELECT had_history FROM gone) AS had_history, EXISTS (
                SELECT FROM skald_sessions WHERE tokenizer = $1 AND tenant = $2 AND id = $3
            ) AS was_there";
        let (tenant, id) = (key.tenant.to_string(), key.id.as_str());
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenant, Type::TEXT),
            (&id, Type::TEXT),
            (&version, Type::INT8),
        ];
        let rows = self.link.query(sql, with).await?;
        Ok(match first(&rows, "had_history")? {
            Some(had_history) => DeleteOutcome::Deleted { had_history },
            None if first(&rows, "was_there")? => DeleteOutcome::TakenOver,
            None => DeleteOutcome::NotFound,
        })
    }

    /// Deletes a session unless another server holds it, and returns whether it no longer exists.
    pub async fn delete_unless_held(&self, key: &SessionKey) -> Result<bool, Fault> {
        let sql = "
            WITH gone AS (
                DELETE FROM skald_sessions
                WHERE tokenizer = $1 AND tenant = $2 AND id = $3
                    AND (holder IS NULL OR holder = $4 OR held_until < clock_timestamp())
                RETURNING 1
            )
            SELECT EXISTS (SELECT FROM gone) OR NOT EXISTS (
                SELECT FROM skald_sessions WHERE tokenizer = $1 AND tenant = $2 AND id = $3
            ) AS is_gone";
        let (tenant, id) = (key.tenant.to_string(), key.id.as_str());
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenant, Type::TEXT),
            (&id, Type::TEXT),
            (&self.server, Type::TEXT),
        ];
        let rows = self.link.query(sql, with);
        first(&rows.await?, "is_gone")
    }

    /// Reads those of the sessions that exist.
    pub async fn read(&self, keys: &[SessionKey]) -> Result<Vec<(SessionKey, History)>, Fault> {
        let sql = "
            SELECT n, tokens, created, last_used, forked_from, forked_at
            FROM unnest($2, $3) WITH ORDINALITY AS wanted (tenant, id, n)
            JOIN skald_sessions USING (tenant, id)
            WHERE tokenizer = $1 AND tokens IS NOT NULL";
        let tenants: Vec<String> = keys.iter().map(|key| key.tenant.to_string()).collect();
        let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenants, Type::TEXT_ARRAY),
            (&ids, Type::TEXT_ARRAY),
        ];
        let rows = self.link.query(sql, with);
        let mut found = Vec::with_capacity(keys.len());
        for row in rows.await? {
            let n: i64 = get(&row, "n")?;
            let key = usize::try_from(n - 1).ok().and_then(|n| keys.get(n));
            found.extend(key.cloned().zip(history(&row)?));
        }
        Ok(found)
    }

    /// Lists a tenant's sessions.
    pub async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, Fault> {
        let sql = "
            SELECT id, last_used FROM skald_sessions
            WHERE tokenizer = $1 AND tenant = $2 AND tokens IS NOT NULL";
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenant.to_string(), Type::TEXT),
        ];
        let rows = self.link.query(sql, with);
        let mut entries = Vec::new();
        for row in rows.await? {
            let id: &str = row.try_get("id").map_err(|e| refused(&e))?;
            let Ok(id) = SessionId::parse(id) else {
                continue;
            };
            entries.push(Entry {
                key: SessionKey { tenant, id },
                last_used: get(&row, "last_used")?,
            });
        }
        Ok(entries)
    }

    /// Counts a tenant's sessions other than `key`, including those in their first turn on any server.
    pub async fn count_others(
        &self,
        key: &SessionKey,
        ttl: Option<Duration>,
        beginning: &[SessionKey],
    ) -> Result<usize, Fault> {
        let sql = "
            SELECT count(*) AS sessions FROM skald_sessions
            WHERE tokenizer = $1 AND tenant = $2 AND id <> $3 AND (
                held_until > clock_timestamp() AND (holder <> $5 OR id = ANY($6))
                OR tokens IS NOT NULL AND ($4 IS NULL
                    OR last_used >= clock_timestamp() - make_interval(secs => $4))
            )";
        let (tenant, id) = (key.tenant.to_string(), key.id.as_str());
        let beginning = beginning.iter().filter(|other| other.tenant == key.tenant);
        let beginning: Vec<&str> = beginning.map(|other| other.id.as_str()).collect();
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenant, Type::TEXT),
            (&id, Type::TEXT),
            (&seconds(ttl), Type::FLOAT8),
            (&self.server, Type::TEXT),
            (&beginning, Type::TEXT_ARRAY),
        ];
        let rows = self.link.query(sql, with);
        count(&rows.await?)
    }

    /// Counts all sessions.
    pub async fn count(&self) -> Result<usize, Fault> {
        let sql = "
            SELECT count(*) AS sessions FROM skald_sessions
            WHERE tokenizer = $1 AND tokens IS NOT NULL";
        let with: &[Parameter<'_>] = &[(&self.tokenizer, Type::BYTEA)];
        let rows = self.link.query(sql, with);
        count(&rows.await?)
    }

    /// Deletes the sessions that no turn holds and that were not used within `ttl`, or have no history.
    /// Returns the number of those that had a history.
    pub async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, Fault> {
        let sql = "
            WITH gone AS (
                DELETE FROM skald_sessions
                WHERE (tokenizer, tenant, id) IN (
                    SELECT tokenizer, tenant, id FROM skald_sessions
                    WHERE tokenizer = $1 AND (holder IS NULL OR held_until < clock_timestamp())
                        AND (last_used IS NULL
                            OR last_used < clock_timestamp() - make_interval(secs => $2))
                    LIMIT $3 FOR UPDATE SKIP LOCKED
                )
                RETURNING tokens IS NOT NULL AS had_history
            )
            SELECT count(*) AS rows, count(*) FILTER (WHERE had_history) AS sessions FROM gone";
        let ttl = seconds(ttl);
        let mut swept = 0;
        loop {
            let with: &[Parameter<'_>] = &[
                (&self.tokenizer, Type::BYTEA),
                (&ttl, Type::FLOAT8),
                (&SWEEP, Type::INT8),
            ];
            let rows = self.link.query(sql, with);
            let rows = rows.await?;
            swept += count(&rows)?;
            if first::<i64>(&rows, "rows")? < SWEEP {
                return Ok(swept);
            }
        }
    }

    /// Extends leases, and returns those that are still valid.
    pub async fn renew(&self, held: &[(SessionKey, Version)]) -> Result<Vec<Version>, Fault> {
        let sql = "
            UPDATE skald_sessions
            SET held_until = clock_timestamp() + make_interval(secs => $6)
            FROM unnest($2, $3, $4) AS held (tenant, id, version)
            WHERE skald_sessions.tokenizer = $1 AND skald_sessions.tenant = held.tenant
                AND skald_sessions.id = held.id AND skald_sessions.version = held.version
                AND holder = $5
            RETURNING skald_sessions.version AS version";
        let (tenants, ids, versions) = columns(held);
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenants, Type::TEXT_ARRAY),
            (&ids, Type::TEXT_ARRAY),
            (&versions, Type::INT8_ARRAY),
            (&self.server, Type::TEXT),
            (&self.lease, Type::FLOAT8),
        ];
        let rows = self.link.query(sql, with).await?;
        rows.iter().map(|row| get(row, "version")).collect()
    }

    /// Releases sessions unchanged, and removes those without a history.
    pub async fn release(&self, held: &[(SessionKey, Version)]) -> Result<(), Fault> {
        let sql = "
            WITH held AS (
                SELECT * FROM unnest($2, $3, $4) AS held (tenant, id, version)
            ), removed AS (
                DELETE FROM skald_sessions USING held
                WHERE skald_sessions.tokenizer = $1 AND skald_sessions.tenant = held.tenant
                    AND skald_sessions.id = held.id AND skald_sessions.version = held.version
                    AND holder = $5 AND tokens IS NULL
            )
            UPDATE skald_sessions SET holder = NULL, held_until = NULL FROM held
            WHERE skald_sessions.tokenizer = $1 AND skald_sessions.tenant = held.tenant
                AND skald_sessions.id = held.id AND skald_sessions.version = held.version
                AND holder = $5 AND tokens IS NOT NULL";
        let (tenants, ids, versions) = columns(held);
        let with: &[Parameter<'_>] = &[
            (&self.tokenizer, Type::BYTEA),
            (&tenants, Type::TEXT_ARRAY),
            (&ids, Type::TEXT_ARRAY),
            (&versions, Type::INT8_ARRAY),
            (&self.server, Type::TEXT),
        ];
        let rows = self.link.query(sql, with);
        rows.await.map(|_| ())
    }

    /// Releases all sessions that this server holds.
    pub async fn release_all(&self) -> Result<(), Fault> {
        let sql = "
            WITH removed AS (
                DELETE FROM skald_sessions
                WHERE tokenizer = $1 AND holder = $2 AND tokens IS NULL
            )
            UPDATE skald_sessions SET holder = NULL, held_until = NULL
            WHERE tokenizer = $1 AND holder = $2 AND tokens IS NOT NULL";
        let with: &[Parameter<'_>] = &[(&self.tokenizer, Type::BYTEA), (&self.server, Type::TEXT)];
        let rows = self.link.query(sql, with);
        rows.await.map(|_| ())
    }
}

fn columns(held: &[(SessionKey, Version)]) -> (Vec<String>, Vec<&str>, Vec<Version>) {
    let tenants = held.iter().map(|(key, _)| key.tenant.to_string());
    let ids = held.iter().map(|(key, _)| key.id.as_str());
    let versions = held.iter().map(|(_, version)| *version);
    (tenants.collect(), ids.collect(), versions.collect())
}

fn seconds(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64())
}

fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> Result<T, Fault> {
    row.try_get(column).map_err(|error| refused(&error))
}

fn refused(error: &tokio_postgres::Error) -> Fault {
    Fault::Refused(super::message::message(error))
}

/// Returns a column of the only row.
fn first<'a, T: FromSql<'a>>(rows: &'a [Row], column: &str) -> Result<T, Fault> {
    let row = rows.first();
    get(
        row.ok_or_else(|| Fault::Refused("no row".to_owned()))?,
        column,
    )
}

fn count(rows: &[Row]) -> Result<usize, Fault> {
    let count: i64 = first(rows, "sessions")?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Returns the history in a row; `None` while the first turn is running.
fn history(row: &Row) -> Result<Option<History>, Fault> {
    let Some(bytes) = get::<Option<&[u8]>>(row, "tokens")? else {
        return Ok(None);
    };
    let tokens = decode_tokens(bytes);
    Ok(Some(History {
        tokens: tokens.ok_or_else(|| Fault::Refused("not a valid session history".to_owned()))?,
        created: get(row, "created")?,
        last_used: get(row, "last_used")?,
        forked_from: forked_from(row)?,
    }))
}

/// Returns where the session in a row was forked; `None` if a server has written what this one can't read.
fn forked_from(row: &Row) -> Result<Option<ForkedFrom>, Fault> {
    let id: Option<&str> = get(row, "forked_from")?;
    let at: Option<i64> = get(row, "forked_at")?;
    let id = id.and_then(|id| SessionId::parse(id).ok());
    let at = at.and_then(|at| usize::try_from(at).ok());
    Ok(id.zip(at).map(|(id, at)| ForkedFrom { id, at }))
}
