//! One change inside a transaction: first every condition, then every write.
//!
//! A refused change has written nothing, so the other changes of its transaction need no savepoint.

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::{
    super::{
        CellUsage, Change, Committed, EventKind, InstanceRow, InstanceWrite, Operation, Reservation, StoreError,
        Worker,
        condition::{Held, check_capacity, is_retained_for, key_is_kept},
        format::{self, Columns, Prepared, ms},
    },
    fault::Fault,
    maintain, read,
};
use crate::types::{InstanceId, Phase, Timestamp};

/// Takes a change, or refuses it and writes nothing. `position` is the last event's, before and after.
pub(super) fn take(connection: &Connection, prepared: &Prepared, position: &mut u64) -> Result<Committed, Fault> {
    let change = &prepared.change;
    let checked = check(connection, change)?;
    let version = write_instance(connection, prepared, &checked)?;
    write_specs(connection, prepared)?;
    if let Some(reservation) = &change.reservation {
        let id = &change.row().expect("checked: a reservation comes with its instance").id;
        write_reservation(connection, id, reservation, checked.held.as_ref())?;
    }
    write_operations(connection, prepared, &checked.keys)?;
    write_incarnations(connection, change)?;
    write_data(connection, change)?;
    write_findings(connection, change)?;
    write_events(connection, prepared, position)?;
    Ok(Committed { version, position: *position, worker: Worker::Here })
}

/// What the conditions found that the writes need.
struct Checked {
    place: Option<Place>,
    keys: Vec<KeyUse>,
    held: Option<Held>,
}

/// Where an instance's row is, and what of it would not change.
struct Place {
    row: i64,
    same_listing: bool,
    same_due: bool,
}

/// What becomes of an operation's key.
enum KeyUse {
    /// It is written, if the operation is a new one.
    Write,
    /// The operation has none, or lost it to another one.
    Leave,
    /// It is taken off this row first: its time is over.
    TakeFrom(i64),
}

fn check(connection: &Connection, change: &Change) -> Result<Checked, Fault> {
    change.check_shape()?;
    if change.answers.is_some() {
        // There is no inbox.
        return Err(StoreError::Answered.into());
    }
    if let Some(epoch) = change.epoch {
        maintain::check_session(connection, epoch)?;
    }
    let keys = change.operations.iter().map(|operation| check_key(connection, operation)).collect::<Result<_, _>>()?;
    let place = change.instance.as_ref().map(|write| check_instance(connection, write)).transpose()?.flatten();
    let mut held = None;
    if let (Some(reservation), Some(row)) = (&change.reservation, change.row()) {
        check_host_names(connection, &row.id, reservation)?;
        held = read_held(connection, &row.id)?;
        let used = read::usage(connection, &reservation.cell)?;
        check_capacity(&reservation.capacity, &used, held.as_ref(), &Held::of(reservation))?;
    }
    if let (Some(id), Some(row)) = (&change.take_data, change.row())
        && !read::data_set(connection, id)?.is_some_and(|data| is_retained_for(&data, row))
    {
        return Err(StoreError::DataNotRetained(id.clone()).into());
    }
    Ok(Checked { place, keys, held })
}

fn check_key(connection: &Connection, operation: &Operation) -> Result<KeyUse, Fault> {
    let Some(key) = &operation.key else { return Ok(KeyUse::Leave) };
    let mut holder = connection.prepare_cached("SELECT row, id, accepted_at FROM operations WHERE key = ?1")?;
    let found: Option<(i64, String, i64)> =
        holder.query_row([key.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    let Some((row, id, accepted_at)) = found.filter(|(_, id, _)| id != operation.id.as_str()) else {
        return Ok(KeyUse::Write);
    };
    if exists(connection, "SELECT 1 FROM operations WHERE id = ?1", operation.id.as_str())? {
        return Ok(KeyUse::Leave);
    }
    if key_is_kept(Timestamp::from_unix_ms(accepted_at), operation.accepted_at) {
        let holder = format::parse("an operation", &id)?;
        let holder = read::operation(connection, &holder)?.expect("its row was found in this transaction");
        return Err(StoreError::KeyUsed(Box::new(holder)).into());
    }
    Ok(KeyUse::TakeFrom(row))
}

fn check_instance(connection: &Connection, write: &InstanceWrite) -> Result<Option<Place>, Fault> {
    let expected = match write {
        InstanceWrite::Insert(row) => {
            return match exists(connection, "SELECT 1 FROM instances WHERE id = ?1", row.id.as_str())? {
                true => Err(StoreError::Exists.into()),
                false => Ok(None),
            };
        }
        InstanceWrite::Update { expected, .. } | InstanceWrite::Delete { expected, .. } => *expected,
    };
    let mut statement = connection.prepare_cached(
        "SELECT row, version, tenant, cell, phase, parked, lane, due_at FROM instances WHERE id = ?1",
    )?;
    let mut rows = statement.query([write.id().as_str()])?;
    let Some(found) = rows.next()? else { return Err(StoreError::Stale.into()) };
    if found.get::<_, u64>(1)? != expected {
        return Err(StoreError::Stale.into());
    }
    let (mut same_listing, mut same_due) = (false, false);
    if let Some(row) = write.row() {
        same_listing = found.text(2)? == row.tenant.as_str()
            && found.text(3)? == row.cell.as_str()
            && found.text_or_null(4)? == row.phase.map(Phase::as_str)
            && found.get::<_, bool>(5)? == row.parked;
        same_due =
            found.get::<_, i64>(6)? == format::lane(row.lane) && found.get::<_, Option<i64>>(7)? == ms(row.due_at);
    }
    Ok(Some(Place { row: found.get(0)?, same_listing, same_due }))
}

fn check_host_names(connection: &Connection, id: &InstanceId, reservation: &Reservation) -> Result<(), Fault> {
    let mut owner = connection.prepare_cached("SELECT 1 FROM host_names WHERE name = ?1 AND instance <> ?2")?;
    for name in &reservation.host_names {
        if owner.exists([name.as_str(), id.as_str()])? {
            return Err(StoreError::HostNameTaken(name.clone()).into());
        }
    }
    Ok(())
}

fn read_held(connection: &Connection, id: &InstanceId) -> Result<Option<Held>, Fault> {
    let mut statement = connection
        .prepare_cached("SELECT cell, cpu_millis, memory_mib, data_mib FROM reservations WHERE instance = ?1")?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Held {
        cell: format::parse("a reservation", row.text(0)?)?,
        usage: CellUsage { instances: 1, cpu_millis: row.get(1)?, memory_mib: row.get(2)?, data_mib: row.get(3)? },
    }))
}

/// Writes the instance's row and says its version; 0 when none was written.
fn write_instance(connection: &Connection, prepared: &Prepared, checked: &Checked) -> Result<u64, Fault> {
    let body = prepared.instance.as_deref();
    match (&prepared.change.instance, &checked.place) {
        (Some(InstanceWrite::Insert(row)), _) => insert_instance(connection, row, body),
        (Some(InstanceWrite::Update { row, expected }), Some(place)) => {
            let version = expected + 1;
            update_instance(connection, row, body, version, place)?;
            Ok(version)
        }
        (Some(InstanceWrite::Delete { id, expected }), Some(place)) => {
            connection.prepare_cached("DELETE FROM instances WHERE row = ?1")?.execute([place.row])?;
            connection.prepare_cached("DELETE FROM specs WHERE instance = ?1")?.execute([id.as_str()])?;
            release(connection, id)?;
            // A later instance of this id begins above: otherwise a write that was meant for this one could hit it.
            connection
                .prepare_cached(
                    "INSERT INTO meta (key, value) VALUES ('version_used', ?1)
                     ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
                )?
                .execute([expected])?;
            Ok(0)
        }
        _ => Ok(0),
    }
}

fn insert_instance(connection: &Connection, row: &InstanceRow, body: Option<&str>) -> Result<u64, Fault> {
    let used: Option<u64> = connection
        .prepare_cached("SELECT value FROM meta WHERE key = 'version_used'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let version = used.unwrap_or(0) + 1;
    let mut insert = connection.prepare_cached(
        "INSERT INTO instances (id, version, tenant, cell, lane, due_at, phase, parked, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    insert.execute(params![
        row.id.as_str(),
        version,
        row.tenant.as_str(),
        row.cell.as_str(),
        format::lane(row.lane),
        ms(row.due_at),
        row.phase.map(Phase::as_str),
        row.parked,
        body,
    ])?;
    Ok(version)
}

/// Names only the columns that change: SQLite writes every index of a column that an update names.
fn update_instance(
    connection: &Connection,
    row: &InstanceRow,
    body: Option<&str>,
    version: u64,
    place: &Place,
) -> Result<(), Fault> {
    let (lane, due_at) = (format::lane(row.lane), ms(row.due_at));
    let updated = match place {
        Place { same_listing: false, .. } => connection
            .prepare_cached(
                "UPDATE instances SET version = ?2, body = ?3, lane = ?4, due_at = ?5,
                     tenant = ?6, cell = ?7, phase = ?8, parked = ?9 WHERE row = ?1",
            )?
            .execute(params![
                place.row,
                version,
                body,
                lane,
                due_at,
                row.tenant.as_str(),
                row.cell.as_str(),
                row.phase.map(Phase::as_str),
                row.parked,
            ])?,
        Place { same_due: false, .. } => connection
            .prepare_cached("UPDATE instances SET version = ?2, body = ?3, lane = ?4, due_at = ?5 WHERE row = ?1")?
            .execute(params![place.row, version, body, lane, due_at])?,
        Place { .. } => connection
            .prepare_cached("UPDATE instances SET version = ?2, body = ?3 WHERE row = ?1")?
            .execute(params![place.row, version, body])?,
    };
    debug_assert_eq!(updated, 1, "the row was found in this transaction");
    Ok(())
}

fn write_specs(connection: &Connection, prepared: &Prepared) -> Result<(), Fault> {
    let change = &prepared.change;
    let Some(id) = change.row().map(|row| row.id.as_str()) else { return Ok(()) };
    for ((generation, _), body) in change.specs.iter().zip(&prepared.specs) {
        connection
            .prepare_cached(
                "INSERT INTO specs (instance, generation, body) VALUES (?1, ?2, ?3)
                 ON CONFLICT (instance, generation) DO UPDATE SET body = excluded.body",
            )?
            .execute(params![id, generation.0, body])?;
    }
    if let Some(keep) = &change.keep_specs {
        let mut kept = connection.prepare_cached("SELECT generation FROM specs WHERE instance = ?1")?;
        let generations = kept.query_map([id], |row| row.get::<_, u64>(0))?.collect::<Result<Vec<_>, _>>()?;
        let mut drop = connection.prepare_cached("DELETE FROM specs WHERE instance = ?1 AND generation = ?2")?;
        for generation in generations.into_iter().filter(|found| keep.iter().all(|keep| keep.0 != *found)) {
            drop.execute(params![id, generation])?;
        }
    }
    Ok(())
}

fn write_reservation(
    connection: &Connection,
    id: &InstanceId,
    reservation: &Reservation,
    held: Option<&Held>,
) -> Result<(), Fault> {
    let wanted = Held::of(reservation);
    if held != Some(&wanted) {
        if let Some(held) = held {
            subtract_usage(connection, held)?;
        }
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO reservations (instance, cell, cpu_millis, memory_mib, data_mib)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                id.as_str(),
                wanted.cell.as_str(),
                wanted.usage.cpu_millis,
                wanted.usage.memory_mib,
                wanted.usage.data_mib,
            ])?;
        add_usage(connection, &wanted)?;
    }
    if held.is_some() {
        connection.prepare_cached("DELETE FROM host_names WHERE instance = ?1")?.execute([id.as_str()])?;
    }
    let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO host_names (name, instance) VALUES (?1, ?2)")?;
    for name in &reservation.host_names {
        insert.execute([name.as_str(), id.as_str()])?;
    }
    Ok(())
}

/// Gives back all that an instance reserved.
fn release(connection: &Connection, id: &InstanceId) -> Result<(), Fault> {
    if let Some(held) = read_held(connection, id)? {
        subtract_usage(connection, &held)?;
        connection.prepare_cached("DELETE FROM reservations WHERE instance = ?1")?.execute([id.as_str()])?;
        connection.prepare_cached("DELETE FROM host_names WHERE instance = ?1")?.execute([id.as_str()])?;
    }
    Ok(())
}

fn add_usage(connection: &Connection, held: &Held) -> Result<(), Fault> {
    let add = connection.prepare_cached(
        "INSERT INTO usage (cell, instances, cpu_millis, memory_mib, data_mib) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (cell) DO UPDATE SET instances = instances + excluded.instances,
             cpu_millis = cpu_millis + excluded.cpu_millis, memory_mib = memory_mib + excluded.memory_mib,
             data_mib = data_mib + excluded.data_mib",
    )?;
    change_usage(add, held)
}

fn subtract_usage(connection: &Connection, held: &Held) -> Result<(), Fault> {
    let subtract = connection.prepare_cached(
        "UPDATE usage SET instances = instances - ?2, cpu_millis = cpu_millis - ?3, memory_mib = memory_mib - ?4,
             data_mib = data_mib - ?5 WHERE cell = ?1",
    )?;
    change_usage(subtract, held)
}

fn change_usage(mut statement: CachedStatement<'_>, held: &Held) -> Result<(), Fault> {
    let usage = &held.usage;
    let parameters = params![held.cell.as_str(), usage.instances, usage.cpu_millis, usage.memory_mib, usage.data_mib];
    statement.execute(parameters)?;
    Ok(())
}

fn write_operations(connection: &Connection, prepared: &Prepared, keys: &[KeyUse]) -> Result<(), Fault> {
    for ((operation, body), key_use) in prepared.change.operations.iter().zip(&prepared.operations).zip(keys) {
        let key = match key_use {
            KeyUse::Leave => None,
            KeyUse::Write => operation.key.as_ref(),
            KeyUse::TakeFrom(row) => {
                connection.prepare_cached("UPDATE operations SET key = NULL WHERE row = ?1")?.execute([row])?;
                operation.key.as_ref()
            }
        };
        // The key of one that is there already stays as it is: it may have lost it.
        connection
            .prepare_cached(
                "INSERT INTO operations (id, key, verb, state, accepted_at, ended_at, failure, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET state = excluded.state, ended_at = excluded.ended_at,
                     failure = excluded.failure, body = excluded.body",
            )?
            .execute(params![
                operation.id.as_str(),
                key.map(|key| key.as_str()),
                operation.verb.as_str(),
                operation.state.as_str(),
                operation.accepted_at.unix_ms(),
                ms(operation.ended_at),
                operation.failure.as_ref().map(format::failure),
                body,
            ])?;
    }
    for end in &prepared.change.ended {
        connection
            .prepare_cached(
                "UPDATE operations SET state = ?2, ended_at = ?3, failure = ?4 WHERE id = ?1 AND ended_at IS NULL",
            )?
            .execute(params![
                end.id.as_str(),
                end.state.as_str(),
                end.at.unix_ms(),
                end.failure.as_ref().map(format::failure),
            ])?;
    }
    Ok(())
}

fn write_incarnations(connection: &Connection, change: &Change) -> Result<(), Fault> {
    for making in &change.incarnations {
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO incarnations
                     (incarnation, instance, tenant, cell, data, state, ended_at, due_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                making.incarnation.to_string(),
                making.instance.as_str(),
                making.tenant.as_str(),
                making.cell.as_str(),
                making.data.as_str(),
                format::incarnation_state(making.state),
                ms(making.ended_at),
                ms(making.due_at),
            ])?;
    }
    Ok(())
}

fn write_data(connection: &Connection, change: &Change) -> Result<(), Fault> {
    for data in &change.data {
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO data (id, tenant, instance, cell, state, since)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                data.id.as_str(),
                data.tenant.as_str(),
                data.instance.as_str(),
                data.cell.as_str(),
                format::data_state(data.state),
                data.since.unix_ms(),
            ])?;
    }
    for id in &change.drop_data {
        connection.prepare_cached("DELETE FROM data WHERE id = ?1")?.execute([id.as_str()])?;
    }
    Ok(())
}

/// Writes what is about cells and the whole control plane.
fn write_findings(connection: &Connection, change: &Change) -> Result<(), Fault> {
    for stranger in &change.strangers {
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO strangers (incarnation, instance, cell, data, generation, found_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                stranger.incarnation.to_string(),
                stranger.instance.as_str(),
                stranger.cell.as_str(),
                stranger.data.as_ref().map(|data| data.as_str()),
                stranger.generation.0,
                stranger.found_at.unix_ms(),
            ])?;
    }
    for incarnation in &change.drop_strangers {
        connection
            .prepare_cached("DELETE FROM strangers WHERE incarnation = ?1")?
            .execute([incarnation.to_string()])?;
    }
    for cell in &change.cells {
        connection
            .prepare_cached("INSERT OR REPLACE INTO cells (name, identity, drift_frozen) VALUES (?1, ?2, ?3)")?
            .execute(params![cell.name.as_str(), cell.identity, cell.drift_frozen])?;
    }
    if let Some(frozen) = change.frozen {
        connection
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('frozen', ?1)")?
            .execute([frozen])?;
    }
    Ok(())
}

fn write_events(connection: &Connection, prepared: &Prepared, position: &mut u64) -> Result<(), Fault> {
    for (event, body) in prepared.change.events.iter().zip(&prepared.events) {
        let last = matches!(event.what, EventKind::Forgotten { .. });
        let instance = event.instance.as_ref().map(InstanceId::as_str);
        // The position is given, not left to SQLite, so that positions have no gaps whatever it does.
        *position += 1;
        connection
            .prepare_cached("INSERT INTO events (position, instance, at, last, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![*position, instance, event.at.unix_ms(), last, body])?;
        if let (true, Some(instance)) = (last, instance) {
            connection
                .prepare_cached("INSERT INTO forgotten (position, instance) VALUES (?1, ?2)")?
                .execute(params![*position, instance])?;
        }
    }
    Ok(())
}

fn exists(connection: &Connection, query: &str, key: &str) -> Result<bool, Fault> {
    Ok(connection.prepare_cached(query)?.exists([key])?)
}
