//! How rows become columns and bodies, and back, in every store that keeps tables.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    CellRow, CellUsage, Change, DataRow, DataState, Event, IncarnationRow, IncarnationState, InstanceRow, Lane,
    NewEvent, Operation, OperationState, Record, StoreError, Stranger,
};
use crate::types::{Generation, InstanceSpec, Reason, Timestamp};

type Result<T> = std::result::Result<T, StoreError>;

/// The schema version of bodies that this release writes. It reads this one and the one before.
const BODY_VERSION: u32 = 1;

#[derive(Serialize)]
struct Body<'a, T> {
    v: u32,
    row: &'a T,
}

#[derive(Deserialize)]
struct StoredBody<T> {
    v: u32,
    row: T,
}

fn encode<T: Serialize>(row: &T) -> String {
    serde_json::to_string(&Body { v: BODY_VERSION, row }).expect("stored types have text keys and cannot fail")
}

fn decode<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    let stored: StoredBody<T> = serde_json::from_str(text).map_err(|error| damaged(what, error))?;
    if stored.v > BODY_VERSION {
        return Err(damaged(what, format!("schema version {}: expected up to {BODY_VERSION}", stored.v)));
    }
    Ok(stored.row)
}

/// A row that this release cannot have written.
#[derive(Debug, thiserror::Error)]
#[error("{what} in the store cannot be read")]
struct Damaged {
    what: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

pub(super) fn damaged(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Failed(Box::new(Damaged { what, source: source.into() }))
}

/// A change with its bodies written out: the work that needs no transaction, done before one is held.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) change: Change,
    pub(super) instance: Option<String>,
    pub(super) specs: Vec<String>,
    pub(super) operations: Vec<String>,
    pub(super) events: Vec<String>,
}

impl Prepared {
    pub(super) fn new(change: Change) -> Self {
        Self {
            instance: change.row().map(encode),
            specs: change.specs.iter().map(|(_, spec)| encode(&**spec)).collect(),
            operations: change.operations.iter().map(|operation| encode(&without_columns(operation))).collect(),
            events: change.events.iter().map(encode).collect(),
            change,
        }
    }
}

/// What of an operation stays as it is from its acceptance on. The rest is in columns.
fn without_columns(operation: &Operation) -> Operation {
    Operation { key: None, state: OperationState::Pending, ended_at: None, failure: None, ..operation.clone() }
}

/// A row as a database gives it: columns by their place in the query.
pub(super) trait Columns {
    fn text(&self, index: usize) -> Result<&str>;
    fn text_or_null(&self, index: usize) -> Result<Option<&str>>;
    fn number(&self, index: usize) -> Result<i64>;
    fn number_or_null(&self, index: usize) -> Result<Option<i64>>;

    /// A number that is never below zero.
    fn count(&self, index: usize) -> Result<u64> {
        u64::try_from(self.number(index)?).map_err(|error| damaged("a row", error))
    }

    fn time_or_null(&self, index: usize) -> Result<Option<Timestamp>> {
        Ok(self.number_or_null(index)?.map(Timestamp::from_unix_ms))
    }
}

pub(super) fn instance_row(body: &str) -> Result<Arc<InstanceRow>> {
    decode("an instance", body).map(Arc::new)
}

pub(super) fn spec(body: &str) -> Result<Arc<InstanceSpec>> {
    decode("a spec", body).map(Arc::new)
}

/// A row with those of its specs that it refers to.
pub(super) fn record<'a>(
    row: Arc<InstanceRow>,
    version: u64,
    taken_over: bool,
    specs: impl Iterator<Item = (Generation, &'a str)>,
) -> Result<Record> {
    let referred =
        |generation: &Generation| [Some(row.wanted), Some(row.in_force), row.applied].contains(&Some(*generation));
    let specs = specs
        .filter(|(generation, _)| referred(generation))
        .map(|(generation, body)| Ok((generation, spec(body)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    Ok(Record { row, version, specs, taken_over })
}

pub(super) const OPERATION_COLUMNS: &str = "key, state, ended_at, failure, body";

pub(super) fn operation(row: &dyn Columns) -> Result<Operation> {
    const WHAT: &str = "an operation";
    let word = row.text(1)?;
    let state = OperationState::ALL.into_iter().find(|state| state.as_str() == word);
    let failure = row.text_or_null(3)?.map(serde_json::from_str).transpose();
    let operation: Operation = decode(WHAT, row.text(4)?)?;
    Ok(Operation {
        key: row.text_or_null(0)?.map(|key| parse(WHAT, key)).transpose()?,
        state: state.ok_or_else(|| damaged(WHAT, format!("state {word:?}")))?,
        ended_at: row.time_or_null(2)?,
        failure: failure.map_err(|error| damaged(WHAT, error))?,
        ..operation
    })
}

pub(super) fn failure(reason: &Reason) -> String {
    serde_json::to_string(reason).expect("a reason is two texts")
}

pub(super) const EVENT_COLUMNS: &str = "position, body";

pub(super) fn event(row: &dyn Columns) -> Result<Event> {
    let event: NewEvent = decode("an event", row.text(1)?)?;
    Ok(Event { position: row.count(0)?, event })
}

pub(super) const INCARNATION_COLUMNS: &str = "incarnation, instance, tenant, cell, data, state, ended_at, due_at";

pub(super) fn incarnation_row(row: &dyn Columns) -> Result<IncarnationRow> {
    const WHAT: &str = "a making";
    Ok(IncarnationRow {
        incarnation: parse(WHAT, row.text(0)?)?,
        instance: parse(WHAT, row.text(1)?)?,
        tenant: parse(WHAT, row.text(2)?)?,
        cell: parse(WHAT, row.text(3)?)?,
        data: parse(WHAT, row.text(4)?)?,
        state: match row.text(5)? {
            "live" => IncarnationState::Live,
            "ending" => IncarnationState::Ending,
            "ended" => IncarnationState::Ended,
            other => return Err(damaged(WHAT, format!("state {other:?}"))),
        },
        ended_at: row.time_or_null(6)?,
        due_at: row.time_or_null(7)?,
    })
}

pub(super) const fn incarnation_state(state: IncarnationState) -> &'static str {
    match state {
        IncarnationState::Live => "live",
        IncarnationState::Ending => "ending",
        IncarnationState::Ended => "ended",
    }
}

pub(super) const DATA_COLUMNS: &str = "id, tenant, instance, cell, state, since";

pub(super) fn data_row(row: &dyn Columns) -> Result<DataRow> {
    const WHAT: &str = "a data set";
    Ok(DataRow {
        id: parse(WHAT, row.text(0)?)?,
        tenant: parse(WHAT, row.text(1)?)?,
        instance: parse(WHAT, row.text(2)?)?,
        cell: parse(WHAT, row.text(3)?)?,
        state: match row.text(4)? {
            "used" => DataState::Used,
            "retained" => DataState::Retained,
            "unseen" => DataState::Unseen,
            other => return Err(damaged(WHAT, format!("state {other:?}"))),
        },
        since: Timestamp::from_unix_ms(row.number(5)?),
    })
}

pub(super) const fn data_state(state: DataState) -> &'static str {
    match state {
        DataState::Used => "used",
        DataState::Retained => "retained",
        DataState::Unseen => "unseen",
    }
}

pub(super) const STRANGER_COLUMNS: &str = "incarnation, instance, cell, data, generation, found_at";

pub(super) fn stranger(row: &dyn Columns) -> Result<Stranger> {
    const WHAT: &str = "a stranger";
    Ok(Stranger {
        incarnation: parse(WHAT, row.text(0)?)?,
        instance: parse(WHAT, row.text(1)?)?,
        cell: parse(WHAT, row.text(2)?)?,
        data: row.text_or_null(3)?.map(|data| parse(WHAT, data)).transpose()?,
        generation: Generation(row.count(4)?),
        found_at: Timestamp::from_unix_ms(row.number(5)?),
    })
}

pub(super) const CELL_COLUMNS: &str = "name, identity, drift_frozen";

pub(super) fn cell_row(row: &dyn Columns) -> Result<CellRow> {
    Ok(CellRow {
        name: parse("a cell", row.text(0)?)?,
        identity: row.text_or_null(1)?.map(Into::into),
        drift_frozen: row.text_or_null(2)?.map(Into::into),
    })
}

pub(super) const USAGE_COLUMNS: &str = "instances, cpu_millis, memory_mib, data_mib";

/// Reads the columns of usage from this one on.
pub(super) fn usage(row: &dyn Columns, from: usize) -> Result<CellUsage> {
    Ok(CellUsage {
        instances: row.count(from)?,
        cpu_millis: row.count(from + 1)?,
        memory_mib: row.count(from + 2)?,
        data_mib: row.count(from + 3)?,
    })
}

/// Lanes by number, in the order of [`Lane::ALL`].
pub(super) const fn lane(lane: Lane) -> i64 {
    match lane {
        Lane::Interactive => 0,
        Lane::Background => 1,
    }
}

pub(super) fn ms(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::unix_ms)
}

/// How many rows or what number at most, as databases count.
pub(super) fn clamp<T>(number: T) -> i64
where
    i64: TryFrom<T>,
{
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads a name that was checked when it was written.
pub(super) fn parse<T: FromStr>(what: &'static str, text: &str) -> Result<T>
where
    T::Err: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    text.parse().map_err(|error: T::Err| damaged(what, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_this_release_and_the_one_before_are_read_and_later_ones_refused() {
        assert_eq!(encode(&Generation(7)), r#"{"v":1,"row":7}"#);
        for v in [0, 1] {
            assert_eq!(decode::<Generation>("a number", &format!(r#"{{"v":{v},"row":7}}"#)).unwrap(), Generation(7));
        }
        let error = decode::<Generation>("a number", r#"{"v":2,"row":7}"#).unwrap_err();
        let chain = crate::error::Chain(&error).to_string();
        assert!(chain.contains("a number in the store cannot be read: schema version 2: expected up to 1"), "{chain}");
    }
}
