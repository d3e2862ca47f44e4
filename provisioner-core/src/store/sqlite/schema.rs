//! The tables, and how a file of an earlier release becomes one of this release.

use rusqlite::{Connection, TransactionBehavior};

/// Marks a file as a store of this project: `Prov`.
pub(super) const APPLICATION_ID: i32 = 0x5072_6f76;

/// Numbered steps forward: after step n, `user_version` is n. A step that was released is never changed.
const MIGRATIONS: [&str; 1] = [TABLES];

/// The schema that this release writes.
pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Columns are what is looked for or counted; the rest of a row is its `body`, JSON with a schema version of its own.
///
/// Rows with a large body keep a rowid, because a b-tree whose inner pages hold whole rows is deep. Specs have a table
/// of their own, so that a step does not write the spec again. What is at rest is in no index of due rows.
const TABLES: &str = "
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    epoch INTEGER PRIMARY KEY AUTOINCREMENT,
    holder TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE instances (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    cell TEXT NOT NULL,
    lane INTEGER NOT NULL,
    due_at INTEGER,
    phase TEXT,
    parked INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX instances_due ON instances (cell, lane, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX instances_by_tenant ON instances (tenant, id);
CREATE INDEX instances_by_cell ON instances (cell, id);
CREATE INDEX instances_by_phase ON instances (phase, id, cell);
CREATE INDEX instances_parked ON instances (id) WHERE parked = 1;

CREATE TABLE specs (
    instance TEXT NOT NULL,
    generation INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (instance, generation)
) STRICT;

CREATE TABLE reservations (
    instance TEXT PRIMARY KEY,
    cell TEXT NOT NULL,
    cpu_millis INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    data_mib INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The sums of the reservations, kept in step with them.
CREATE TABLE usage (
    cell TEXT PRIMARY KEY,
    instances INTEGER NOT NULL,
    cpu_millis INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    data_mib INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE host_names (
    name TEXT PRIMARY KEY,
    instance TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX host_names_by_instance ON host_names (instance);

CREATE TABLE incarnations (
    incarnation TEXT PRIMARY KEY,
    instance TEXT NOT NULL,
    tenant TEXT NOT NULL,
    cell TEXT NOT NULL,
    data TEXT NOT NULL,
    state TEXT NOT NULL,
    ended_at INTEGER,
    due_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX incarnations_open ON incarnations (cell, due_at, incarnation)
    WHERE due_at IS NOT NULL OR state <> 'ended';
CREATE INDEX incarnations_ended ON incarnations (ended_at) WHERE state = 'ended';

CREATE TABLE data (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    instance TEXT NOT NULL,
    cell TEXT NOT NULL,
    state TEXT NOT NULL,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX data_by_tenant ON data (tenant, id);
CREATE INDEX data_by_cell ON data (cell);

-- What changes is not in the body: the key is taken off once its time is over, and an end is written without the rest.
CREATE TABLE operations (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    key TEXT,
    verb TEXT NOT NULL,
    state TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    ended_at INTEGER,
    failure TEXT,
    body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX operations_by_key ON operations (key) WHERE key IS NOT NULL;
CREATE INDEX operations_ended ON operations (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX operations_creations ON operations (ended_at, id, accepted_at, state)
    WHERE verb = 'create' AND state IN ('done', 'failed');

CREATE TABLE events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    instance TEXT,
    at INTEGER NOT NULL,
    last INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_instance ON events (instance) WHERE instance IS NOT NULL;
CREATE INDEX events_by_age ON events (at);

-- Instances that are gone and whose events up to this one are not removed yet.
CREATE TABLE forgotten (
    position INTEGER PRIMARY KEY,
    instance TEXT NOT NULL
) STRICT;

CREATE TABLE strangers (
    incarnation TEXT PRIMARY KEY,
    instance TEXT NOT NULL,
    cell TEXT NOT NULL,
    data TEXT,
    generation INTEGER NOT NULL,
    found_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE cells (
    name TEXT PRIMARY KEY,
    identity TEXT,
    drift_frozen TEXT
) STRICT, WITHOUT ROWID;
";

/// The schema that a file has.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Brings a file forward to this release's schema, whole or not at all.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    let done = usize::try_from(found).unwrap_or(0).min(MIGRATIONS.len());
    for migration in &MIGRATIONS[done..] {
        transaction.execute_batch(migration)?;
    }
    if done < MIGRATIONS.len() {
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    transaction.commit()
}
