//! The tables, how a schema of an earlier release becomes one of this release, and what is refused.

use std::time::Duration;

use deadpool_postgres::Transaction;

use super::{super::StoreError, config::Schema, fault};
use crate::types::ControlPlaneId;

/// Numbered steps forward: after step n, the schema's version is n. A step that was released is never changed. Copies of the release
/// before are at work while it is made: it adds, and takes nothing away that they name; it is quick, and alters one table, or those of a
/// batch in its order.
const MIGRATIONS: [&[&str]; 1] = [&[include_str!("tables.sql"), include_str!("submit.sql")]];

/// The oldest server: `pg_current_xact_id`, `gen_random_uuid`.
const SERVER_MIN: i32 = 130_000;

/// How long a step may take, and how long others that open the store wait for it.
const MIGRATION_TIMEOUT: &str = "SET LOCAL statement_timeout = '10min'";

/// How long a step waits for a lock: behind it waits every statement of the copies at work, also those that what it waits for, such as
/// a backup, would let pass.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";
/// And how long they have the tables for themselves until it is tried again.
pub(super) const TRY_AGAIN_AFTER: Duration = Duration::from_secs(4);

/// What was found, before anything is written.
enum Found {
    Nothing,
    Empty,
    Version(usize),
}

/// Brings a schema forward, whole or not at all; one at a time, whoever else opens it. What is refused is left untouched.
pub(super) async fn migrate(
    transaction: &Transaction<'_>,
    schema: &Schema,
    control_plane: &ControlPlaneId,
    later: &[&[&str]],
) -> Result<(), StoreError> {
    let steps: Vec<&[&str]> = MIGRATIONS.iter().chain(later).copied().collect();
    check_server(transaction).await?;
    transaction.batch_execute(MIGRATION_TIMEOUT).await.map_err(fault::refused)?;
    let lock = format!("provisioner:{schema}");
    transaction
        .execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&lock])
        .await
        .map_err(fault::refused)?;
    transaction.batch_execute(LOCK_TIMEOUT).await.map_err(fault::refused)?;
    let done = match find(transaction, schema, steps.len()).await? {
        Found::Nothing => {
            transaction.batch_execute(&format!("CREATE SCHEMA {}", schema.quoted())).await.map_err(fault::refused)?;
            0
        }
        Found::Empty => 0,
        Found::Version(version) => {
            check_owner(transaction, schema, control_plane).await?;
            version
        }
    };
    for step in &steps[done..] {
        for part in *step {
            let text = part.replace("{schema}", &schema.quoted()).replace("{channel}", schema.as_str());
            transaction.batch_execute(&text).await.map_err(fault::refused)?;
        }
    }
    if done == 0 {
        let query = "INSERT INTO meta (key, value) VALUES ('control_plane', $1), ('frozen', 'false')";
        transaction.execute(query, &[&control_plane.as_str()]).await.map_err(fault::refused)?;
    }
    if done < steps.len() {
        let query = "INSERT INTO meta (key, value) VALUES ('schema_version', $1)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        transaction.execute(query, &[&steps.len().to_string()]).await.map_err(fault::refused)?;
    }
    Ok(())
}

async fn check_server(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    let query = "SELECT current_setting('server_version_num')::int, current_setting('server_version'),
         current_setting('server_encoding'), current_setting('fsync')";
    let row = transaction.query_one(query, &[]).await.map_err(fault::refused)?;
    let (number, name, encoding, fsync): (i32, &str, &str, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
    if number < SERVER_MIN {
        return Err(StoreError::Refused(format!("the server is PostgreSQL {name}: expected 13 or newer")));
    }
    if encoding != "UTF8" {
        return Err(StoreError::Refused(format!("the database is encoded in {encoding}: expected UTF8")));
    }
    if fsync == "off" {
        tracing::warn!("the server has fsync off: what was accepted may be lost when its machine stops");
    }
    Ok(())
}

async fn find(transaction: &Transaction<'_>, schema: &Schema, newest: usize) -> Result<Found, StoreError> {
    let query = "SELECT n.oid IS NOT NULL, EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid),
             EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'meta'
                 AND EXISTS (SELECT FROM pg_class o WHERE o.relnamespace = n.oid AND o.relname = 'counters'))
         FROM (SELECT 1) AS one LEFT JOIN pg_namespace n ON n.nspname = $1";
    let row = transaction.query_one(query, &[&schema.as_str()]).await.map_err(fault::refused)?;
    match (row.get(0), row.get(1), row.get(2)) {
        (false, ..) => return Ok(Found::Nothing),
        (true, false, _) => return Ok(Found::Empty),
        (true, true, false) => {
            return Err(StoreError::Refused(format!(
                "the schema {schema} belongs to another application: expected a store of this project, an empty schema or none"
            )));
        }
        (true, true, true) => {}
    }
    let version = meta(transaction, "schema_version").await?;
    match version.as_deref().map(str::parse) {
        Some(Ok(version)) if version <= newest => Ok(Found::Version(version)),
        _ => Err(StoreError::Refused(format!(
            "the schema {schema} was written by a newer release: found schema version {}, expected up to {newest}",
            version.as_deref().unwrap_or("none")
        ))),
    }
}

async fn check_owner(
    transaction: &Transaction<'_>,
    schema: &Schema,
    control_plane: &ControlPlaneId,
) -> Result<(), StoreError> {
    let owner = meta(transaction, "control_plane").await?;
    if owner.as_deref() == Some(control_plane.as_str()) {
        return Ok(());
    }
    let owner = owner.unwrap_or_else(|| "nobody".into());
    Err(StoreError::Refused(format!(
        "the schema {schema} belongs to another control plane: found {owner}, expected {control_plane}"
    )))
}

async fn meta(transaction: &Transaction<'_>, key: &str) -> Result<Option<String>, StoreError> {
    let row = transaction.query_opt("SELECT value FROM meta WHERE key = $1", &[&key]).await.map_err(fault::refused)?;
    Ok(row.map(|row| row.get(0)))
}
