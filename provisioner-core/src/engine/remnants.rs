//! Things of makings that ended, such as what a call made whose answer came after everybody had stopped waiting.

use std::sync::Arc;

use tracing::{info, warn};

use super::{Engine, cells::CellHandle};
use crate::{
    context::Priority,
    error::{Chain, Error, Result, Retry},
    store::{Change, EventKind, IncarnationRow, IncarnationState, NewEvent, StoreError},
    types::{DataDisposition, DataSource, Generation, InstanceSpec, Observed, Target, Timestamp},
};

/// How many are looked at in one go.
const PAGE: usize = 64;

/// Looks for remnants of the makings whose time to be looked for has come, and removes them.
pub(crate) async fn look(engine: &Engine, cell: &CellHandle) {
    loop {
        if engine.cancel.is_cancelled() || engine.is_frozen() {
            return;
        }
        let epoch = engine.tenure.epoch();
        let rows = match engine.store.claim_incarnations(epoch, &cell.name, engine.now(), PAGE).await {
            Ok(rows) => rows,
            Err(error) => {
                engine.store_error(&error, epoch);
                cell.note_due(engine.now().after(engine.config.backoff_max));
                return warn!(error = %Chain(&error), "could not read which remnants to look for");
            }
        };
        let all = rows.len() < PAGE;
        // After a jump of time, calls that were to be over by now may still be under way.
        let over_at = engine.jumped_at().after(engine.longest_call(cell));
        if over_at > engine.now() && !rows.is_empty() {
            return cell.note_due(over_at);
        }
        for row in rows {
            if engine.cancel.is_cancelled() || engine.is_frozen() {
                return;
            }
            if !engine.allows_calls(epoch) {
                // Another process looks for it.
                return cell.note_due(engine.now().after(engine.config.backoff_max));
            }
            if let Err(error) = look_for(engine, cell, epoch, row).await {
                cell.note_due(engine.now().after(engine.config.backoff_max));
                return warn!(error = %Chain(&error), "could not write down what became of a remnant");
            }
        }
        if all {
            return;
        }
    }
}

/// One look: nothing there ends it, something there is removed and looked for again. What was to be removed all the same is
/// over once the verb too says that nothing is there.
async fn look_for(engine: &Engine, cell: &CellHandle, epoch: u64, mut row: IncarnationRow) -> Result<(), StoreError> {
    let target = target(&row);
    let observed = engine
        .call(cell, engine.context(Priority::Background), "observe", &row.instance, {
            let target = target.clone();
            move |cx, provisioner| Box::pin(async move { provisioner.observe(&cx, &target).await })
        })
        .await;
    match observed {
        Ok(Observed::Unknown { again }) => later(engine, cell, epoch, row, again).await,
        Ok(Observed::Absent) if row.state == IncarnationState::Ended => end(engine, epoch, row).await,
        // Work was frozen while it was looked at.
        Ok(_) if engine.is_frozen() => later(engine, cell, epoch, row, engine.config.backoff_min).await,
        Ok(seen) => {
            // Whoever finds it due looks for it too: not before this look is over.
            mark(engine, epoch, &mut row, engine.now().after(engine.latest_call(cell))).await?;
            let again = match remove(engine, cell, epoch, &row, target).await? {
                Ok(Observed::Absent) if seen == Observed::Absent => return end(engine, epoch, row).await,
                Ok(_) => engine.config.backoff_min * 4,
                Err(error) => {
                    report(&row, &error);
                    match error.retry() {
                        Retry::After(after) => engine.config.backoff_max.max(after),
                        Retry::Backoff | Retry::Never | Retry::Anew => engine.config.backoff_max,
                    }
                }
            };
            later(engine, cell, epoch, row, again).await
        }
        Err(error) => {
            report(&row, &error);
            later(engine, cell, epoch, row, engine.config.backoff_max).await
        }
    }
}

/// Writes down that a remnant is being removed, and when it is to be looked for again, unless that is known.
pub(crate) async fn mark(
    engine: &Engine,
    epoch: u64,
    row: &mut IncarnationRow,
    due_at: Timestamp,
) -> Result<(), StoreError> {
    if row.state == IncarnationState::Ending {
        return Ok(());
    }
    info!(instance = %row.instance, incarnation = %row.incarnation, "removing a remnant");
    row.state = IncarnationState::Ending;
    row.due_at = Some(due_at);
    let event = NewEvent {
        instance: Some(row.instance.clone()),
        at: engine.now(),
        revision: None,
        actor: None,
        reason: None,
        what: EventKind::RemnantFound { incarnation: row.incarnation },
    };
    write(engine, epoch, row.clone(), vec![event]).await
}

/// Removes a remnant. That it is being removed is on disk before the call.
async fn remove(
    engine: &Engine,
    cell: &CellHandle,
    epoch: u64,
    row: &IncarnationRow,
    target: Target,
) -> Result<Result<Observed>, StoreError> {
    // Data that somebody still has a right to stays; what nobody knows of any more goes with its remnant.
    let kept = engine.store.data_set(&row.data).await?;
    if !engine.allows_calls(epoch) {
        // The answers took so long that another process may look for it by now.
        return Err(StoreError::SessionLost);
    }
    let disposition = if kept.is_some() { DataDisposition::Retain } else { DataDisposition::Delete };
    Ok(engine
        .call(cell, engine.context(Priority::Background), "destroy", &row.instance, move |cx, provisioner| {
            Box::pin(async move { provisioner.destroy(&cx, &target, disposition).await })
        })
        .await)
}

/// What the verbs need to know of a making whose spec is forgotten.
pub(crate) fn target(row: &IncarnationRow) -> Target {
    Target {
        id: row.instance.clone(),
        tenant: row.tenant.clone(),
        incarnation: row.incarnation,
        generation: Generation(0),
        spec: Arc::new(InstanceSpec::forgotten()),
        data: DataSource::Existing(row.data.clone()),
    }
}

async fn later(
    engine: &Engine,
    cell: &CellHandle,
    epoch: u64,
    mut row: IncarnationRow,
    again: std::time::Duration,
) -> Result<(), StoreError> {
    let due = engine.now().after(again.max(engine.config.backoff_min));
    row.due_at = Some(due);
    write(engine, epoch, row, Vec::new()).await?;
    cell.note_due(due);
    Ok(())
}

async fn end(engine: &Engine, epoch: u64, row: IncarnationRow) -> Result<(), StoreError> {
    write(engine, epoch, IncarnationRow { state: IncarnationState::Ended, due_at: None, ..row }, Vec::new()).await
}

/// Under the session that claimed it: under a later one it would overwrite what others wrote in between.
async fn write(engine: &Engine, epoch: u64, row: IncarnationRow, events: Vec<NewEvent>) -> Result<(), StoreError> {
    let change = Change { epoch: Some(epoch), incarnations: vec![row], events, ..Change::default() };
    engine.commit(change).await.map(drop)
}

fn report(row: &IncarnationRow, error: &Error) {
    warn!(instance = %row.instance, incarnation = %row.incarnation, error = %Chain(error), "a remnant stays for now");
}
