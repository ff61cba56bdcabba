//! The tables, made and brought up to date by whichever server comes first.
//!
//! `skald_schema` has a row for every migration that was applied. Servers that start together take
//! turns by an advisory lock, which ends with the transaction. A schema that is up to date is only
//! read, so the server's role needs no right to change it.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

/// What brings the schema from one version to the next.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/1.sql")];
/// What this server needs.
const VERSION: i32 = MIGRATIONS.len() as i32;
/// Of the advisory lock: "skald" in ASCII.
const LOCK: i64 = 0x73_6b_61_6c_64;

/// Why the schema can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    #[error(
        "the schema of the session database has version {found}; this server knows versions up to \
         {VERSION}: update the server"
    )]
    Newer { found: i32 },
    #[error(transparent)]
    Database(#[from] Error),
}

/// Brings the schema up to date, if it is not.
///
/// # Errors
/// [`SchemaError::Newer`], or the database's; then the connection is not to be used again.
pub(super) async fn migrate(client: &Client) -> Result<(), SchemaError> {
    if is_current(version(client).await?)? {
        return Ok(());
    }
    // Another server's migration is waited for; ours may take its time.
    client
        .batch_execute(&format!(
            "BEGIN;
             SET LOCAL statement_timeout = '60s';
             SELECT pg_advisory_xact_lock({LOCK});
             CREATE TABLE IF NOT EXISTS skald_schema (
                 version integer PRIMARY KEY,
                 applied timestamptz NOT NULL DEFAULT now()
             );"
        ))
        .await?;
    let found = version(client).await?;
    if !is_current(found)? {
        for (version, migration) in (1..).zip(MIGRATIONS).filter(|(v, _)| *v > found) {
            client.batch_execute(migration).await?;
            let applied = "INSERT INTO skald_schema (version) VALUES ($1)";
            client
                .execute_typed(applied, &[(&version, Type::INT4)])
                .await?;
        }
        tracing::info!(from = found, to = VERSION, "session database migrated");
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// The schema's version; 0 if there is none.
async fn version(client: &Client) -> Result<i32, Error> {
    let there = "SELECT to_regclass('skald_schema') IS NOT NULL";
    let there = client.query_typed_one(there, &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let version = "SELECT coalesce(max(version), 0) FROM skald_schema";
    client.query_typed_one(version, &[]).await?.try_get(0)
}

fn is_current(found: i32) -> Result<bool, SchemaError> {
    if found > VERSION {
        return Err(SchemaError::Newer { found });
    }
    Ok(found == VERSION)
}
