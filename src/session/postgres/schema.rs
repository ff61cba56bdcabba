//! The tables, created and migrated by the first server that connects.
//!
//! `skald_schema` has a row for every applied migration. An advisory lock, which ends with the
//! transaction, serializes servers that start together. An up-to-date schema is only read, so the
//! server's role needs no privilege to change it.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

/// Each migration takes the schema from one version to the next.
const MIGRATIONS: [&str; 2] = [
    include_str!("migrations/1.sql"),
    include_str!("migrations/2.sql"),
];
/// The version that this server needs.
const VERSION: i32 = MIGRATIONS.len() as i32;
/// Key of the advisory lock: "skald" in ASCII.
const LOCK: i64 = 0x0073_6b61_6c64;

/// Why the schema can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    #[error(
        "the schema of the session database has version {found}, but this server supports versions up \
         to {VERSION}; update the server"
    )]
    Newer { found: i32 },
    #[error(transparent)]
    Database(#[from] Error),
}

/// Migrates the schema if it is not up to date.
///
/// # Errors
/// [`SchemaError::Newer`], or those of the database. After an error the connection must not be used
/// again.
pub(super) async fn migrate(client: &Client) -> Result<(), SchemaError> {
    if is_current(version(client).await?)? {
        return Ok(());
    }
    // Waits for the migration of another server, and allows time for this one.
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

/// Returns the version of the schema; 0 if there is none.
async fn version(client: &Client) -> Result<i32, Error> {
    let exists = "SELECT to_regclass('skald_schema') IS NOT NULL";
    let exists = client.query_typed_one(exists, &[]).await?;
    if !exists.try_get::<_, bool>(0)? {
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
