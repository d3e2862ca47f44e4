//! Sessions, and the removal of what is old.

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    super::{Pruned, Session, StoreError},
    fault::Fault,
};
use crate::types::Timestamp;

/// Begins a session; every earlier one ends with that.
pub(super) fn open_session(connection: &Connection, holder: &str, now: Timestamp) -> Result<Session, Fault> {
    connection
        .prepare_cached("INSERT INTO sessions (holder, opened_at) VALUES (?1, ?2)")?
        .execute(params![holder, now.unix_ms()])?;
    let epoch = connection.last_insert_rowid();
    // Only the newest session matters; numbers are not given out again, whatever is removed.
    connection.prepare_cached("DELETE FROM sessions WHERE epoch < ?1")?.execute([epoch])?;
    let epoch = u64::try_from(epoch).expect("SQLite counts up from 1");
    Ok(Session { epoch, lapses_after: None, now: None })
}

/// Ends a session. Its row stays, so that it is known as ended.
pub(super) fn close_session(connection: &Connection, epoch: u64) -> Result<(), Fault> {
    connection.prepare_cached("UPDATE sessions SET closed = 1 WHERE epoch = ?1")?.execute([epoch])?;
    Ok(())
}

/// Refuses unless this session is in force.
pub(super) fn check_session(connection: &Connection, epoch: u64) -> Result<(), Fault> {
    let newest: Option<(u64, bool)> = connection
        .prepare_cached("SELECT epoch, closed FROM sessions ORDER BY epoch DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if newest == Some((epoch, false)) { Ok(()) } else { Err(StoreError::SessionLost.into()) }
}

/// Removes up to `limit` rows of each kind that ended before `before`.
pub(super) fn prune(connection: &Connection, before: Timestamp, limit: usize) -> Result<Pruned, Fault> {
    let before = before.unix_ms();
    let mut events = connection
        .prepare_cached(
            "DELETE FROM events WHERE position IN
                 (SELECT position FROM events WHERE at < ?1 ORDER BY at, position LIMIT ?2)",
        )?
        .execute(params![before, limit])?;
    events += prune_forgotten(connection, limit - events)?;
    let operations = connection
        .prepare_cached(
            "DELETE FROM operations WHERE row IN
                 (SELECT row FROM operations WHERE ended_at < ?1 ORDER BY ended_at LIMIT ?2)",
        )?
        .execute(params![before, limit])?;
    let incarnations = connection
        .prepare_cached(
            "DELETE FROM incarnations WHERE incarnation IN
                 (SELECT incarnation FROM incarnations WHERE state = 'ended' AND due_at IS NULL AND ended_at < ?1
                  ORDER BY ended_at LIMIT ?2)",
        )?
        .execute(params![before, limit])?;
    Ok(Pruned { events, operations, incarnations })
}

/// Removes up to `limit` events of instances that are gone, of any age, but not those that tell of their going.
fn prune_forgotten(connection: &Connection, limit: usize) -> Result<usize, Fault> {
    let mut removed = 0;
    while removed < limit {
        let next: Option<(i64, String)> = connection
            .prepare_cached("SELECT position, instance FROM forgotten ORDER BY position LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((position, instance)) = next else { break };
        let room = limit - removed;
        let count = connection
            .prepare_cached(
                "DELETE FROM events WHERE position IN
                     (SELECT position FROM events WHERE instance = ?1 AND position < ?2 AND last = 0 LIMIT ?3)",
            )?
            .execute(params![instance, position, room])?;
        removed += count;
        if count < room {
            connection.prepare_cached("DELETE FROM forgotten WHERE position = ?1")?.execute([position])?;
        }
    }
    Ok(removed)
}
