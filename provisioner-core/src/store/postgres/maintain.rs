//! The removal of what is old, in bounded steps.

use deadpool_postgres::Transaction;
use tokio_postgres::types::ToSql;

use super::{
    super::{
        Pruned, StoreError,
        format::{Columns, clamp},
    },
    connect::Readers,
};
use crate::types::Timestamp;

/// Removes up to `limit` rows of each kind that ended before `before`.
pub(super) async fn prune(readers: &Readers, before: Timestamp, limit: usize) -> Result<Pruned, StoreError> {
    let work = async {
        let mut lent = readers.lend().await?;
        let transaction = lent.client().transaction().await?;
        let pruned = remove(&transaction, before.unix_ms(), limit).await?;
        transaction.commit().await?;
        lent.give_back();
        Ok(pruned)
    };
    readers.within(work).await
}

async fn remove(transaction: &Transaction<'_>, before: i64, limit: usize) -> Result<Pruned, StoreError> {
    let most = clamp(limit);
    let old: [&(dyn ToSql + Sync); 2] = [&before, &most];
    // Found first, then removed by name: an index is walked for both. What another process removes this moment is its own.
    let mut events = execute(
        transaction,
        "DELETE FROM events WHERE position = ANY (ARRAY(
             SELECT position FROM events WHERE at < $1 ORDER BY at, position LIMIT $2 FOR UPDATE SKIP LOCKED))",
        &old,
    )
    .await?;
    events += remove_forgotten(transaction, limit - events).await?;
    let operations = execute(
        transaction,
        "DELETE FROM operations WHERE id = ANY (ARRAY(
             SELECT id FROM operations WHERE ended_at < $1 ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        &old,
    )
    .await?;
    let incarnations = execute(
        transaction,
        "DELETE FROM incarnations WHERE incarnation = ANY (ARRAY(
             SELECT incarnation FROM incarnations WHERE state = 'ended' AND due_at IS NULL AND ended_at < $1
             ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        &old,
    )
    .await?;
    Ok(Pruned { events, operations, incarnations })
}

/// Removes up to `limit` events of instances that are gone, of any age, but not those that tell of their going.
async fn remove_forgotten(transaction: &Transaction<'_>, limit: usize) -> Result<usize, StoreError> {
    let mut removed = 0;
    while removed < limit {
        let query = "SELECT position, instance FROM forgotten ORDER BY position LIMIT 1 FOR UPDATE SKIP LOCKED";
        let statement = transaction.prepare_cached(query).await?;
        let Some(next) = transaction.query_opt(&statement, &[]).await? else { break };
        let (position, instance) = (next.number(0)?, next.text(1)?);
        let room = limit - removed;
        let count = execute(
            transaction,
            "DELETE FROM events WHERE position = ANY (ARRAY(
                 SELECT position FROM events WHERE instance = $1 AND position < $2 AND NOT last
                 ORDER BY position LIMIT $3 FOR UPDATE SKIP LOCKED))",
            &[&instance, &position, &clamp(room)],
        )
        .await?;
        removed += count;
        if count < room {
            execute(transaction, "DELETE FROM forgotten WHERE position = $1", &[&position]).await?;
        }
    }
    Ok(removed)
}

async fn execute(
    transaction: &Transaction<'_>,
    query: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<usize, StoreError> {
    let statement = transaction.prepare_cached(query).await?;
    let count = transaction.execute(&statement, values).await?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}
