//! The same rows, written with nothing in between: what the store costs when nobody thinks.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use provisioner_core::store::{Change, InstanceWrite};
use rusqlite::{Connection, params_from_iter, types::Value};

/// The rows of changes as plain statements, encoded before the clock runs.
#[derive(Debug)]
pub struct Bare {
    changes: Vec<Vec<(&'static str, Vec<Value>)>>,
}

impl Bare {
    /// The rows of these changes.
    ///
    /// # Panics
    /// Never, as stored types have text keys.
    #[must_use]
    pub fn new(changes: &[Change]) -> Self {
        Self { changes: changes.iter().map(statements).collect() }
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Writes them all into a file that has the store's tables, so many changes to a transaction, and says how long it
    /// took. Durable after each transaction, as the store is.
    ///
    /// # Errors
    /// What SQLite answers.
    pub fn write(&self, file: &Path, batch: usize) -> rusqlite::Result<Duration> {
        let connection = Connection::open(file)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "cache_size", -32_000)?;
        connection.pragma_update(None, "wal_autocheckpoint", 64_000)?;
        connection.set_prepared_statement_cache_capacity(64);
        let began = Instant::now();
        for changes in self.changes.chunks(batch.max(1)) {
            connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            for (sql, values) in changes.iter().flatten() {
                connection.prepare_cached(sql)?.execute(params_from_iter(values))?;
            }
            connection.prepare_cached("COMMIT")?.execute([])?;
        }
        Ok(began.elapsed())
    }
}

/// Makes a file with a store's tables and indexes, and nothing in them.
///
/// # Errors
/// What SQLite answers.
pub fn empty_copy(of: &Path, file: &Path) -> rusqlite::Result<()> {
    let tables: Vec<String> = Connection::open(of)?
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid")
        .and_then(|mut tables| tables.query_map([], |row| row.get(0))?.collect())?;
    Connection::open(file)?.execute_batch(&tables.join(";\n"))
}

fn text(value: impl ToString) -> Value {
    Value::Text(value.to_string())
}

fn number(value: impl TryInto<i64>) -> Value {
    Value::Integer(value.try_into().unwrap_or(i64::MAX))
}

fn json(value: &impl serde::Serialize) -> Value {
    Value::Text(serde_json::to_string(value).expect("stored types have text keys"))
}

fn or_null(value: Option<Value>) -> Value {
    value.unwrap_or(Value::Null)
}

fn statements(change: &Change) -> Vec<(&'static str, Vec<Value>)> {
    let mut all = Vec::new();
    instance(change, &mut all);
    if let Some(row) = change.instance.as_ref().and_then(InstanceWrite::row) {
        for (generation, spec) in &change.specs {
            all.push((
                "INSERT OR REPLACE INTO specs (instance, generation, body) VALUES (?1, ?2, ?3)",
                vec![text(&row.id), number(generation.0), json(spec)],
            ));
        }
        if let Some(reservation) = &change.reservation {
            let (cpu, memory) = (number(reservation.size.cpu_millis), number(reservation.size.memory_mib));
            all.push((
                "INSERT OR REPLACE INTO reservations (instance, cell, cpu_millis, memory_mib, data_mib)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                vec![text(&row.id), text(&reservation.cell), cpu, memory, number(reservation.data_mib)],
            ));
        }
    }
    for operation in &change.operations {
        all.push((
            "INSERT INTO operations (id, key, verb, state, accepted_at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            vec![
                text(&operation.id),
                or_null(operation.key.as_ref().map(text)),
                text(operation.verb.as_str()),
                text(operation.state.as_str()),
                number(operation.accepted_at.unix_ms()),
                json(operation),
            ],
        ));
    }
    for end in &change.ended {
        all.push((
            "UPDATE operations SET state = ?2, ended_at = ?3, failure = ?4 WHERE id = ?1",
            vec![
                text(&end.id),
                text(end.state.as_str()),
                number(end.at.unix_ms()),
                or_null(end.failure.as_ref().map(json)),
            ],
        ));
    }
    incarnations_and_data(change, &mut all);
    for event in &change.events {
        all.push((
            "INSERT INTO events (instance, at, last, body) VALUES (?1, ?2, 0, ?3)",
            vec![or_null(event.instance.as_ref().map(text)), number(event.at.unix_ms()), json(event)],
        ));
    }
    all
}

fn instance(change: &Change, all: &mut Vec<(&'static str, Vec<Value>)>) {
    match &change.instance {
        Some(InstanceWrite::Insert(row)) => all.push((
            "INSERT INTO instances (id, version, tenant, cell, lane, due_at, phase, parked, body)
             VALUES (?1, 1, ?2, ?3, 0, ?4, NULL, 0, ?5)",
            vec![
                text(&row.id),
                text(&row.tenant),
                text(&row.cell),
                or_null(row.due_at.map(|at| number(at.unix_ms()))),
                json(row),
            ],
        )),
        Some(InstanceWrite::Update { row, .. }) => all.push((
            "UPDATE instances SET version = version + 1, due_at = ?2, phase = ?3, body = ?4 WHERE id = ?1",
            vec![
                text(&row.id),
                or_null(row.due_at.map(|at| number(at.unix_ms()))),
                or_null(row.phase.map(|phase| text(phase.as_str()))),
                json(row),
            ],
        )),
        Some(InstanceWrite::Delete { id, .. }) => {
            for sql in [
                "DELETE FROM instances WHERE id = ?1",
                "DELETE FROM specs WHERE instance = ?1",
                "DELETE FROM reservations WHERE instance = ?1",
            ] {
                all.push((sql, vec![text(id)]));
            }
        }
        None => {}
    }
}

fn incarnations_and_data(change: &Change, all: &mut Vec<(&'static str, Vec<Value>)>) {
    for row in &change.incarnations {
        all.push((
            "INSERT OR REPLACE INTO incarnations (incarnation, instance, tenant, cell, data, state, ended_at, due_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            vec![
                text(row.incarnation),
                text(&row.instance),
                text(&row.tenant),
                text(&row.cell),
                text(&row.data),
                text(format!("{:?}", row.state).to_lowercase()),
                or_null(row.ended_at.map(|at| number(at.unix_ms()))),
                or_null(row.due_at.map(|at| number(at.unix_ms()))),
            ],
        ));
    }
    for row in &change.data {
        all.push((
            "INSERT OR REPLACE INTO data (id, tenant, instance, cell, state, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            vec![
                text(&row.id),
                text(&row.tenant),
                text(&row.instance),
                text(&row.cell),
                text("used"),
                number(row.since.unix_ms()),
            ],
        ));
    }
    for id in &change.drop_data {
        all.push(("DELETE FROM data WHERE id = ?1", vec![text(id)]));
    }
}
