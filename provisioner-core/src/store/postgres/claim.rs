//! Sessions and claims: who may write, and who works on what. All of it is judged by the database's clock.
//!
//! A claim is judged free or taken by the session that it names. Whoever waited for a row sees the row as it is now and the
//! sessions as they were when its statement began: a session that began since is not among those. So a claim is free when its
//! session is known to be over, and not when it is merely not known; see [`FREE`] and [`FORGET_SESSIONS`].

use std::time::Duration;

use tokio_postgres::{Row, types::ToSql};

use super::{
    super::{
        Claim, IncarnationRow, Record, Renewal, Session, StoreError, Submitted, Taken,
        format::{self, Columns, clamp},
    },
    connect::Readers,
    read,
    rows::{self, RECORD_COLUMNS, RECORD_SPECS, REQUEST_COLUMNS},
};
use crate::{
    error::Chain,
    types::{CellName, InstanceId, Timestamp},
};

type Result<T> = std::result::Result<T, StoreError>;

/// The sessions in force.
pub(super) const IN_FORCE: &str = "NOT closed AND expires_at > clock_timestamp()";

/// What the database's clock shows, in Unix milliseconds.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// Whether a row `i` may be claimed by the session `$1`. At the time of what is known of the sessions: they may have been renewed
/// while the row was waited for.
const FREE: &str = "(i.claimed_by IS NULL OR i.claimed_by = $1
     OR EXISTS (SELECT FROM sessions s WHERE s.epoch = i.claimed_by
         AND (s.closed OR s.expires_at <= statement_timestamp()))
     OR i.claimed_by < (SELECT min(epoch) FROM sessions))";

/// Refuses the statement's work unless the session `$1` is in force.
const OWN: &str = "own AS MATERIALIZED (SELECT epoch FROM sessions
     WHERE epoch = $1 AND NOT closed AND expires_at > clock_timestamp())";

/// Ends the sessions that something is taken from: whatever the clock shows later, they do not come back to it. One that is written
/// this moment is renewed or ended by that, and not waited for.
const ENDED: &str = "ended AS (UPDATE sessions SET closed = true WHERE epoch = ANY (ARRAY(
     SELECT epoch FROM sessions WHERE NOT closed AND epoch <> $1 AND expires_at <= statement_timestamp()
         AND epoch IN (SELECT claimed_by FROM free) FOR UPDATE SKIP LOCKED)))";

/// Removes what nobody asks about any more: older than every session in force, so that those that are left are known one by
/// one.
const FORGET_SESSIONS: &str = "DELETE FROM sessions WHERE expires_at < clock_timestamp() - interval '1 day'
     AND epoch < (SELECT min(epoch) FROM sessions WHERE NOT closed AND expires_at > clock_timestamp())";

/// Begins a session.
pub(super) async fn open_session(readers: &Readers, holder: &str, lapses_after: Duration) -> Result<Session> {
    let query = format!(
        "INSERT INTO sessions (holder, expires_at)
         VALUES ($1, clock_timestamp() + $2::bigint * interval '1 millisecond') RETURNING epoch, {NOW}"
    );
    let row = readers.query_one(&query, &[&holder, &clamp(lapses_after.as_millis())]).await?;
    let (epoch, now) = match row {
        Some(row) => (row.count(0)?, Some(Timestamp::from_unix_ms(row.number(1)?))),
        None => (0, None),
    };
    readers.query(FORGET_SESSIONS, &[]).await?;
    Ok(Session { epoch, lapses_after: Some(lapses_after), now })
}

/// Keeps a session from lapsing, and tells which are in force. Those that lapsed are closed, whatever the clock shows later.
pub(super) async fn renew_session(readers: &Readers, epoch: u64, lapses_after: Duration) -> Result<Renewal> {
    let query = format!(
        "WITH renewed AS (UPDATE sessions SET expires_at = clock_timestamp() + $2::bigint * interval '1 millisecond'
             WHERE epoch = $1 AND {IN_FORCE} RETURNING epoch),
         lapsed AS (UPDATE sessions SET closed = true WHERE epoch = ANY (ARRAY(
             SELECT epoch FROM sessions WHERE epoch <> $1 AND NOT closed AND expires_at <= clock_timestamp()
                 FOR UPDATE SKIP LOCKED)))
         SELECT epoch, {NOW} FROM sessions WHERE epoch <> $1 AND {IN_FORCE} AND EXISTS (SELECT FROM renewed)
         UNION ALL SELECT epoch, {NOW} FROM renewed ORDER BY epoch"
    );
    let rows = readers.query(&query, &[&clamp(epoch), &clamp(lapses_after.as_millis())]).await?;
    let Some(first) = rows.first() else { return Err(StoreError::SessionLost) };
    let now = Some(Timestamp::from_unix_ms(first.number(1)?));
    Ok(Renewal { in_force: rows.iter().map(|row| row.count(0)).collect::<Result<_>>()?, now })
}

/// Ends a session, and tells the others, as what it worked on is theirs now. Its row stays, so that it is known as ended.
pub(super) async fn close_session(readers: &Readers, epoch: u64, channel: &str) -> Result<()> {
    let query = "WITH ended AS (UPDATE sessions SET closed = true WHERE epoch = $1 AND NOT closed RETURNING epoch)
         SELECT pg_notify($2, 'missed') FROM ended";
    readers.query(query, &[&clamp(epoch), &channel]).await.map(drop)
}

/// Due rows, claimed. A row that somebody writes this moment is passed over: it is being claimed, or told of when it is written.
pub(super) async fn claim(readers: &Readers, claim: &Claim) -> Result<Vec<Record>> {
    let query = format!(
        "WITH {OWN}, free AS MATERIALIZED (
             SELECT i.id, i.due_at, i.version, i.body, i.claimed_by,
                 CASE WHEN i.claimed_by = $1 THEN i.taken_over ELSE i.claimed_by IS NOT NULL END AS taken_over
             FROM instances i
             WHERE EXISTS (SELECT FROM own) AND i.cell = $2 AND i.lane = $3 AND i.due_at <= $4
                 AND (i.due_at, i.id) > ($5, $6) AND {FREE}
             ORDER BY i.due_at, i.id LIMIT $7 FOR UPDATE OF i SKIP LOCKED),
         claimed AS (UPDATE instances SET claimed_by = $1, taken_over = free.taken_over FROM free
             WHERE instances.id = free.id AND free.claimed_by IS DISTINCT FROM $1),
         {ENDED}
         SELECT {RECORD_COLUMNS}, i.id, i.claimed_by, i.due_at
             FROM own LEFT JOIN (free i {RECORD_SPECS}) ON true ORDER BY i.due_at, i.id"
    );
    let (mut after, mut after_id) = match &claim.after {
        Some((due_at, id)) => (due_at.unix_ms(), id.as_str().to_owned()),
        None => (i64::MIN, String::new()),
    };
    let lane = i16::try_from(format::lane(claim.lane)).expect("there are two");
    let (cell, now) = (claim.cell.as_str(), claim.now.unix_ms());
    let mut found = Vec::new();
    // What cannot be read takes no place of what can: a page that is not full is the last one.
    while found.len() < claim.limit {
        let wanted = claim.limit - found.len();
        let values: [&(dyn ToSql + Sync); 7] =
            [&clamp(claim.epoch), &cell, &lane, &now, &after, &after_id, &clamp(wanted)];
        let rows = readers.query(&query, &values).await?;
        let rows = own(&rows)?;
        for row in &rows {
            found.extend(readable(readers, row, claim.epoch).await?);
        }
        match rows.last() {
            Some(last) if rows.len() == wanted => (after, after_id) = (last.number(DUE_AT)?, last.text(ID)?.to_owned()),
            _ => break,
        }
    }
    Ok(found)
}

/// Behind the columns of a record: the id, who had claimed it before, and when it is due.
const ID: usize = 5;
const CLAIMED_BEFORE: usize = 6;
const DUE_AT: usize = 7;

/// The record of a row that was claimed. One that cannot be read, as it is damaged or of a newer release, must not keep the others up,
/// nor those who can read it: it is left as it was.
async fn readable(readers: &Readers, row: &Row, epoch: u64) -> Result<Option<Record>> {
    match rows::record(row) {
        Ok(record) => with_specs(readers, record).await,
        Err(error) => {
            tracing::error!(instance = row.text(ID)?, error = %Chain(&error), "an instance that is due cannot be read");
            unclaim(readers, row, epoch).await?;
            Ok(None)
        }
    }
}

/// Gives the claim on an instance back to whom it was taken from.
async fn unclaim(readers: &Readers, row: &Row, epoch: u64) -> Result<()> {
    give_back(readers, ("instances", "id"), &row.text(ID)?, epoch, row.number_or_null(CLAIMED_BEFORE)?).await
}

/// Gives a claim on a row, named by its key, back to whom it was taken from: whoever takes it next is to know that it was taken over.
async fn give_back(
    readers: &Readers,
    (table, key): (&str, &str),
    name: &(dyn ToSql + Sync),
    epoch: u64,
    before: Option<i64>,
) -> Result<()> {
    let query = format!("UPDATE {table} SET claimed_by = $3 WHERE {key} = $1 AND claimed_by = $2");
    readers.query(&query, &[name, &clamp(epoch), &before]).await.map(drop)
}

/// One row, claimed, due or not.
pub(super) async fn claim_instance(readers: &Readers, epoch: u64, id: &InstanceId) -> Result<Taken> {
    // Waits for whoever writes it this moment.
    let query = format!(
        "WITH {OWN}, free AS MATERIALIZED (
             SELECT i.id, i.version, i.body, i.claimed_by,
                 CASE WHEN i.claimed_by = $1 THEN i.taken_over ELSE i.claimed_by IS NOT NULL END AS taken_over
             FROM instances i WHERE EXISTS (SELECT FROM own) AND i.id = $2 AND {FREE} FOR UPDATE OF i),
         claimed AS (UPDATE instances SET claimed_by = $1, taken_over = free.taken_over FROM free
             WHERE instances.id = free.id AND free.claimed_by IS DISTINCT FROM $1),
         {ENDED}
         SELECT {RECORD_COLUMNS}, i.id, i.claimed_by FROM own LEFT JOIN (free i {RECORD_SPECS}) ON true"
    );
    let rows = readers.query(&query, &[&clamp(epoch), &id.as_str()]).await?;
    let found = match own(&rows)?.first() {
        None => None,
        Some(row) => match rows::record(row) {
            Ok(record) => with_specs(readers, record).await?,
            Err(error) => {
                unclaim(readers, row, epoch).await?;
                return Err(error);
            }
        },
    };
    match found {
        Some(record) => Ok(Taken::Here(record)),
        None if read::instance(readers, id).await?.is_none() => Ok(Taken::Absent),
        None => Ok(Taken::Elsewhere),
    }
}

/// Gives the claim of a session up, unless the instance was written since or taken over.
pub(super) async fn release(readers: &Readers, epoch: u64, id: &InstanceId, version: u64) -> Result<bool> {
    let query = format!(
        "UPDATE instances SET claimed_by = NULL
         WHERE id = $2 AND claimed_by = $1 AND version = $3 AND NOT taken_over
             AND EXISTS (SELECT FROM sessions WHERE epoch = $1 AND {IN_FORCE}) RETURNING id"
    );
    let rows = readers.query(&query, &[&clamp(epoch), &id.as_str(), &clamp(version)]).await?;
    Ok(!rows.is_empty())
}

/// Makings that are to be looked for, claimed.
pub(super) async fn claim_incarnations(
    readers: &Readers,
    epoch: u64,
    cell: &CellName,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<IncarnationRow>> {
    let columns = format::INCARNATION_COLUMNS;
    let query = format!(
        "WITH {OWN}, free AS MATERIALIZED (
             SELECT {columns}, i.claimed_by FROM incarnations i
             WHERE EXISTS (SELECT FROM own) AND i.cell = $2 AND i.due_at <= $3 AND {FREE}
             ORDER BY i.due_at, i.incarnation LIMIT $4 FOR UPDATE OF i SKIP LOCKED),
         claimed AS (UPDATE incarnations SET claimed_by = $1 FROM free
             WHERE incarnations.incarnation = free.incarnation AND free.claimed_by IS DISTINCT FROM $1),
         {ENDED}
         SELECT {columns}, claimed_by FROM own LEFT JOIN free ON true ORDER BY due_at, incarnation"
    );
    let rows = readers.query(&query, &[&clamp(epoch), &cell.as_str(), &now.unix_ms(), &clamp(limit)]).await?;
    let mut found = Vec::new();
    for row in own(&rows)? {
        match format::incarnation_row(row) {
            Ok(making) => found.push(making),
            Err(error) => {
                tracing::error!(making = row.text(0)?, error = %Chain(&error), "a making that is to be looked for cannot be read");
                let before = row.number_or_null(format::INCARNATION_COLUMNS.split(',').count())?;
                give_back(readers, ("incarnations", "incarnation"), &row.text(0)?, epoch, before).await?;
            }
        }
    }
    Ok(found)
}

/// The oldest request of each instance, claimed.
pub(super) async fn inbox(readers: &Readers, epoch: u64, limit: usize) -> Result<Vec<Submitted>> {
    let query = format!(
        "WITH {OWN}, free AS MATERIALIZED (
             SELECT i.* FROM inbox i
             WHERE EXISTS (SELECT FROM own) AND {FREE}
                 AND NOT EXISTS (SELECT FROM inbox older WHERE older.instance = i.instance AND older.number < i.number)
             ORDER BY i.number LIMIT $2 FOR UPDATE OF i SKIP LOCKED),
         claimed AS (UPDATE inbox SET claimed_by = $1 FROM free
             WHERE inbox.number = free.number AND free.claimed_by IS DISTINCT FROM $1),
         {ENDED}
         SELECT {REQUEST_COLUMNS}, claimed_by FROM own LEFT JOIN free ON true ORDER BY number"
    );
    let rows = readers.query(&query, &[&clamp(epoch), &clamp(limit)]).await?;
    let mut found = Vec::new();
    for row in own(&rows)? {
        match rows::request(row, 0) {
            Ok(request) => found.push(request),
            // Of a newer release, or written past the function: it must keep none of the others up, nor those who can read it.
            Err(error) => {
                let number = row.number(0)?;
                tracing::error!(number, error = %Chain(&error), "a request in the inbox cannot be read and is passed over");
                let before = row.number_or_null(REQUEST_COLUMNS.split(',').count())?;
                give_back(readers, ("inbox", "number"), &number, epoch, before).await?;
            }
        }
    }
    Ok(found)
}

/// The rows that a session found, which are one without content when it found none, and none when it is not in force.
fn own(rows: &[Row]) -> Result<Vec<&Row>> {
    match rows {
        [] => Err(StoreError::SessionLost),
        rows => Ok(rows.iter().filter(|row| !matches!(row.try_get::<_, Option<&str>>(1), Ok(None))).collect()),
    }
}

/// A record with its specs. One that somebody wrote while its row was waited for may refer to a spec that the statement could not see
/// yet: it is read again.
async fn with_specs(readers: &Readers, record: Record) -> Result<Option<Record>> {
    let instance = &record.row;
    let wanted = [Some(instance.wanted), Some(instance.in_force), instance.applied];
    if wanted.into_iter().flatten().all(|generation| record.specs.contains_key(&generation)) {
        return Ok(Some(record));
    }
    let again = read::instance(readers, &instance.id).await?;
    Ok(again.map(|again| Record { taken_over: record.taken_over, ..again }))
}
