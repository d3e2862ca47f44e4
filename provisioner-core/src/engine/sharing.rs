//! What other processes at the same store do, as far as this one has to know at once.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use tokio::{sync::watch, time::Instant};
use tracing::warn;

use super::{Engine, cells::CellHandle};
use crate::{
    error::Chain,
    store::{CellRow, Lane, Signal, StoreError},
    types::InstanceId,
};

/// How often everything is looked at without being told, give or take a half: a signal may be lost.
const FALLBACK: Duration = Duration::from_secs(60);
/// How long to wait before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is asked which of the operations that somebody waits for were ended elsewhere, at most.
const ENDED_EVERY: Duration = Duration::from_millis(25);
/// The same of those that this process works on: it ends them itself, unless they were given away meanwhile.
const OWN_ENDED_EVERY: Duration = Duration::from_secs(1);
/// After how long without news it is looked for all the same.
const NEWS_AFTER: Duration = Duration::from_secs(15);
/// How many operations are asked for at a time.
const PAGE: usize = 1000;

/// Listens to other processes, until the engine is cancelled. Where there are none, there is nothing to listen to.
pub(crate) async fn listen(engine: Arc<Engine>) {
    let Some(mut signals) = engine.store.signals() else { return };
    // What was told between what the start read and now was not heard.
    look_everywhere(&engine).await;
    let next_fallback = || Instant::now() + FALLBACK / 2 + engine.seams.random.up_to(FALLBACK);
    let mut fallback = next_fallback();
    loop {
        let signal = tokio::select! {
            biased;
            () = engine.cancel.cancelled() => return,
            // Before signals, of which there may always be one more.
            () = tokio::time::sleep_until(fallback) => {
                fallback = next_fallback();
                Some(Signal::Missed)
            }
            signal = signals.next() => signal,
        };
        let Some(signal) = signal else {
            tokio::time::sleep(PAUSE).await;
            let Some(again) = engine.store.signals() else { return };
            signals = again;
            look_everywhere(&engine).await;
            continue;
        };
        // Whatever is there already: one look serves many.
        let mut told = vec![signal];
        while let Some(Some(more)) = signals.next().now_or_never() {
            told.push(more);
        }
        told.dedup();
        for signal in told {
            heed(&engine, signal).await;
        }
    }
}

async fn heed(engine: &Arc<Engine>, signal: Signal) {
    match signal {
        Signal::Due(cell) => {
            if let Some(cell) = engine.cells.get(&cell) {
                cell.rescan();
            }
        }
        Signal::Touched { epoch, instance } if epoch == engine.tenure.epoch() => look_at(engine, instance).await,
        Signal::Touched { .. } => {}
        Signal::Decided => take_decisions_up(engine).await,
        Signal::Submitted => engine.inbox.notify_one(),
        Signal::Missed => look_everywhere(engine).await,
    }
}

/// Looks at an instance of ours that somebody else wrote.
async fn look_at(engine: &Engine, id: InstanceId) {
    match engine.store.instance(&id).await {
        Ok(Some(record)) => {
            if let Some(cell) = engine.cells.get(&record.row.cell) {
                cell.offer(id, Lane::Interactive, None);
            }
        }
        Ok(None) => {}
        Err(error) => {
            warn!(instance = %id, error = %Chain(&error), "could not read what somebody else wrote");
            engine.cells.values().for_each(|cell| cell.rescan());
        }
    }
}

/// Looks at everything that may have changed unheard.
pub(super) async fn look_everywhere(engine: &Arc<Engine>) {
    take_decisions_up(engine).await;
    engine.cells.values().for_each(|cell| cell.rescan());
    engine.inbox.notify_one();
}

/// Freezes and lets go on what the store says is frozen or not.
pub(crate) async fn take_decisions_up(engine: &Engine) {
    let read = async { Ok::<_, StoreError>((engine.store.frozen().await?, engine.store.cells().await?)) };
    match read.await {
        Ok((frozen, rows)) => {
            if frozen != engine.is_frozen() {
                engine.set_frozen(frozen);
            }
            for row in rows {
                if let Some(cell) = engine.cells.get(&row.name) {
                    take_drift_up(cell, &row);
                }
            }
        }
        Err(error) => warn!(error = %Chain(&error), "could not read what is frozen"),
    }
}

fn take_drift_up(cell: &CellHandle, row: &CellRow) {
    if let Some(left) = cell.guard.take_up(row.drift_frozen.is_some()) {
        cell.rescan();
        left.into_iter().for_each(|id| cell.offer(id, Lane::Background, None));
    }
}

/// Waits until there may be new events; none when there will be none any more. Where others write some, news may be lost.
pub(crate) async fn news(engine: &Engine, positions: &mut watch::Receiver<u64>) -> Option<()> {
    if engine.tenure.lapses_after().is_none() {
        return positions.changed().await.ok();
    }
    news_within(NEWS_AFTER, positions).await
}

/// The same with an end to the waiting.
async fn news_within(time: Duration, positions: &mut watch::Receiver<u64>) -> Option<()> {
    tokio::time::timeout(time, positions.changed()).await.unwrap_or(Ok(())).ok()
}

/// Wakes who waits for operations that other processes ended, until the engine is cancelled.
pub(crate) async fn tell_waiters(engine: Arc<Engine>) {
    if engine.tenure.lapses_after().is_none() {
        return;
    }
    let mut positions = engine.store.positions();
    let (mut asked_for_all_at, mut wait) = (Instant::now(), NEWS_AFTER);
    loop {
        tokio::select! {
            biased;
            () = engine.cancel.cancelled() => return,
            news = news_within(wait, &mut positions) => if news.is_none() { return },
        }
        let asks_for_all = asked_for_all_at.elapsed() >= OWN_ENDED_EVERY;
        // After the last news one more look is due at those that were left out.
        wait = if asks_for_all { NEWS_AFTER } else { OWN_ENDED_EVERY };
        if asks_for_all {
            asked_for_all_at = Instant::now();
        }
        let own = (!asks_for_all).then(|| engine.tenure.epoch());
        for page in engine.waiters.waited_for(own).chunks(PAGE) {
            match engine.store.ended(page).await {
                Ok(ended) => ended.iter().for_each(|id| engine.waiters.ended(id)),
                Err(error) => {
                    warn!(error = %Chain(&error), "could not read which operations ended");
                    // Whoever waits is served when it can be read.
                    positions.mark_changed();
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
            }
        }
        tokio::time::sleep(ENDED_EVERY).await;
    }
}
