//! How rows become columns and bodies, and back.

use std::{str::FromStr, sync::Arc};

use rusqlite::Row;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    super::{
        Change, DataRow, DataState, Event, IncarnationRow, IncarnationState, InstanceRow, Lane, NewEvent, Operation,
        OperationState, StoreError, Stranger,
    },
    fault::damaged,
};
use crate::types::{Generation, InstanceSpec, Reason, Timestamp};

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

fn decode<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    let stored: StoredBody<T> = serde_json::from_str(text).map_err(|error| damaged(what, error))?;
    if stored.v > BODY_VERSION {
        return Err(damaged(what, format!("schema version {}: expected up to {BODY_VERSION}", stored.v)));
    }
    Ok(stored.row)
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

pub(super) fn instance_row(body: &str) -> Result<Arc<InstanceRow>, StoreError> {
    decode("an instance", body).map(Arc::new)
}

pub(super) fn spec(body: &str) -> Result<Arc<InstanceSpec>, StoreError> {
    decode("a spec", body).map(Arc::new)
}

pub(super) const OPERATION_COLUMNS: &str = "key, state, ended_at, failure, body";

pub(super) fn operation(row: &Row<'_>) -> Result<Operation, StoreError> {
    const WHAT: &str = "an operation";
    let key: Option<String> = column(row, 0)?;
    let word = text(row, 1)?;
    let state = OperationState::ALL.into_iter().find(|state| state.as_str() == word);
    let failure: Option<String> = column(row, 3)?;
    let failure = failure.map(|text| serde_json::from_str(&text)).transpose();
    let operation: Operation = decode(WHAT, text(row, 4)?)?;
    Ok(Operation {
        key: key.map(|key| parse(WHAT, &key)).transpose()?,
        state: state.ok_or_else(|| damaged(WHAT, format!("state {word:?}")))?,
        ended_at: time(row, 2)?,
        failure: failure.map_err(|error| damaged(WHAT, error))?,
        ..operation
    })
}

pub(super) fn failure(reason: &Reason) -> String {
    serde_json::to_string(reason).expect("a reason is two texts")
}

pub(super) const EVENT_COLUMNS: &str = "position, body";

pub(super) fn event(row: &Row<'_>) -> Result<Event, StoreError> {
    let event: NewEvent = decode("an event", text(row, 1)?)?;
    Ok(Event { position: column(row, 0)?, event })
}

pub(super) const INCARNATION_COLUMNS: &str = "incarnation, instance, tenant, cell, data, state, ended_at, due_at";

pub(super) fn incarnation_row(row: &Row<'_>) -> Result<IncarnationRow, StoreError> {
    const WHAT: &str = "a making";
    Ok(IncarnationRow {
        incarnation: parse(WHAT, text(row, 0)?)?,
        instance: parse(WHAT, text(row, 1)?)?,
        tenant: parse(WHAT, text(row, 2)?)?,
        cell: parse(WHAT, text(row, 3)?)?,
        data: parse(WHAT, text(row, 4)?)?,
        state: match text(row, 5)? {
            "live" => IncarnationState::Live,
            "ending" => IncarnationState::Ending,
            "ended" => IncarnationState::Ended,
            other => return Err(damaged(WHAT, format!("state {other:?}"))),
        },
        ended_at: time(row, 6)?,
        due_at: time(row, 7)?,
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

pub(super) fn data_row(row: &Row<'_>) -> Result<DataRow, StoreError> {
    const WHAT: &str = "a data set";
    Ok(DataRow {
        id: parse(WHAT, text(row, 0)?)?,
        tenant: parse(WHAT, text(row, 1)?)?,
        instance: parse(WHAT, text(row, 2)?)?,
        cell: parse(WHAT, text(row, 3)?)?,
        state: match text(row, 4)? {
            "used" => DataState::Used,
            "retained" => DataState::Retained,
            "unseen" => DataState::Unseen,
            other => return Err(damaged(WHAT, format!("state {other:?}"))),
        },
        since: Timestamp::from_unix_ms(column(row, 5)?),
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

pub(super) fn stranger(row: &Row<'_>) -> Result<Stranger, StoreError> {
    const WHAT: &str = "a stranger";
    Ok(Stranger {
        incarnation: parse(WHAT, text(row, 0)?)?,
        instance: parse(WHAT, text(row, 1)?)?,
        cell: parse(WHAT, text(row, 2)?)?,
        data: column::<Option<String>>(row, 3)?.map(|data| parse(WHAT, &data)).transpose()?,
        generation: Generation(column(row, 4)?),
        found_at: Timestamp::from_unix_ms(column(row, 5)?),
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

pub(super) fn time(row: &Row<'_>, index: usize) -> Result<Option<Timestamp>, StoreError> {
    let ms: Option<i64> = column(row, index)?;
    Ok(ms.map(Timestamp::from_unix_ms))
}

pub(super) fn column<T: rusqlite::types::FromSql>(row: &Row<'_>, index: usize) -> Result<T, StoreError> {
    Ok(row.get(index)?)
}

pub(super) fn text<'a>(row: &'a Row<'_>, index: usize) -> Result<&'a str, StoreError> {
    row.get_ref(index)?.as_str().map_err(|error| damaged("a row", error))
}

/// Reads a name that was checked when it was written.
pub(super) fn parse<T: FromStr>(what: &'static str, text: &str) -> Result<T, StoreError>
where
    T::Err: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    text.parse().map_err(|error: T::Err| damaged(what, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

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
