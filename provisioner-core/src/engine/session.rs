//! This process's right to write: one session with the store, renewed before it lapses and opened anew when it did.
//!
//! A session protects the store. What protects the provider is that no call is begun once the session might lapse before the
//! next renewal, and that whoever takes the work over looks again later.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tracing::{info, warn};

use super::{Engine, shared_clock::SharedClock, sharing, upkeep};
use crate::{
    error::Chain,
    seams::Clock,
    store::{Renewal, Session, Store, StoreError},
    types::Timestamp,
};

/// How often a session is renewed within the time after which it lapses.
const RENEWALS: u32 = 4;
/// How often that is tried within this time while the store fails.
const TRIES: u32 = 20;
/// What the times of two processes may differ by: what each may be off by, and the correction that one may be at while the other
/// has begun with it (`TOLERANCE` of `Time`).
const SKEW: Duration = Duration::from_secs(6);
/// How well a process knows the store's clock before it begins to work, unless the store is too slow to tell.
const CLOCK_ERROR_MAX: Duration = Duration::from_millis(250);
/// How often it asks for that.
const CLOCK_QUESTIONS: usize = 5;

/// The session in force, if there is one.
#[derive(Debug)]
pub(crate) struct Tenure {
    /// 0 while there is none.
    epoch: AtomicU64,
    lapses_after: Option<Duration>,
    /// When the session was last asked for; it lapses so long after that, at the earliest.
    asked_at: Mutex<Instant>,
    replicas: AtomicU32,
    lost: Notify,
    clock: Option<Arc<SharedClock>>,
}

impl Tenure {
    /// Of a session that was asked for at this time.
    pub(crate) fn new(session: Session, asked_at: Instant) -> Self {
        Self {
            epoch: AtomicU64::new(session.epoch),
            lapses_after: session.lapses_after,
            asked_at: Mutex::new(asked_at),
            replicas: AtomicU32::new(1),
            lost: Notify::new(),
            clock: session.now.map(|now| Arc::new(SharedClock::starting(now, asked_at))),
        }
    }

    /// Learns how many processes share the store, and what its clock shows, until that is known well enough.
    pub(crate) async fn join(&self, store: &dyn Store) -> Result<(), StoreError> {
        let Some(clock) = &self.clock else { return Ok(()) };
        for _ in 0..CLOCK_QUESTIONS {
            let asked_at = Instant::now();
            let renewed = store.renew_session(self.epoch()).await?;
            self.renewed(&renewed, asked_at);
            if clock.error() <= CLOCK_ERROR_MAX {
                return Ok(());
            }
        }
        warn!(error = ?clock.error(), "the store is slow to tell its clock, and work begins with less exact times");
        Ok(())
    }

    /// The store's clock, where several processes share it.
    pub(crate) fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.clock.clone().map(|clock| clock as Arc<dyn Clock>)
    }

    /// By how much this process's time may differ from that of another one that wrote a row.
    pub(crate) fn skew(&self) -> Duration {
        self.clock.as_ref().map_or(Duration::ZERO, |_| SKEW)
    }

    fn renewed(&self, renewed: &Renewal, asked_at: Instant) {
        self.extend(asked_at);
        self.tell_clock(renewed.now, asked_at);
        self.replicas.store(u32::try_from(renewed.in_force.len()).unwrap_or(u32::MAX).max(1), Ordering::SeqCst);
    }

    fn tell_clock(&self, now: Option<Timestamp>, asked_at: Instant) {
        if let (Some(clock), Some(now)) = (&self.clock, now) {
            clock.tell(now, asked_at);
        }
    }

    /// The number that writes carry. Without a session it is one that the store refuses.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Whether this is the session in force, and calls may be begun under it.
    pub(crate) fn allows_calls(&self, epoch: u64) -> bool {
        epoch != 0 && self.epoch() == epoch && self.until().is_none_or(|until| Instant::now() < until)
    }

    /// How many processes share the store, this one included.
    pub(crate) fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::SeqCst)
    }

    /// For how long after a session was lost another process may not know.
    pub(crate) fn lapses_after(&self) -> Option<Duration> {
        self.lapses_after
    }

    /// Until when calls may be begun; none: as long as there is a session. The store's clock may have begun to count when it was
    /// asked, and clocks differ a little.
    fn until(&self) -> Option<Instant> {
        self.lapses_after.map(|lapses_after| self.asked_at() + lapses_after * 4 / 5)
    }

    /// Whether others may have taken work from the session, which they then took for lapsed. A renewal that came through all the
    /// same brings none of that back, and nobody would tell.
    fn may_have_lapsed(&self) -> bool {
        self.lapses_after.is_some_and(|lapses_after| self.asked_at().elapsed() >= lapses_after)
    }

    fn asked_at(&self) -> Instant {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extend(&self, asked_at: Instant) {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = asked_at;
    }

    fn begin(&self, session: Session, asked_at: Instant) {
        self.extend(asked_at);
        self.tell_clock(session.now, asked_at);
        self.epoch.store(session.epoch, Ordering::SeqCst);
    }

    /// This session is over; whether it was the one in force and another one is to be opened.
    pub(super) fn lose(&self, epoch: u64) -> bool {
        if self.lapses_after.is_none() {
            return false;
        }
        if self.epoch.compare_exchange(epoch, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() && epoch != 0 {
            warn!(epoch, "the session with the store is lost: work stops until there is another one");
            self.lost.notify_one();
        }
        true
    }
}

/// Keeps the session until the engine has come to rest.
pub(crate) async fn keep(engine: Arc<Engine>) {
    let tenure = &engine.tenure;
    let Some(lapses_after) = tenure.lapses_after else { return };
    let mut others = None;
    let mut pause = lapses_after / RENEWALS;
    loop {
        tokio::select! {
            biased;
            () = engine.at_rest.cancelled() => return,
            () = tenure.lost.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let kept = tokio::time::timeout(lapses_after / RENEWALS, keep_once(&engine, &mut others));
        let kept = kept.await.unwrap_or_else(|late| Err(StoreError::Failed(Box::new(late))));
        pause = lapses_after / if kept.is_ok() { RENEWALS } else { TRIES };
        match kept {
            Ok(()) => {}
            Err(StoreError::SessionLost) => pause = Duration::ZERO,
            Err(error) => {
                warn!(error = %Chain(&error), "the session with the store could not be renewed; trying again")
            }
        }
    }
}

/// One renewal, or a new session. `others` are those that were in force at the last renewal of this session.
async fn keep_once(engine: &Arc<Engine>, others: &mut Option<BTreeSet<u64>>) -> Result<(), StoreError> {
    let asked_at = Instant::now();
    let epoch = engine.tenure.epoch();
    if epoch == 0 {
        if engine.cancel.is_cancelled() {
            return Ok(());
        }
        let session = engine.seams.durably(engine.store.open_session(&engine.holder, engine.now())).await?;
        engine.tenure.begin(session, asked_at);
        *others = None;
        info!(epoch = session.epoch, "a new session with the store: work goes on");
        let looking = Arc::clone(engine);
        engine.tasks.spawn(async move { sharing::look_everywhere(&looking).await });
        return Ok(());
    }
    let renewed = engine.store.renew_session(epoch).await.inspect_err(|error| engine.store_error(error, epoch))?;
    if engine.tenure.may_have_lapsed() {
        engine.tenure.lose(epoch);
        // What it works on still is free at once.
        engine.store.close_session(epoch).await?;
        return Err(StoreError::SessionLost);
    }
    let before = engine.tenure.replicas();
    engine.tenure.renewed(&renewed, asked_at);
    if before > 1 && engine.tenure.replicas() == 1 {
        // What was left to the others is nobody's.
        engine.tasks.spawn(upkeep::sort_out_cells(Arc::clone(engine)));
    }
    let now: BTreeSet<u64> = renewed.in_force.into_iter().filter(|other| *other != epoch).collect();
    // Between the first look at what is due and the first renewal, one that nobody here knew of may have ended: what it worked
    // on was passed over by that look.
    let is_over = others.as_ref().is_none_or(|others| others.iter().any(|other| !now.contains(other)));
    if is_over {
        if others.is_some() {
            info!("another process's session is over: its work is taken over");
        }
        engine.cells.values().for_each(|cell| cell.rescan());
        engine.inbox.notify_one();
    }
    *others = Some(now);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::time::Time, seams::SettableClock};

    const START: Timestamp = Timestamp::from_unix_ms(1_750_000_000_000);
    /// What a clock may be corrected by without anybody being told: `TOLERANCE` of `Time`.
    const CORRECTION: Duration = Duration::from_secs(5);

    fn tenure(now: Option<Timestamp>) -> Tenure {
        let lapses_after = now.map(|_| Duration::from_secs(15));
        Tenure::new(Session { epoch: 1, lapses_after, now }, Instant::now())
    }

    /// The time of a process that starts now. The store's answer takes so long on the way there and on the way back.
    async fn time(store: &SettableClock, there: Duration, back: Duration) -> Time {
        let asked_at = Instant::now();
        tokio::time::sleep(there).await;
        let told = store.now();
        tokio::time::sleep(back).await;
        let clock = SharedClock::starting(told, asked_at);
        assert!(clock.error() <= CLOCK_ERROR_MAX, "{:?}", clock.error());
        Time::starting(Arc::new(clock), None)
    }

    #[tokio::test(start_paused = true)]
    async fn the_times_of_two_processes_differ_by_no_more_than_is_allowed_for() {
        // The slowest answer that a process begins to work with, but for what rounding adds.
        let (slow, quick) = (2 * CLOCK_ERROR_MAX - Duration::from_millis(2), Duration::ZERO);
        for forward in [true, false] {
            let store = SettableClock::starting_at(START);
            let (old, new);
            if forward {
                old = time(&store, quick, slow).await;
                store.set_forward(CORRECTION);
                new = time(&store, slow, quick).await;
            } else {
                old = time(&store, slow, quick).await;
                store.set_back(CORRECTION);
                new = time(&store, quick, slow).await;
            }
            // The old one learns of it with its next renewal.
            let (old, new) = (old.now(), new.now());
            let apart = old.since(new).max(new.since(old));
            assert!(apart <= tenure(Some(START)).skew(), "{apart:?}");
            assert!(apart > CORRECTION, "{apart:?}: no less than this is allowed for");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_renewed_too_late_is_not_gone_on_with() {
        let tenure = tenure(Some(START));
        for (wait, allows_calls, may_have_lapsed) in [(11, true, false), (3, false, false), (1, false, true)] {
            tokio::time::sleep(Duration::from_secs(wait)).await;
            assert_eq!((tenure.allows_calls(1), tenure.may_have_lapsed()), (allows_calls, may_have_lapsed), "{wait}");
        }
        tenure.extend(Instant::now());
        assert!(tenure.allows_calls(1) && !tenure.may_have_lapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_the_store_alone_allows_for_nothing() {
        assert_eq!(tenure(None).skew(), Duration::ZERO);
    }
}
