//! Looking: what is there, and when an absence is believed.

use std::time::Duration;

use tracing::warn;

use super::{Flow, LOOK_AGAIN, LOOK_AGAIN_WATCHED, Run};
use crate::{
    engine::{drift, plan::Step},
    error::Chain,
    store::{EventKind, IncarnationState, Lane, StoreError},
    types::{Observed, TargetState, Timestamp},
};

/// How often the time between two looks that see nothing doubles.
const LOOK_AGAIN_DOUBLED_MAX: u32 = 16;

impl Run<'_> {
    pub(super) async fn observe(&mut self) -> Result<Flow, StoreError> {
        if let Observed::Unknown { again } = self.known
            && again > Duration::ZERO
        {
            return self.look_again(again).await.map(Flow::End);
        }
        let target = self.target();
        let asked_at = self.engine.now();
        let observed = self.engine.call(self.cell, self.context(), "observe", &target.id, |cx, provisioner| {
            let target = target.clone();
            Box::pin(async move { provisioner.observe(&cx, &target).await })
        });
        match observed.await {
            Ok(observed) => {
                // What follows from the answer begins with it, however long it took.
                self.draft.at(self.engine.now());
                let Some(known) = self.confirmed(asked_at, observed).await else {
                    return self.leave().await.map(Flow::End);
                };
                self.known = known;
                // An answer of "unknown, look at once" would be asked for ever.
                if self.known == (Observed::Unknown { again: Duration::ZERO })
                    && self.draft.row.live.as_ref().is_none_or(|live| live.absent_since.is_none())
                {
                    let again = if self.draft.row.settled { self.rarer() } else { LOOK_AGAIN };
                    self.known = Observed::Unknown { again };
                }
                self.overtake_newer().await?;
                Ok(Flow::Continue)
            }
            // It was fine when it was looked at last, and a look that failed says nothing else.
            Err(error) if self.draft.row.settled => {
                warn!(instance = %target.id, error = %Chain(&error), "could not look at a settled instance");
                let again = self.rarer();
                self.look_again(again).await.map(Flow::End)
            }
            Err(error) => self.fail(error.to_reason(), Some(&error)).await.map(Flow::End),
        }
    }

    /// When to look again at a settled instance that nothing could be seen of: more and more rarely, as it has no deadline that
    /// would end this.
    fn rarer(&mut self) -> Duration {
        let row = &mut self.draft.row;
        let again = LOOK_AGAIN_WATCHED.saturating_mul(1 << row.busy.min(LOOK_AGAIN_DOUBLED_MAX));
        row.busy = row.busy.saturating_add(1);
        again.min(self.engine.config.backoff_max.max(LOOK_AGAIN_WATCHED))
    }

    /// A newer generation than the store ever gave is no reason to be refused for ever: the store's memory is older than the
    /// world, and it goes on from there.
    async fn overtake_newer(&mut self) -> Result<(), StoreError> {
        let in_force = self.draft.row.in_force;
        let newer = self.known.present().map(|present| present.generation).filter(|seen| {
            // The one in force may be another one there, of the same number, when it was never called for. Above the last
            // number there is none to go on at: that stays a conflict.
            seen.0 < u64::MAX - 1 && *seen > in_force || (*seen == in_force && self.was_never_called_for())
        });
        let Some(found) = newer.filter(|_| !matches!(self.target_state(), TargetState::Gone(_))) else { return Ok(()) };
        warn!(instance = %self.draft.row.id, %found, in_force = %self.draft.row.in_force, "newer than the store knows");
        self.draft.overtake(found);
        // Before a call. Of a settled row it is written when the move begins, or when it is settled again.
        if self.draft.is_unsettled_on_disk() {
            self.write().await?;
        }
        Ok(())
    }

    /// Whether the spec in force was accepted by this process, or while it was at work, and no call was made since: the provider cannot
    /// have it. Who accepted it may have been ahead of who called, so that a call after it looks like one before.
    fn was_never_called_for(&self) -> bool {
        let row = &self.draft.row;
        let last_call = row.live.as_ref().and_then(|live| live.last_call);
        let accepted_here = row.moving_since.filter(|since| *since > self.engine.started_at && !row.settled);
        let is_new = row.applied.is_some_and(|applied| applied < row.in_force);
        is_new
            && row.taken_over_at.is_none()
            && self.called.is_none()
            && accepted_here.is_some_and(|since| last_call.is_none_or(|at| at.after(self.engine.tenure.skew()) < since))
    }

    /// Believes an absence of what was once there only after two looks, the second asked for a settling time after the answer
    /// to the first. Where reads lag behind writes, that goes also for what was never seen and should not be there: it would be
    /// left behind. `None`: it is gone, and whether that is true waits for somebody's word.
    pub(super) async fn confirmed(&mut self, asked_at: Timestamp, observed: Observed) -> Option<Observed> {
        let now = self.engine.now();
        let settling = self.cell.capabilities.settling;
        let target = self.target_state();
        let gone = matches!(target, TargetState::Gone(_));
        let Some(live) = &mut self.draft.row.live else { return Some(observed) };
        let once_is_enough = match (live.seen, target) {
            // It is called for again under the same name, whatever has become of it.
            (false, TargetState::Running) => true,
            (true, TargetState::Running | TargetState::Zero | TargetState::Suspended) => false,
            _ => settling.is_zero(),
        };
        if observed != Observed::Absent || once_is_enough {
            live.absent_since = None;
            self.draft.absorb(&observed);
            return Some(observed);
        }
        if is_planted!(self.engine, TrustsOneAbsent) {
            live.absent_since = Some(now.before(settling));
        }
        // Two looks with a jump of time between them may be as good as one, and how long nobody worked only the clock knows.
        let known_since = self.engine.jumped_at().max(self.engine.started_at);
        let Some(since) = live.absent_since.filter(|since| *since >= known_since) else {
            live.absent_since = Some(now);
            return Some(Observed::Unknown { again: settling });
        };
        // An answer that comes late may tell how it was when it was asked for.
        let skew = if settling.is_zero() { Duration::ZERO } else { self.engine.tenure.skew() };
        let apart = settling + skew;
        if asked_at.since(since) < apart {
            return Some(Observed::Unknown { again: apart.saturating_sub(now.since(since)) });
        }
        live.absent_since = None;
        if gone || !live.seen {
            self.draft.absorb(&Observed::Absent);
            return Some(Observed::Absent);
        }
        warn!(instance = %self.draft.row.id, incarnation = %live.incarnation, "what was there is gone");
        if self.draft.row.settled {
            drift::note_vanished(self.engine, self.cell).await;
            if self.cell.guard.is_frozen() {
                return None;
            }
            self.draft.event(EventKind::Drifted { found: "absent".into() });
            self.draft.begin_move(Lane::Background);
        }
        self.draft.absorb(&Observed::Absent);
        self.end_incarnation(now);
        Some(Observed::Absent)
    }

    /// Whether the verb that removes has been called for what is there, or was there last. Nothing else is called for what is
    /// to be gone.
    pub(super) fn is_removed(&self) -> bool {
        let row = &self.draft.row;
        let last_call = row.live.as_ref().and_then(|live| live.last_call);
        let is_to_go = matches!(self.target_state(), TargetState::Gone(_));
        let was_called = is_to_go && self.was_leaving && last_call.is_some() && last_call >= row.moving_since;
        self.called == Some(Step::Destroy) || was_called
    }

    /// A making is over. What a late call of it makes is looked for once no call can be under way any more, and what was
    /// not removed by its verb is removed then: parts may be left that no look tells of.
    pub(super) fn end_incarnation(&mut self, now: Timestamp) {
        let look_at = now.after(self.engine.latest_call(self.cell));
        let state = if self.is_removed() { IncarnationState::Ended } else { IncarnationState::Ending };
        self.draft.end_incarnation(state, look_at);
        self.cell.note_due(look_at);
    }
}
