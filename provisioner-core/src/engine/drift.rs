//! The slow comparison of every cell with the store: it catches what a lost event would have told.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use tracing::{info, warn};

use super::{Engine, cells, cells::CellHandle, remnants, upkeep};
use crate::{
    context::Priority,
    error::{Chain, Error, ErrorKind, Result},
    store::{
        CellRow, Change, EventKind, IncarnationRow, IncarnationState, InstanceFilter, InstanceRow, Lane, NewEvent,
        Stranger,
    },
    types::{Generation, InstanceId, Observed, Owned, OwnedKind, Phase, Timestamp},
};

/// How many things or rows are compared at a time.
const PAGE: usize = 256;
/// Below this many, a share says nothing: two of three is a bad day, not a lost cell.
const VANISHED_SHARE_FROM: u64 = 5;
/// The longest interval between two passes.
const INTERVAL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How many instances one pass hands over to be looked at, of those that differ and of those that vanished.
const AT_ONCE: usize = 1000;

/// What one drift pass found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DriftReport {
    /// Things of ours at the provider.
    pub listed: u64,
    /// Instances that are not as the store says, and are looked at again.
    pub differing: u64,
    /// Instances that should be there and are not.
    pub vanished: u64,
    /// Things of makings that ended: being removed.
    pub remnants: u64,
    /// Things of ours that the store never knew.
    pub strangers: u64,
    /// Whether the cell's drift actions are frozen.
    pub frozen: bool,
}

/// Compares a cell with the store again and again, at an interval with jitter, until the engine is cancelled. An engine at
/// rest wakes for this alone.
pub(crate) async fn patrol(engine: Arc<Engine>, cell: Arc<CellHandle>) {
    loop {
        // All processes together compare as often as one would alone.
        let interval = engine.config.drift_interval.min(INTERVAL_MAX).saturating_mul(engine.tenure.replicas());
        let pause = interval * 3 / 4 + engine.seams.random.up_to(interval / 2);
        tokio::select! {
            biased;
            () = engine.cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        upkeep::prune_when_due(&engine).await;
        if engine.is_frozen() || !engine.allows_calls(engine.tenure.epoch()) {
            continue;
        }
        match pass(&engine, &cell).await {
            Ok(report) => info!(cell = %cell.name, ?report, "compared with the store"),
            Err(error) => warn!(cell = %cell.name, error = %Chain(&error), "could not be compared with the store"),
        }
    }
}

/// One pass over one cell.
///
/// # Errors
/// When the provider cannot be listed or is not the one that the store knows, or the store fails. Then nothing counts as
/// vanished.
pub(crate) async fn pass(engine: &Engine, cell: &CellHandle) -> Result<DriftReport> {
    if let Err(error) = cells::identify(engine, cell).await {
        if error.kind() == ErrorKind::Conflict {
            cell.stop_until_identified();
        }
        return Err(error);
    }
    stop_when_cancelled(engine)?;
    let mut strangers = engine.store.strangers().await.map_err(|error| error.into_error("drift"))?;
    let started_at = engine.now();
    let mut report = DriftReport { frozen: cell.guard.is_frozen(), ..DriftReport::default() };
    let mut seen = BTreeMap::new();
    let cx = engine.context(Priority::Background);
    let mut pages = cell.provisioner().list(&cx).chunks(PAGE);
    while let Some(page) = next_page(engine, &mut pages).await? {
        // A listing that failed half-way has seen only half: nothing follows from what it did not see.
        let page: Vec<Owned> = page.into_iter().collect::<Result<_>>()?;
        let is_last = page.len() < PAGE;
        report.listed += page.len() as u64;
        let instances = page.iter().filter(|owned| owned.kind == OwnedKind::Instance);
        seen.extend(instances.map(|owned| (owned.incarnation.nonce(), seen_of(&owned.observed))));
        compare_things(engine, cell, page, &mut strangers, &mut report).await?;
        if is_last {
            break;
        }
    }
    compare_rows(engine, cell, &seen, started_at, &mut report).await?;
    stop_when_cancelled(engine)?;
    // The pass may have outlasted the session.
    if !engine.is_frozen() && engine.allows_calls(engine.tenure.epoch()) {
        maintain(engine, cell).await?;
    }
    Ok(report)
}

/// Between two calls: a session that was lost, or a shutdown, ends the pass.
fn stop_when_cancelled(engine: &Engine) -> Result<()> {
    if engine.cancel.is_cancelled() { Err(Error::new(ErrorKind::Cancelled, "drift")) } else { Ok(()) }
}

/// Has the cell see to its own upkeep.
async fn maintain(engine: &Engine, cell: &CellHandle) -> Result<()> {
    let cx = engine.context(Priority::Background).with_timeout(engine.config.call_timeout);
    let asked = tokio::time::timeout(engine.config.call_timeout, cell.provisioner().maintain(&cx, false));
    for action in engine.seams.calling(asked).await.map_err(|_| super::run::lost_answer("maintain"))?? {
        info!(cell = %cell.name, action, "upkeep");
    }
    Ok(())
}

/// The next page of a listing, within the time for one call.
async fn next_page<P>(engine: &Engine, pages: &mut (impl Stream<Item = P> + Unpin)) -> Result<Option<P>> {
    tokio::select! {
        biased;
        () = engine.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "drift")),
        page = engine.seams.calling(tokio::time::timeout(engine.config.call_timeout, pages.next())) => {
            page.map_err(|_| super::run::lost_answer("list"))
        }
    }
}

/// Finds what is there of makings that are not alive: remnants and strangers.
async fn compare_things(
    engine: &Engine,
    cell: &CellHandle,
    page: Vec<Owned>,
    strangers: &mut Vec<Stranger>,
    report: &mut DriftReport,
) -> Result<()> {
    let incarnations: Vec<_> = page.iter().map(|owned| owned.incarnation).collect();
    let known = engine.store.incarnations(&incarnations).await.map_err(|error| error.into_error("drift"))?;
    for (owned, known) in page.into_iter().zip(known) {
        match known {
            // The last making that used it may be forgotten already.
            None if owned.kind == OwnedKind::Data && is_known_data(engine, &owned).await? => {}
            None => stranger(engine, cell, &owned, strangers, report).await?,
            // Retained data is what is left of makings that ended.
            Some(_) if owned.kind == OwnedKind::Data => {}
            // Whether it is as it should be is seen when the rows are read.
            Some(row) if row.state == IncarnationState::Live => {}
            Some(row) => {
                report.remnants += 1;
                remnant(engine, cell, row).await?;
            }
        }
    }
    Ok(())
}

async fn is_known_data(engine: &Engine, owned: &Owned) -> Result<bool> {
    let Some(id) = &owned.data else { return Ok(false) };
    let data = engine.store.data_set(id).await.map_err(|error| error.into_error("drift"))?;
    Ok(data.is_some())
}

async fn remnant(engine: &Engine, cell: &CellHandle, mut row: IncarnationRow) -> Result<()> {
    if !engine.is_frozen() {
        remnants::mark(engine, engine.tenure.epoch(), &mut row, engine.now())
            .await
            .map_err(|error| error.into_error("drift"))?;
        // Its own timer sees to it, so that nobody else calls for it at the same time.
        cell.note_due(engine.now());
    }
    Ok(())
}

async fn stranger(
    engine: &Engine,
    cell: &CellHandle,
    owned: &Owned,
    known: &mut Vec<Stranger>,
    report: &mut DriftReport,
) -> Result<()> {
    report.strangers += 1;
    if known.iter().any(|stranger| stranger.incarnation == owned.incarnation) {
        return Ok(());
    }
    warn!(cell = %cell.name, instance = %owned.id, incarnation = %owned.incarnation, "found a stranger; it is left alone");
    let stranger = Stranger {
        incarnation: owned.incarnation,
        instance: owned.id.clone(),
        cell: cell.name.clone(),
        data: owned.data.clone(),
        generation: owned.observed.present().map_or(Generation(0), |present| present.generation),
        found_at: engine.now(),
    };
    let what = EventKind::StrangerFound { incarnation: owned.incarnation, cell: cell.name.clone() };
    let change = Change {
        epoch: Some(engine.tenure.epoch()),
        strangers: vec![stranger.clone()],
        events: vec![about(engine, Some(&owned.id), what)],
        ..Change::default()
    };
    engine.commit(change).await.map_err(|error| error.into_error("drift"))?;
    known.push(stranger);
    Ok(())
}

/// What a listing saw: makings by their nonces, and the phase and generation of each, where it could say.
type Seen = BTreeMap<u128, Option<(Phase, Generation)>>;

fn seen_of(observed: &Observed) -> Option<(Phase, Generation)> {
    observed.present().map(|present| (present.phase, present.generation))
}

/// Finds the instances that were at rest and are not as the store says, or not there; freezes when too many are not there.
async fn compare_rows(
    engine: &Engine,
    cell: &CellHandle,
    seen: &Seen,
    started_at: Timestamp,
    report: &mut DriftReport,
) -> Result<()> {
    let filter = InstanceFilter { cell: Some(cell.name.clone()), ..InstanceFilter::default() };
    // Times on disk are in whole milliseconds, and may be another process's.
    let slack = Duration::from_millis(1) + engine.tenure.skew();
    let (mut after, mut total): (Option<InstanceId>, u64) = (None, 0);
    let (mut differing, mut vanished) = (Vec::new(), Vec::new());
    loop {
        let page =
            engine.store.instances(&filter, after.as_ref(), PAGE).await.map_err(|error| error.into_error("drift"))?;
        for record in &page {
            let row = &record.row;
            let Some(live) = row.live.as_ref().filter(|_| is_at_rest(row)) else { continue };
            // What came to rest while the listing began may be listed as it was before.
            let before = row.settled_at.is_some_and(|at| at.after(slack) < started_at);
            total += u64::from(live.seen && before);
            let found = match seen.get(&live.incarnation.nonce()) {
                // At a generation that the store never gave, its spec is anybody's guess.
                Some(seen) if seen.is_none_or(|seen| is_as_told(row, seen)) => continue,
                Some(_) => (&mut differing, &mut report.differing),
                None if live.seen && before => (&mut vanished, &mut report.vanished),
                None => continue,
            };
            *found.1 += 1;
            // What is beyond this is found by the next pass.
            if found.0.len() < AT_ONCE {
                found.0.push(row.id.clone());
            }
        }
        after = page.last().map(|record| record.row.id.clone());
        if page.len() < PAGE {
            break;
        }
    }
    if !report.frozen {
        offer_all(cell, differing);
    }
    if too_many(engine, report.vanished, Some(total)) {
        if !cell.guard.is_confirmed() {
            report.frozen = true;
            return freeze(engine, cell, format!("{} of {total} instances are not there", report.vanished)).await;
        }
    } else if !report.frozen {
        cell.guard.reset();
    }
    if !report.frozen {
        offer_all(cell, vanished);
    }
    Ok(())
}

fn offer_all(cell: &CellHandle, ids: Vec<InstanceId>) {
    for id in ids {
        cell.offer(id, Lane::Background, None);
    }
}

/// Whether an instance is at rest. What is in motion is looked at anyway.
fn is_at_rest(row: &InstanceRow) -> bool {
    row.settled && !row.parked
}

/// Whether what a listing saw is what the row tells. Asleep it may be of an older generation: it is brought up to date when it
/// wakes.
fn is_as_told(row: &InstanceRow, (phase, at): (Phase, Generation)) -> bool {
    let up_to_date = at == row.in_force || (at < row.in_force && phase.is_asleep());
    Some(phase) == row.phase && up_to_date
}

/// Whether so many instances gone at once look like a fault of the cell rather than of theirs.
fn too_many(engine: &Engine, vanished: u64, total: Option<u64>) -> bool {
    let share = total.is_some_and(|total| {
        vanished >= VANISHED_SHARE_FROM && vanished * 100 > total * engine.config.vanished_percent_max
    });
    vanished > engine.config.vanished_max || share
}

/// Keeps a cell's drift actions from doing what a fault of the cell only makes look right.
#[derive(Debug, Default)]
pub(crate) struct DriftGuard {
    frozen: AtomicBool,
    /// Somebody has confirmed what vanished: it is acted on, however much it is.
    confirmed: AtomicBool,
    /// Settled instances found gone since the last drift pass.
    vanished: AtomicU64,
    /// Whether the store says that it is frozen, as far as is known here.
    on_record: AtomicBool,
    /// What was found to differ while it was frozen, by looks and not by a pass.
    left: Mutex<BTreeSet<InstanceId>>,
    /// Held while a freeze or its end is written down, so that memory and store end with the same one.
    turn: tokio::sync::Mutex<()>,
}

impl DriftGuard {
    pub(crate) fn new(frozen: bool) -> Self {
        Self { frozen: frozen.into(), on_record: frozen.into(), ..Self::default() }
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::SeqCst)
    }

    /// A pass found the cell as it should be, or nearly.
    fn reset(&self) {
        self.vanished.store(0, Ordering::SeqCst);
        self.confirmed.store(false, Ordering::SeqCst);
    }

    /// The turn to write down a freeze or its end.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Somebody has confirmed that what vanished is gone: what was left meanwhile, to be looked at again.
    pub(crate) fn confirm(&self) -> BTreeSet<InstanceId> {
        self.vanished.store(0, Ordering::SeqCst);
        self.confirmed.store(true, Ordering::SeqCst);
        self.frozen.store(false, Ordering::SeqCst);
        self.on_record.store(false, Ordering::SeqCst);
        mem::take(&mut *self.left())
    }

    /// Takes up what the store says: where that is news, another process froze the cell, or somebody confirmed there. What was left
    /// meanwhile is to be looked at again then.
    pub(crate) fn take_up(&self, frozen: bool) -> Option<BTreeSet<InstanceId>> {
        if self.on_record.swap(frozen, Ordering::SeqCst) == frozen {
            return None;
        }
        if frozen {
            self.frozen.store(true, Ordering::SeqCst);
            return None;
        }
        Some(self.confirm())
    }

    /// Remembers an instance that differs and is left as it is.
    pub(crate) fn note_left(&self, id: &InstanceId) {
        self.left().insert(id.clone());
    }

    fn left(&self) -> MutexGuard<'_, BTreeSet<InstanceId>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a settled instance that a run found gone, and freezes the cell's drift actions when it is one too many.
pub(crate) async fn note_vanished(engine: &Engine, cell: &CellHandle) {
    let vanished = cell.guard.vanished.fetch_add(1, Ordering::SeqCst) + 1;
    if cell.guard.is_confirmed() || cell.guard.is_frozen() || !too_many(engine, vanished, None) {
        return;
    }
    if let Err(error) = freeze(engine, cell, format!("{vanished} instances were found gone one after the other")).await
    {
        warn!(cell = %cell.name, error = %Chain(&error), "that drift actions are frozen could not be written down");
    }
}

async fn freeze(engine: &Engine, cell: &CellHandle, found: String) -> Result<()> {
    // In memory first: what runs beside this must stop now.
    let already = cell.guard.frozen.swap(true, Ordering::SeqCst);
    let _turn = cell.guard.turn().await;
    if !cell.guard.is_frozen() {
        // Somebody confirmed what was found, while this waited.
        return Ok(());
    }
    let rows = engine.store.cells().await.map_err(|error| error.into_error("drift"))?;
    let Some(row) = rows.into_iter().find(|row| row.name == cell.name) else { return Ok(()) };
    if already && row.drift_frozen.is_some() {
        return Ok(());
    }
    warn!(cell = %cell.name, found, "drift actions are frozen until somebody confirms");
    let row = CellRow { drift_frozen: Some(found.clone()), ..row };
    let what = EventKind::DriftFrozen { cell: cell.name.clone(), found };
    let change = Change {
        epoch: Some(engine.tenure.epoch()),
        cells: vec![row],
        events: vec![about(engine, None, what)],
        ..Change::default()
    };
    engine.commit(change).await.map_err(|error| error.into_error("drift"))?;
    cell.guard.on_record.store(true, Ordering::SeqCst);
    Ok(())
}

fn about(engine: &Engine, instance: Option<&InstanceId>, what: EventKind) -> NewEvent {
    NewEvent { instance: instance.cloned(), at: engine.now(), revision: None, actor: None, reason: None, what }
}
