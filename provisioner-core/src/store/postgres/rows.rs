//! PostgreSQL's rows, as the shared formats read them.

use tokio_postgres::{Row, types::FromSql};

use super::super::{
    Ask, Operation, Record, StoreError, Submitted, Verb,
    format::{self, Columns, damaged, parse},
};
use crate::types::{Generation, Revision, Timestamp};

type Result<T> = std::result::Result<T, StoreError>;

fn get<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T> {
    row.try_get(index).map_err(|error| damaged("a row", error))
}

impl Columns for Row {
    fn text(&self, index: usize) -> Result<&str> {
        get(self, index)
    }

    fn text_or_null(&self, index: usize) -> Result<Option<&str>> {
        get(self, index)
    }

    fn number(&self, index: usize) -> Result<i64> {
        get(self, index)
    }

    fn number_or_null(&self, index: usize) -> Result<Option<i64>> {
        get(self, index)
    }
}

pub(super) fn flag(row: &Row, index: usize) -> Result<bool> {
    get(row, index)
}

/// What a record is read from, of a row of `instances` under the name `i`: one row of the answer, with all specs that are kept.
pub(super) const RECORD_COLUMNS: &str = "i.version, i.body, i.taken_over, s.generations, s.bodies";
pub(super) const RECORD_SPECS: &str = "CROSS JOIN LATERAL (SELECT array_agg(specs.generation) AS generations,
     array_agg(specs.body) AS bodies FROM specs WHERE specs.instance = i.id) AS s";

pub(super) fn record(row: &Row) -> Result<Record> {
    let instance = format::instance_row(row.text(1)?)?;
    let generations: Option<Vec<i64>> = get(row, 3)?;
    let bodies: Option<Vec<&str>> = get(row, 4)?;
    let generations = generations.unwrap_or_default().into_iter();
    let generations = generations
        .map(|number| Ok(Generation(u64::try_from(number).map_err(|error| damaged("a spec", error))?)))
        .collect::<Result<Vec<_>>>()?;
    format::record(instance, row.count(0)?, flag(row, 2)?, generations.into_iter().zip(bodies.unwrap_or_default()))
}

pub(super) const REQUEST_COLUMNS: &str =
    "number, operation, instance, verb, parameters::text, actor, reason, key, expected, at";

/// Reads the columns of a request from this one on.
pub(super) fn request(row: &Row, from: usize) -> Result<Submitted> {
    const WHAT: &str = "a request in the inbox";
    let verb = row.text(from + 3)?;
    Ok(Submitted {
        number: row.count(from)?,
        operation: parse(WHAT, row.text(from + 1)?)?,
        instance: parse(WHAT, row.text(from + 2)?)?,
        ask: Ask {
            verb: serde_json::from_value::<Verb>(verb.into()).map_err(|error| damaged(WHAT, error))?,
            // The database takes numbers and depths that are more than what reads them does.
            parameters: serde_json::from_str(row.text(from + 4)?).map_err(|error| error.to_string()),
        },
        actor: parse(WHAT, row.text(from + 5)?)?,
        reason: row.text_or_null(from + 6)?.map(Into::into),
        key: row.text_or_null(from + 7)?.map(|key| parse(WHAT, key)).transpose()?,
        expected: match row.number_or_null(from + 8)? {
            None => None,
            Some(number) => Some(Revision(u64::try_from(number).map_err(|error| damaged(WHAT, error))?)),
        },
        at: Timestamp::from_unix_ms(row.number(from + 9)?),
    })
}

/// Reads an operation, or the request that will become one: [`OPERATION_COLUMNS`](format::OPERATION_COLUMNS) and, behind
/// them, [`REQUEST_COLUMNS`].
pub(super) fn operation_or_request(row: &Row) -> Result<Operation> {
    const REQUEST: usize = 5;
    match row.number_or_null(REQUEST)? {
        None => format::operation(row),
        Some(_) => request(row, REQUEST).map(|request| request.pending()),
    }
}
