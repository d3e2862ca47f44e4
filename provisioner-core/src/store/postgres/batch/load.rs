//! The first round trip: what the conditions of a batch are judged by.

use std::collections::BTreeSet;

use futures::{FutureExt, future::BoxFuture};
use tokio_postgres::{Client, Error, Row};

use super::{
    super::{
        super::{
            CellUsage, InstanceWrite, StoreError,
            condition::Held,
            format::{self, Columns, Prepared, clamp, parse},
        },
        rows,
    },
    picture::{Asked, Instance, Kept, Picture},
    pipeline,
    statements::Statements,
};
use crate::types::{CellName, DataId, HostName, IdempotencyKey, InstanceId, OperationId, Timestamp};

/// What a batch has to know, in order.
#[derive(Debug, Default)]
struct Wanted<'a> {
    requests: BTreeSet<u64>,
    instances: BTreeSet<&'a InstanceId>,
    /// Those whose reservation is looked at.
    reserving: BTreeSet<&'a InstanceId>,
    cells: BTreeSet<&'a CellName>,
    host_names: BTreeSet<&'a HostName>,
    data: BTreeSet<&'a DataId>,
    keys: BTreeSet<&'a IdempotencyKey>,
    operations: BTreeSet<&'a OperationId>,
    inserts: bool,
    deletes: bool,
}

impl<'a> Wanted<'a> {
    fn of(batch: &[&'a Prepared]) -> Self {
        let mut wanted = Self::default();
        for change in batch.iter().map(|prepared| &prepared.change) {
            wanted.requests.extend(change.answers);
            if let Some(write) = &change.instance {
                wanted.instances.insert(write.id());
                wanted.inserts |= matches!(write, InstanceWrite::Insert(_));
                if matches!(write, InstanceWrite::Delete { .. }) {
                    wanted.deletes = true;
                    wanted.reserving.insert(write.id());
                }
                if let Some(reservation) = &change.reservation {
                    wanted.reserving.insert(write.id());
                    wanted.cells.insert(&reservation.cell);
                    wanted.host_names.extend(&reservation.host_names);
                }
            }
            wanted.data.extend(&change.take_data);
            for operation in &change.operations {
                wanted.keys.extend(&operation.key);
                wanted.operations.insert(&operation.id);
            }
        }
        wanted
    }
}

/// Values of a column.
fn column<'a, T: AsRef<str> + ?Sized + 'a>(names: impl IntoIterator<Item = &'a T>) -> Vec<&'a str> {
    names.into_iter().map(AsRef::as_ref).collect()
}

/// What the first trip brought.
pub(in super::super) struct Loaded<'a> {
    pub(in super::super) picture: Picture<'a>,
    /// The transaction's number.
    pub(in super::super) transaction: String,
}

/// Why there is no picture.
pub(in super::super) enum NotLoaded {
    Failed(Error),
    /// What is there cannot be read.
    Damaged(StoreError),
}

impl From<StoreError> for NotLoaded {
    fn from(error: StoreError) -> Self {
        Self::Damaged(error)
    }
}

/// Begins a transaction and brings what the conditions of a batch are judged by.
pub(in super::super) async fn load<'a>(
    client: &Client,
    statements: &Statements,
    batch: &[&'a Prepared],
) -> Result<Loaded<'a>, NotLoaded> {
    let wanted = Wanted::of(batch);
    let mut answers = ask(client, statements, &wanted).await.map_err(NotLoaded::Failed)?.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let mut picture = Picture::default();
    next();
    for number in &wanted.requests {
        picture.requests.insert(*number, Kept::absent());
    }
    for row in next() {
        picture.requests.insert(row.count(0)?, Kept::found(()));
    }
    picture.instances.extend(wanted.instances.iter().map(|id| (*id, Kept::absent())));
    for row in next() {
        read_instance(&mut picture, &wanted, &row)?;
    }
    for row in next() {
        picture.usage.insert(parse("usage", row.text(0)?)?, Kept::found(format::usage(&row, 1)?));
    }
    for row in next() {
        picture.version_used = row.count(0)?;
        picture.version_used_before = picture.version_used;
    }
    picture.data.extend(wanted.data.iter().map(|id| ((*id).clone(), Kept::absent())));
    for row in next() {
        let data = format::data_row(&row)?;
        picture.data.insert(data.id.clone(), Kept::found(data));
    }
    for row in next() {
        read_reservation(&mut picture, &wanted, &row)?;
    }
    for row in next() {
        let owner = parse("a host name", row.text(1)?)?;
        picture.host_names.insert(parse("a host name", row.text(0)?)?, Kept::found(owner));
    }
    for row in next() {
        read_operation(&mut picture, &row)?;
    }
    for row in next() {
        picture.sessions.insert(row.count(0)?);
    }
    let begun = next();
    let begun = begun.first().ok_or_else(|| format::damaged("the transaction's number", "there is none"))?;
    Ok(Loaded { picture, transaction: begun.text(0)?.to_owned() })
}

/// Asks everything at once. What is not wanted is not asked and answered with nothing.
///
/// The sessions come after the claims that they are compared with: who claimed a row had begun before.
async fn ask(client: &Client, statements: &Statements, wanted: &Wanted<'_>) -> Result<Vec<Vec<Row>>, Error> {
    type Ask<'a> = BoxFuture<'a, Result<Vec<Row>, Error>>;
    let requests: Vec<i64> = wanted.requests.iter().copied().map(clamp).collect();
    let instances = column(wanted.instances.iter().copied());
    let reserving = column(wanted.reserving.iter().copied());
    let cells = column(wanted.cells.iter().copied());
    let host_names = column(wanted.host_names.iter().copied());
    let data = column(wanted.data.iter().copied());
    let keys = column(wanted.keys.iter().copied());
    let operations = column(wanted.operations.iter().copied());
    let nothing = || -> Ask<'_> { futures::future::ready(Ok(Vec::new())).boxed() };
    let asked: Vec<Ask<'_>> = vec![
        client.batch_execute("BEGIN").map(|begun| begun.map(|()| Vec::new())).boxed(),
        match requests.is_empty() {
            true => nothing(),
            false => async { client.query(&statements.lock_requests, &[&requests]).await }.boxed(),
        },
        match instances.is_empty() {
            true => nothing(),
            false => async { client.query(&statements.lock_instances, &[&instances]).await }.boxed(),
        },
        match reserving.is_empty() {
            true => nothing(),
            false => async { client.query(&statements.lock_usage, &[&cells, &reserving]).await }.boxed(),
        },
        match (wanted.deletes, wanted.inserts) {
            (true, _) => async { client.query(&statements.lock_version, &[]).await }.boxed(),
            (false, true) => async { client.query(&statements.share_version, &[]).await }.boxed(),
            (false, false) => nothing(),
        },
        match data.is_empty() {
            true => nothing(),
            false => async { client.query(&statements.lock_data, &[&data]).await }.boxed(),
        },
        match reserving.is_empty() {
            true => nothing(),
            false => async { client.query(&statements.reservations, &[&reserving]).await }.boxed(),
        },
        match reserving.is_empty() {
            true => nothing(),
            false => async { client.query(&statements.host_names, &[&host_names, &reserving]).await }.boxed(),
        },
        match operations.is_empty() {
            true => nothing(),
            false => async { client.query(&statements.operations, &[&keys, &operations]).await }.boxed(),
        },
        async { client.query(&statements.sessions, &[]).await }.boxed(),
        async { client.query(&statements.begun, &[]).await }.boxed(),
    ];
    // The first that failed tells why; those behind it failed for its sake.
    pipeline(asked).await.into_iter().collect()
}

fn read_instance<'a>(picture: &mut Picture<'a>, wanted: &Wanted<'a>, row: &Row) -> Result<(), StoreError> {
    let id: InstanceId = parse("an instance", row.text(0)?)?;
    let claimed_by = row.number_or_null(2)?.map(|_| row.count(2)).transpose()?;
    let found = Instance { version: row.count(1)?, claimed_by, taken_over: rows::flag(row, 3)?, row: None };
    if let Some(id) = wanted.instances.get(&id) {
        picture.instances.insert(id, Kept::found(found));
    }
    Ok(())
}

fn read_reservation<'a>(picture: &mut Picture<'a>, wanted: &Wanted<'a>, row: &Row) -> Result<(), StoreError> {
    let id: InstanceId = parse("a reservation", row.text(0)?)?;
    let usage =
        CellUsage { instances: 1, cpu_millis: row.count(2)?, memory_mib: row.count(3)?, data_mib: row.count(4)? };
    if let Some(id) = wanted.reserving.get(&id) {
        picture.reservations.insert(id, Kept::found(Held { cell: parse("a reservation", row.text(1)?)?, usage }));
    }
    Ok(())
}

fn read_operation(picture: &mut Picture<'_>, row: &Row) -> Result<(), StoreError> {
    let mut operation = format::operation(row)?;
    operation.accepted_at = Timestamp::from_unix_ms(row.number(5)?);
    if let Some(key) = &operation.key {
        picture.keys.insert(key.clone(), operation.id.clone());
    }
    picture.operations.insert(operation.id.clone(), Kept::found(Asked { operation, body: None }));
    Ok(())
}
