//! Reads. Each runs inside a read transaction, so that a row and its specs are of one moment.

use std::{collections::BTreeMap, fmt::Write as _};

use rusqlite::{Connection, OptionalExtension, Params, params};

use super::{
    super::{
        CellRow, CellUsage, Claim, DataRow, Event, IncarnationRow, InstanceFilter, Operation, Record, StoreError,
        Stranger,
        format::{self, Columns, clamp, damaged},
    },
    fault::Fault,
    maintain,
};
use crate::types::{
    CellName, DataId, Generation, IdempotencyKey, Incarnation, InstanceId, OperationId, Phase, TenantId, Timestamp,
};

/// Every phase, and not seen yet.
const PHASES: [Option<Phase>; 7] = [
    None,
    Some(Phase::Provisioning),
    Some(Phase::Running),
    Some(Phase::Zero),
    Some(Phase::Suspended),
    Some(Phase::Destroying),
    Some(Phase::Failed),
];

type Result<T> = std::result::Result<T, StoreError>;

/// Refuses unless this session is in force.
pub(super) fn check_session(connection: &Connection, epoch: u64) -> Result<()> {
    maintain::check_session(connection, epoch).map_err(|fault| match fault {
        Fault::Refused(error) => error,
        Fault::Sqlite(error) => error.into(),
    })
}

pub(super) fn instance(connection: &Connection, id: &InstanceId) -> Result<Option<Record>> {
    let query = "SELECT version, body FROM instances WHERE id = ?1";
    first(connection, query, [id.as_str()], |row| record(connection, row))
}

pub(super) fn instances(
    connection: &Connection,
    filter: &InstanceFilter,
    after: Option<&InstanceId>,
    limit: usize,
) -> Result<Vec<Record>> {
    // A filter that is not asked for must not be in the text: no index could serve it then.
    let mut query = String::from("SELECT version, body FROM instances WHERE id > ?1");
    let mut values = vec![after.map_or("", InstanceId::as_str)];
    let mut narrow = |column: &str, value| {
        values.push(value);
        write!(query, " AND {column} = ?{}", values.len()).expect("a string takes all that is written to it");
    };
    if let Some(tenant) = &filter.tenant {
        narrow("tenant", tenant.as_str());
    }
    if let Some(cell) = &filter.cell {
        narrow("cell", cell.as_str());
    }
    if let Some(phase) = filter.phase {
        narrow("phase", phase.as_str());
    }
    match filter.parked {
        Some(true) => query.push_str(" AND parked = 1"),
        Some(false) => query.push_str(" AND parked = 0"),
        None => {}
    }
    let limit = clamp(limit);
    write!(query, " ORDER BY id LIMIT {limit}").expect("a string takes all that is written to it");
    all(connection, &query, rusqlite::params_from_iter(values), |row| record(connection, row))
}

pub(super) fn counts(connection: &Connection) -> Result<Vec<(CellName, Option<Phase>, u64)>> {
    // Counted here from one pass over an index: SQLite would sort all rows first.
    let mut counts: BTreeMap<Box<str>, [u64; PHASES.len()]> = BTreeMap::new();
    let mut statement = connection.prepare_cached("SELECT cell, phase FROM instances")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let phase = row.text_or_null(1)?;
        let phase = PHASES
            .iter()
            .position(|known| known.map(Phase::as_str) == phase)
            .ok_or_else(|| damaged("an instance", format!("phase {phase:?}")))?;
        let cell = row.text(0)?;
        match counts.get_mut(cell) {
            Some(by_phase) => by_phase[phase] += 1,
            None => counts.entry(cell.into()).or_default()[phase] += 1,
        }
    }
    let mut found = Vec::new();
    for (cell, by_phase) in counts {
        let cell: CellName = format::parse("an instance", &cell)?;
        let some = PHASES.into_iter().zip(by_phase).filter(|(_, count)| *count > 0);
        found.extend(some.map(|(phase, count)| (cell.clone(), phase, count)));
    }
    Ok(found)
}

pub(super) fn claim(connection: &Connection, claim: &Claim) -> Result<Vec<Record>> {
    check_session(connection, claim.epoch)?;
    let (after, after_id) = match &claim.after {
        Some((due_at, id)) => (due_at.unix_ms(), id.as_str()),
        None => (i64::MIN, ""),
    };
    let query = "SELECT version, body FROM instances
         WHERE cell = ?1 AND lane = ?2 AND due_at <= ?3 AND (due_at, id) > (?4, ?5) ORDER BY due_at, id LIMIT ?6";
    let parameters = params![
        claim.cell.as_str(),
        format::lane(claim.lane),
        claim.now.unix_ms(),
        after,
        after_id,
        clamp(claim.limit)
    ];
    all(connection, query, parameters, |row| record(connection, row))
}

pub(super) fn next_due(connection: &Connection, cell: &CellName, now: Timestamp) -> Result<Option<Timestamp>> {
    let query = "SELECT min(due) FROM (
             SELECT min(due_at) AS due FROM instances WHERE cell = ?1 AND lane = 0 AND due_at > ?2
             UNION ALL SELECT min(due_at) FROM instances WHERE cell = ?1 AND lane = 1 AND due_at > ?2
             UNION ALL SELECT min(due_at) FROM incarnations
                 WHERE cell = ?1 AND due_at > ?2 AND due_at IS NOT NULL)";
    first(connection, query, params![cell.as_str(), now.unix_ms()], |row| row.time_or_null(0)).map(Option::flatten)
}

pub(super) fn due_incarnations(
    connection: &Connection,
    cell: &CellName,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<IncarnationRow>> {
    let query = format!(
        "SELECT {} FROM incarnations WHERE cell = ?1 AND due_at <= ?2 AND due_at IS NOT NULL
         ORDER BY due_at, incarnation LIMIT ?3",
        format::INCARNATION_COLUMNS
    );
    all(connection, &query, params![cell.as_str(), now.unix_ms(), clamp(limit)], format::incarnation_row)
}

pub(super) fn incarnations(connection: &Connection, of: &[Incarnation]) -> Result<Vec<Option<IncarnationRow>>> {
    let query = format!("SELECT {} FROM incarnations WHERE incarnation = ?1", format::INCARNATION_COLUMNS);
    of.iter().map(|one| first(connection, &query, [one.to_string()], format::incarnation_row)).collect()
}

pub(super) fn operation(connection: &Connection, id: &OperationId) -> Result<Option<Operation>> {
    let query = format!("SELECT {} FROM operations WHERE id = ?1", format::OPERATION_COLUMNS);
    first(connection, &query, [id.as_str()], format::operation)
}

/// Which of these operations have ended.
pub(super) fn ended(connection: &Connection, mut of: Vec<OperationId>) -> Result<Vec<OperationId>> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM operations WHERE id = ?1 AND ended_at IS NOT NULL")?;
    let mut failed = None;
    of.retain(|id| statement.exists([id.as_str()]).map_err(|error| failed = Some(error)).unwrap_or(false));
    failed.map_or(Ok(of), |error| Err(error.into()))
}

pub(super) fn operation_of_key(connection: &Connection, key: &IdempotencyKey) -> Result<Option<Operation>> {
    let query = format!("SELECT {} FROM operations WHERE key = ?1", format::OPERATION_COLUMNS);
    first(connection, &query, [key.as_str()], format::operation)
}

pub(super) fn provisioning_times(connection: &Connection, since: Timestamp, limit: usize) -> Result<Vec<(u64, bool)>> {
    let query = "SELECT max(0, ended_at - accepted_at), state = 'done' FROM operations
         WHERE verb = 'create' AND state IN ('done', 'failed') AND ended_at >= ?1
         ORDER BY ended_at DESC, id DESC LIMIT ?2";
    all(connection, query, params![since.unix_ms(), clamp(limit)], |row| Ok((row.count(0)?, row.number(1)? != 0)))
}

pub(super) fn events(
    connection: &Connection,
    instance: Option<&InstanceId>,
    after: u64,
    limit: usize,
) -> Result<Vec<Event>> {
    let columns = format::EVENT_COLUMNS;
    let after = clamp(after);
    match instance {
        Some(id) => {
            let query = format!(
                "SELECT {columns} FROM events WHERE instance = ?1 AND position > ?2 ORDER BY position LIMIT ?3"
            );
            all(connection, &query, params![id.as_str(), after, clamp(limit)], format::event)
        }
        None => {
            let query = format!("SELECT {columns} FROM events WHERE position > ?1 ORDER BY position LIMIT ?2");
            all(connection, &query, params![after, clamp(limit)], format::event)
        }
    }
}

/// The position of the last event there ever was, removed since or not.
pub(super) fn last_position(connection: &Connection) -> Result<u64> {
    let query = "SELECT seq FROM sqlite_sequence WHERE name = 'events'";
    first(connection, query, [], |row| row.count(0)).map(Option::unwrap_or_default)
}

pub(super) fn data_set(connection: &Connection, id: &DataId) -> Result<Option<DataRow>> {
    let query = format!("SELECT {} FROM data WHERE id = ?1", format::DATA_COLUMNS);
    first(connection, &query, [id.as_str()], format::data_row)
}

pub(super) fn data(
    connection: &Connection,
    tenant: Option<&TenantId>,
    after: Option<&DataId>,
    limit: usize,
) -> Result<Vec<DataRow>> {
    let columns = format::DATA_COLUMNS;
    let after = after.map_or("", DataId::as_str);
    match tenant {
        Some(tenant) => {
            let query = format!("SELECT {columns} FROM data WHERE tenant = ?1 AND id > ?2 ORDER BY id LIMIT ?3");
            all(connection, &query, params![tenant.as_str(), after, clamp(limit)], format::data_row)
        }
        None => {
            let query = format!("SELECT {columns} FROM data WHERE id > ?1 ORDER BY id LIMIT ?2");
            all(connection, &query, params![after, clamp(limit)], format::data_row)
        }
    }
}

pub(super) fn strangers(connection: &Connection) -> Result<Vec<Stranger>> {
    let query = format!("SELECT {} FROM strangers ORDER BY incarnation", format::STRANGER_COLUMNS);
    all(connection, &query, [], format::stranger)
}

pub(super) fn cells(connection: &Connection) -> Result<Vec<CellRow>> {
    let query = format!("SELECT {} FROM cells ORDER BY name", format::CELL_COLUMNS);
    all(connection, &query, [], format::cell_row)
}

pub(super) fn usage(connection: &Connection, cell: &CellName) -> Result<CellUsage> {
    let query = format!("SELECT {} FROM usage WHERE cell = ?1", format::USAGE_COLUMNS);
    first(connection, &query, [cell.as_str()], |row| format::usage(row, 0)).map(Option::unwrap_or_default)
}

pub(super) fn cells_in_use(connection: &Connection) -> Result<Vec<CellName>> {
    // One look into an index for each cell, instead of one for each row.
    let queries = [
        "SELECT min(cell) FROM instances WHERE cell > ?1",
        "SELECT min(cell) FROM incarnations WHERE cell > ?1 AND (due_at IS NOT NULL OR state <> 'ended')",
        "SELECT min(cell) FROM data WHERE cell > ?1",
        "SELECT min(cell) FROM strangers WHERE cell > ?1",
    ];
    let mut cells = Vec::new();
    for query in queries {
        let mut last = String::new();
        while let Some(cell) =
            first(connection, query, [&last], |row| Ok(row.text_or_null(0)?.map(String::from)))?.flatten()
        {
            cells.push(format::parse("a cell", &cell)?);
            last = cell;
        }
    }
    cells.sort();
    cells.dedup();
    Ok(cells)
}

pub(super) fn frozen(connection: &Connection) -> Result<bool> {
    let query = "SELECT value FROM meta WHERE key = 'frozen'";
    first(connection, query, [], |row| Ok(row.number(0)? != 0)).map(Option::unwrap_or_default)
}

/// Whose store this is; none when that is not recorded.
pub(super) fn control_plane(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT value FROM meta WHERE key = 'control_plane'", [], |row| row.get(0)).optional()
}

/// Completes a row of `version, body` with the specs it refers to.
fn record(connection: &Connection, row: &dyn Columns) -> Result<Record> {
    let version = row.count(0)?;
    let row = format::instance_row(row.text(1)?)?;
    let generations = [Some(row.wanted), Some(row.in_force), row.applied].map(|it| it.map(|it| it.0));
    let query = "SELECT generation, body FROM specs WHERE instance = ?1 AND generation IN (?2, ?3, ?4)";
    let parameters = params![row.id.as_str(), generations[0], generations[1], generations[2]];
    let specs = all(connection, query, parameters, |row| Ok((Generation(row.count(0)?), String::from(row.text(1)?))))?;
    format::record(row, version, false, specs.iter().map(|(generation, body)| (*generation, body.as_str())))
}

fn all<T>(
    connection: &Connection,
    query: &str,
    parameters: impl Params,
    read: impl Fn(&dyn Columns) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare_cached(query)?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn first<T>(
    connection: &Connection,
    query: &str,
    parameters: impl Params,
    read: impl Fn(&dyn Columns) -> Result<T>,
) -> Result<Option<T>> {
    let mut statement = connection.prepare_cached(query)?;
    let mut rows = statement.query(parameters)?;
    rows.next()?.map(|row| read(row)).transpose()
}
