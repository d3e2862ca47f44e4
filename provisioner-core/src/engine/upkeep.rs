//! What is done for the whole fleet now and then.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{Engine, draft::Draft};
use crate::{
    error::{Chain, ErrorKind},
    store::{Claiming, EventKind, InstanceFilter, Lane, OperationState, Record, StoreError},
    types::{CellName, InstanceId, Reason},
};

/// How often rows are removed for their age at most.
const PRUNE_INTERVAL: Duration = Duration::from_secs(1800);
/// How many rows at a time: a prune must not keep the writer from others for long.
const PAGE: usize = 500;

/// Parks what has work to do in cells that are not configured any more, and takes up again what was parked for that. Nothing is
/// parked while others share the store: they may be about to get, or to lose, the same cell.
pub(crate) async fn sort_out_cells(engine: Arc<Engine>) {
    let in_use = match engine.store.cells_in_use().await {
        Ok(cells) => cells,
        Err(error) => return warn!(error = %Chain(&error), "could not read which cells are in use"),
    };
    for cell in in_use {
        let configured = engine.cells.contains_key(&cell);
        if !configured && engine.tenure.replicas() > 1 {
            warn!(%cell, "not configured here: its instances are left to the other processes as long as there are any");
            continue;
        }
        // Those that were parked for a missing cell are among the parked ones; the others are none.
        let filter = InstanceFilter { cell: Some(cell.clone()), parked: Some(configured), ..InstanceFilter::default() };
        if let Err(error) = for_each(&engine, &filter, |record| sort_out(&engine, &cell, configured, record)).await {
            warn!(%cell, error = %Chain(&error), "could not sort out the instances of a cell");
        }
    }
}

async fn for_each<F: Future<Output = Result<(), StoreError>>>(
    engine: &Engine,
    filter: &InstanceFilter,
    mut act: impl FnMut(Record) -> F,
) -> Result<(), StoreError> {
    let mut after: Option<InstanceId> = None;
    loop {
        let page = engine.store.instances(filter, after.as_ref(), PAGE).await?;
        after = page.last().map(|record| record.row.id.clone());
        let all = page.len() < PAGE;
        for record in page {
            if engine.cancel.is_cancelled() {
                return Ok(());
            }
            act(record).await?;
        }
        if all {
            return Ok(());
        }
    }
}

async fn sort_out(engine: &Engine, cell: &CellName, configured: bool, record: Record) -> Result<(), StoreError> {
    let code = ErrorKind::CellMissing.as_str();
    let mut draft = Draft::of(&record, engine.now());
    if configured {
        if draft.row.reason.as_ref().is_none_or(|reason| reason.code != code) {
            return Ok(());
        }
        draft.row.reason = None;
        draft.begin_move(Lane::Background);
    } else if record.row.settled {
        // At rest: nobody has to know before something is asked of it.
        return Ok(());
    } else {
        let reason = Reason::new(code, format!("cell {cell} is not configured"));
        warn!(instance = %record.row.id, %reason, "parked");
        draft.row.parked = true;
        draft.row.due_at = None;
        draft.row.reason = Some(reason.clone());
        draft.event(EventKind::Parked { failure: reason.clone() });
        draft.end_operation(OperationState::Failed, Some(reason));
    }
    match engine.write(engine.tenure.epoch(), &mut draft, Claiming::Leave).await {
        Ok(()) if configured => {
            if let Some(cell) = engine.cells.get(cell) {
                cell.offer(draft.row.id.clone(), draft.row.lane, None);
            }
            Ok(())
        }
        // Somebody asked for something meanwhile, and knows better.
        Ok(()) | Err(StoreError::Stale) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what is too old to be asked for, at most once in half an hour. It comes along with the drift passes, so that an engine
/// at rest wakes for nothing else.
pub(crate) async fn prune_when_due(engine: &Engine) {
    let now = engine.now();
    if !engine.is_prune_due(now, PRUNE_INTERVAL) {
        return;
    }
    let before = now.before(engine.config.kept);
    loop {
        match engine.seams.durably(engine.store.prune(before, PAGE)).await {
            Ok(pruned) => {
                let most = pruned.events.max(pruned.operations).max(pruned.incarnations);
                if most > 0 {
                    info!(?pruned, "removed old rows");
                }
                if most < PAGE || engine.cancel.is_cancelled() {
                    return;
                }
            }
            Err(error) => return warn!(error = %Chain(&error), "could not remove old rows"),
        }
    }
}
