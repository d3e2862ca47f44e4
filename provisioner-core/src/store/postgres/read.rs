//! Reads: each one statement, so that what it answers is of one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use tokio_postgres::types::ToSql;

use super::{
    super::{
        CellRow, CellUsage, DataRow, Event, IncarnationRow, InstanceFilter, Operation, Record, StoreError, Stranger,
        format::{self, Columns, clamp, damaged, parse},
    },
    connect::Readers,
    rows::{self, RECORD_COLUMNS, RECORD_SPECS, REQUEST_COLUMNS},
};
use crate::types::{
    CellName, DataId, IdempotencyKey, Incarnation, InstanceId, OperationId, Phase, TenantId, Timestamp,
};

type Result<T> = std::result::Result<T, StoreError>;
type Value<'a> = &'a (dyn ToSql + Sync);

pub(super) async fn instance(readers: &Readers, id: &InstanceId) -> Result<Option<Record>> {
    let query = format!("SELECT {RECORD_COLUMNS} FROM instances i {RECORD_SPECS} WHERE i.id = $1");
    readers.query_one(&query, &[&id.as_str()]).await?.as_ref().map(rows::record).transpose()
}

pub(super) async fn instances(
    readers: &Readers,
    filter: &InstanceFilter,
    after: Option<&InstanceId>,
    limit: usize,
) -> Result<Vec<Record>> {
    // A filter that is not asked for must not be in the text: no index could serve it then.
    let mut wanted = String::from("i.id > $1");
    let after = after.map_or("", InstanceId::as_str);
    let limit = clamp(limit);
    let tenant = filter.tenant.as_ref().map(TenantId::as_str);
    let cell = filter.cell.as_ref().map(CellName::as_str);
    let phase = filter.phase.map(Phase::as_str);
    let mut values: Vec<Value<'_>> = vec![&after, &limit];
    for (column, value) in [("tenant", &tenant), ("cell", &cell), ("phase", &phase)] {
        if let Some(value) = value {
            values.push(value);
            write!(wanted, " AND i.{column} = ${}", values.len()).expect("a string takes all that is written to it");
        }
    }
    match filter.parked {
        Some(true) => wanted.push_str(" AND i.parked"),
        Some(false) => wanted.push_str(" AND NOT i.parked"),
        None => {}
    }
    let query = format!(
        "SELECT {RECORD_COLUMNS} FROM (SELECT * FROM instances i WHERE {wanted} ORDER BY i.id LIMIT $2) AS i
         {RECORD_SPECS} ORDER BY i.id"
    );
    readers.query(&query, &values).await?.iter().map(rows::record).collect()
}

pub(super) async fn counts(readers: &Readers) -> Result<Vec<(CellName, Option<Phase>, u64)>> {
    const WHAT: &str = "an instance";
    let query = "SELECT cell, phase, count(*) FROM instances GROUP BY cell, phase";
    let counted = all(readers, query, &[], |row| {
        let phase = row.text_or_null(1)?.map(|word| serde_json::from_value(word.into())).transpose();
        let phase: Option<Phase> = phase.map_err(|error| damaged(WHAT, error))?;
        Ok(((parse(WHAT, row.text(0)?)?, phase), row.count(2)?))
    });
    let in_order = BTreeMap::from_iter(counted.await?);
    Ok(in_order.into_iter().map(|((cell, phase), count)| (cell, phase, count)).collect())
}

pub(super) async fn next_due(readers: &Readers, cell: &CellName, now: Timestamp) -> Result<Option<Timestamp>> {
    let query = "SELECT min(due) FROM (
             SELECT min(due_at) AS due FROM instances WHERE cell = $1 AND lane = 0 AND due_at > $2
             UNION ALL SELECT min(due_at) FROM instances WHERE cell = $1 AND lane = 1 AND due_at > $2
             UNION ALL SELECT min(due_at) FROM incarnations WHERE cell = $1 AND due_at > $2) AS each";
    let row = readers.query_one(query, &[&cell.as_str(), &now.unix_ms()]).await?;
    row.map_or(Ok(None), |row| row.time_or_null(0))
}

pub(super) async fn due_incarnations(
    readers: &Readers,
    cell: &CellName,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<IncarnationRow>> {
    let query = format!(
        "SELECT {} FROM incarnations WHERE cell = $1 AND due_at <= $2 ORDER BY due_at, incarnation LIMIT $3",
        format::INCARNATION_COLUMNS
    );
    all(readers, &query, &[&cell.as_str(), &now.unix_ms(), &clamp(limit)], format::incarnation_row).await
}

pub(super) async fn incarnations(readers: &Readers, of: &[Incarnation]) -> Result<Vec<Option<IncarnationRow>>> {
    let query = format!("SELECT {} FROM incarnations WHERE incarnation = ANY ($1)", format::INCARNATION_COLUMNS);
    let names: Vec<String> = of.iter().map(ToString::to_string).collect();
    let found = all(readers, &query, &[&names], format::incarnation_row).await?;
    let found: BTreeMap<Incarnation, IncarnationRow> = found.into_iter().map(|row| (row.incarnation, row)).collect();
    Ok(of.iter().map(|one| found.get(one).cloned()).collect())
}

/// An operation, or first the request that waits to become it, by one column of each. In one statement, so that a request that
/// is taken in meanwhile is seen at one place or the other.
fn operation_by(operation: &str, request: &str) -> String {
    let of_request = "NULL::bigint, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL::bigint, NULL::bigint";
    format!(
        "SELECT NULL, NULL, NULL::bigint, NULL, NULL, {REQUEST_COLUMNS} FROM inbox WHERE {request} = $1
         UNION ALL SELECT {}, {of_request} FROM operations WHERE {operation} = $1",
        format::OPERATION_COLUMNS,
    )
}

pub(super) async fn operation(readers: &Readers, id: &OperationId) -> Result<Option<Operation>> {
    let query = operation_by("id", "operation");
    let found = readers.query_one(&query, &[&id.as_str()]).await?;
    found.as_ref().map(rows::operation_or_request).transpose()
}

pub(super) async fn operation_of_key(readers: &Readers, key: &IdempotencyKey) -> Result<Option<Operation>> {
    let query = operation_by("key", "key");
    let found = readers.query_one(&query, &[&key.as_str()]).await?;
    found.as_ref().map(rows::operation_or_request).transpose()
}

/// Which of these operations have ended.
pub(super) async fn ended(readers: &Readers, of: &[OperationId]) -> Result<Vec<OperationId>> {
    let names: Vec<&str> = of.iter().map(OperationId::as_str).collect();
    let query = "SELECT id FROM operations WHERE id = ANY ($1) AND ended_at IS NOT NULL";
    let ended = all(readers, query, &[&names], |row| Ok(row.text(0)?.to_owned())).await?;
    let ended = BTreeSet::from_iter(ended);
    Ok(of.iter().filter(|id| ended.contains(id.as_str())).cloned().collect())
}

pub(super) async fn provisioning_times(readers: &Readers, since: Timestamp, limit: usize) -> Result<Vec<(u64, bool)>> {
    let query = "SELECT greatest(0, ended_at - accepted_at), (state = 'done')::int::bigint FROM operations
         WHERE verb = 'create' AND state IN ('done', 'failed') AND ended_at >= $1
         ORDER BY ended_at DESC, id DESC LIMIT $2";
    all(readers, query, &[&since.unix_ms(), &clamp(limit)], |row| Ok((row.count(0)?, row.number(1)? != 0))).await
}

pub(super) async fn events(
    readers: &Readers,
    instance: Option<&InstanceId>,
    after: u64,
    limit: usize,
) -> Result<Vec<Event>> {
    let columns = format::EVENT_COLUMNS;
    let (after, limit) = (clamp(after), clamp(limit));
    match instance {
        Some(id) => {
            let query = format!(
                "SELECT {columns} FROM events WHERE instance = $1 AND position > $2 ORDER BY position LIMIT $3"
            );
            all(readers, &query, &[&id.as_str(), &after, &limit], format::event).await
        }
        None => {
            let query = format!("SELECT {columns} FROM events WHERE position > $1 ORDER BY position LIMIT $2");
            all(readers, &query, &[&after, &limit], format::event).await
        }
    }
}

/// The position of the last event there ever was, removed since or not.
pub(super) const LAST_POSITION: &str = "SELECT position FROM counters";

pub(super) async fn data_set(readers: &Readers, id: &DataId) -> Result<Option<DataRow>> {
    let query = format!("SELECT {} FROM data WHERE id = $1", format::DATA_COLUMNS);
    readers.query_one(&query, &[&id.as_str()]).await?.map(|row| format::data_row(&row)).transpose()
}

pub(super) async fn data(
    readers: &Readers,
    tenant: Option<&TenantId>,
    after: Option<&DataId>,
    limit: usize,
) -> Result<Vec<DataRow>> {
    let columns = format::DATA_COLUMNS;
    let (after, limit) = (after.map_or("", DataId::as_str), clamp(limit));
    match tenant {
        Some(tenant) => {
            let query = format!("SELECT {columns} FROM data WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3");
            all(readers, &query, &[&tenant.as_str(), &after, &limit], format::data_row).await
        }
        None => {
            let query = format!("SELECT {columns} FROM data WHERE id > $1 ORDER BY id LIMIT $2");
            all(readers, &query, &[&after, &limit], format::data_row).await
        }
    }
}

pub(super) async fn strangers(readers: &Readers) -> Result<Vec<Stranger>> {
    let query = format!("SELECT {} FROM strangers ORDER BY incarnation", format::STRANGER_COLUMNS);
    all(readers, &query, &[], format::stranger).await
}

pub(super) async fn cells(readers: &Readers) -> Result<Vec<CellRow>> {
    let query = format!("SELECT {} FROM cells ORDER BY name", format::CELL_COLUMNS);
    all(readers, &query, &[], format::cell_row).await
}

pub(super) async fn usage(readers: &Readers, cell: &CellName) -> Result<CellUsage> {
    let query = format!("SELECT {} FROM usage WHERE cell = $1", format::USAGE_COLUMNS);
    let row = readers.query_one(&query, &[&cell.as_str()]).await?;
    row.map_or(Ok(CellUsage::default()), |row| format::usage(&row, 0))
}

pub(super) async fn cells_in_use(readers: &Readers) -> Result<Vec<CellName>> {
    // One look into an index for each cell, instead of one for each row: https://wiki.postgresql.org/wiki/Loose_indexscan
    let walk = |number: usize, rows: &str| {
        format!(
            "walk{number} AS ((SELECT cell FROM {rows} ORDER BY cell LIMIT 1)
             UNION ALL SELECT (SELECT r.cell FROM {rows} AND r.cell > w.cell ORDER BY r.cell LIMIT 1)
             FROM walk{number} w WHERE w.cell IS NOT NULL)"
        )
    };
    let rows = [
        "instances r WHERE true",
        "incarnations r WHERE r.due_at IS NOT NULL",
        "incarnations r WHERE r.state <> 'ended'",
        "data r WHERE true",
        "strangers r WHERE true",
    ];
    let walks: Vec<_> = rows.into_iter().enumerate().map(|(number, rows)| walk(number, rows)).collect();
    let found: Vec<_> = (0..rows.len()).map(|number| format!("SELECT cell FROM walk{number}")).collect();
    let query = format!(
        "WITH RECURSIVE {} SELECT cell FROM ({}) AS found WHERE cell IS NOT NULL ORDER BY cell",
        walks.join(", "),
        found.join(" UNION ")
    );
    all(readers, &query, &[], |row| parse("a cell", row.text(0)?)).await
}

pub(super) async fn frozen(readers: &Readers) -> Result<bool> {
    let row = readers.query_one("SELECT value FROM meta WHERE key = 'frozen'", &[]).await?;
    row.map_or(Ok(false), |row| Ok(row.text(0)? == "true"))
}

async fn all<T>(
    readers: &Readers,
    query: &str,
    values: &[Value<'_>],
    read: impl Fn(&dyn Columns) -> Result<T> + Send,
) -> Result<Vec<T>> {
    readers.query(query, values).await?.iter().map(|row| read(row)).collect()
}
