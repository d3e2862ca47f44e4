//! One run: from a look at one instance to the next moment when nothing can be done but wait.
//!
//! The runner does what the planner says and writes down what came of it. Before a mutating call the row is unsettled on
//! disk, so that a start after a crash looks before it acts; what is known from then until the answer is in is
//! `Unknown`, and lives in memory alone.

mod act;
mod end;
mod look;

use std::time::Duration;

use tracing::{debug, warn};

use super::{
    Engine,
    cells::CellHandle,
    draft::Draft,
    drift,
    plan::{Step, plan},
    queue::{Claimed, Work},
};
use crate::{
    error::{Chain, Effect, Error, ErrorKind, Result},
    store::{Claiming, EventKind, Lane, StoreError, Taken},
    types::{Observed, Phase, Present, Reason, TargetState, Timestamp},
};

/// How often a thing in motion is looked at when nothing says when to.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The same when the backend tells of changes by itself: a safety net for lost events.
const LOOK_AGAIN_WATCHED: Duration = Duration::from_secs(30);
/// And the least, when the backend asks for less.
const LOOK_AGAIN_LEAST: Duration = Duration::from_millis(250);
/// What takes long is looked at less and less often: a sixteenth of the time that it has taken may pass unnoticed.
const LOOK_AGAIN_SHARE: u32 = 16;
/// How long a move that was called for may go on before it is called for again.
const CALL_AGAIN: Duration = Duration::from_secs(60);
/// The hold that an expired instance gets.
const EXPIRED: &str = "expired";
/// More steps than any move has: a planner that goes in circles is stopped here.
const STEPS_MAX: usize = 16;

/// When to come back to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// When somebody says so.
    Rest,
    /// When work goes on: all of it is frozen.
    Frozen,
    /// At this time: it is in the store.
    Due(Timestamp),
    /// At once, from what is in the store then: somebody else wrote the row.
    Again,
    /// After a moment: the store did not take the write.
    StoreFailed,
}

enum Flow {
    Continue,
    End(Next),
}

struct Run<'a> {
    engine: &'a Engine,
    cell: &'a CellHandle,
    /// The session that claimed the instance.
    epoch: u64,
    draft: Draft,
    known: Observed,
    /// Whether it was on its way out when this run began.
    was_leaving: bool,
    /// The mutating step called last in this run. A step that the planner wants twice in a row is under way.
    called: Option<Step>,
    /// Whether a last write gave the claim up.
    has_let_go: bool,
}

/// Works on one instance until there is nothing to do but wait.
pub(crate) async fn run(engine: &Engine, cell: &CellHandle, work: Work) -> Next {
    let epoch = engine.tenure.epoch();
    let record = match work.record {
        Some(Claimed { epoch: of, record }) if of == epoch && !cell.was_let_go(&work.id, record.version) => record,
        _ => match engine.store.claim_instance(epoch, &work.id).await {
            Ok(Taken::Here(record)) => record,
            Ok(Taken::Elsewhere) if is_planted!(engine, IgnoresClaims) => match engine.store.instance(&work.id).await {
                Ok(Some(record)) => record,
                _ => return Next::Rest,
            },
            // Another process works on it, or takes it up when it is due.
            Ok(Taken::Absent | Taken::Elsewhere) => return Next::Rest,
            Err(error) => {
                engine.store_error(&error, epoch);
                return store_failed(&error);
            }
        },
    };
    let mut run = Run::new(engine, cell, Claimed { epoch, record });
    match run.finish().await {
        Ok(next) => {
            if next == Next::Rest || (matches!(next, Next::Due(_)) && run.draft.row.settled) {
                run.give_back().await;
            }
            next
        }
        Err(StoreError::Stale) => Next::Again,
        Err(error) => store_failed(&error),
    }
}

fn store_failed(error: &StoreError) -> Next {
    warn!(error = %Chain(error), "the store failed; the instance is looked at again");
    Next::StoreFailed
}

impl<'a> Run<'a> {
    fn new(engine: &'a Engine, cell: &'a CellHandle, Claimed { epoch, record }: Claimed) -> Self {
        let known = match record.row.live {
            // Nothing was ever called for, or what there was has ended.
            None => Observed::Absent,
            Some(_) => Observed::Unknown { again: Duration::ZERO },
        };
        let mut draft = Draft::of(&record, engine.now());
        if record.taken_over && !is_planted!(engine, ForgetsTakeover) {
            draft.row.taken_over_at = Some(engine.now());
        }
        if let Some(live) = &mut draft.row.live {
            live.last_call = live.last_call.max(cell.unrecorded_call(&record.row.id));
        }
        let was_leaving = record.row.phase == Some(Phase::Destroying);
        Self { engine, cell, epoch, draft, known, was_leaving, called: None, has_let_go: false }
    }

    async fn finish(&mut self) -> Result<Next, StoreError> {
        if self.draft.row.cell != self.cell.name {
            return Ok(Next::Rest);
        }
        self.expire();
        if self.draft.row.parked {
            return Ok(Next::Rest);
        }
        if let Some(retry_at) = self.draft.row.retry_at.filter(|at| *at > self.engine.now()) {
            return Ok(Next::Due(retry_at));
        }
        for _ in 0..STEPS_MAX {
            if self.engine.is_frozen() {
                return Ok(Next::Frozen);
            }
            if self.engine.cancel.is_cancelled() {
                return Ok(Next::Rest);
            }
            if !self.engine.allows_calls(self.epoch) {
                // The session is over, or nearly: whoever has the next one goes on from what is in the store.
                return Ok(Next::StoreFailed);
            }
            if let Flow::End(next) = self.step().await? {
                return Ok(next);
            }
        }
        let reason = Reason::new("no-progress", format!("the steps towards {:?} go in circles", self.target_state()));
        self.park(reason).await
    }

    fn target_state(&self) -> TargetState {
        self.draft.row.intent.target_state()
    }

    async fn step(&mut self) -> Result<Flow, StoreError> {
        self.draft.at(self.engine.now());
        let row = &self.draft.row;
        let step = plan(&row.intent, row.in_force, &self.known);
        debug!(instance = %row.id, step = step.as_str(), known = ?self.known.phase(), "planned");
        metrics::counter!("provisioner_steps_total", "cell" => self.cell.name.to_string(), "step" => step.as_str())
            .increment(1);
        match step {
            Step::Observe => self.observe().await,
            Step::Wait => match self.abandoned_step() {
                Some(step) if !self.is_too_late() => self.act(step).await,
                _ => self.wait().await.map(Flow::End),
            },
            Step::Settled => self.settle().await.map(Flow::End),
            Step::Forget => self.forget().await.map(Flow::End),
            // Called already, and under way.
            step if self.called == Some(step) => self.under_way(step).await.map(Flow::End),
            Step::Create if self.has_failed_since_called() => self.failed_again().await.map(Flow::End),
            // Whatever this call made would be given up at the next look, and cost money.
            _ if self.is_too_late() => self.park_for_deadline().await.map(Flow::End),
            step => self.act(step).await,
        }
    }

    /// Writes down what is so far, and with it what came of the last call.
    async fn write(&mut self) -> Result<(), StoreError> {
        self.write_claiming(Claiming::Keep).await
    }

    /// The same as the last thing that this run does: another process may work on the instance from then on.
    async fn write_last(&mut self) -> Result<(), StoreError> {
        self.write_claiming(Claiming::Release).await
    }

    async fn write_claiming(&mut self, claiming: Claiming) -> Result<(), StoreError> {
        let written = self.engine.write(self.epoch, &mut self.draft, claiming).await;
        if claiming == Claiming::Release {
            self.let_go(&written);
        }
        written?;
        self.cell.call_is_recorded(&self.draft.row.id);
        Ok(())
    }

    /// After the last write: what was claimed before it is claimed no more, also where it is not known whether it happened.
    fn let_go<T>(&mut self, written: &Result<T, StoreError>) {
        self.has_let_go = true;
        let version = self.draft.version().unwrap_or_default();
        match written {
            Ok(_) => self.cell.let_go(&self.draft.row.id, version),
            Err(StoreError::NotWritten(_) | StoreError::Failed(_)) => self.cell.let_go(&self.draft.row.id, version + 1),
            Err(_) => {}
        }
    }

    /// A run that had nothing to write has nothing to do until somebody says so, be that another process, or until its time is over:
    /// its claim is not kept.
    async fn give_back(&mut self) {
        let (Some(version), Some(_)) = (self.draft.version(), self.engine.tenure.lapses_after()) else { return };
        if self.has_let_go {
            return;
        }
        let id = &self.draft.row.id;
        self.cell.let_go(id, version);
        if let Err(error) = self.engine.store.release(self.epoch, id, version).await {
            debug!(instance = %id, error = %Chain(&error), "the claim is kept until the next write");
            self.engine.store_error(&error, self.epoch);
        }
    }

    /// Until when calls may come of a process that does not know yet that its work was taken over. How long before a jump of time
    /// that was is not known.
    fn late_calls_until(&self) -> Option<Timestamp> {
        let since = self.draft.row.taken_over_at?.max(self.engine.jumped_at());
        Some(since.after(self.engine.latest_call(self.cell)))
    }

    // Waiting

    /// Something is on its way by itself.
    async fn wait(&mut self) -> Result<Next, StoreError> {
        // Somebody else has set it in motion: from here on a deadline counts, as for any move.
        if self.draft.row.settled {
            if self.known.phase() == Some(Phase::Destroying) {
                drift::note_vanished(self.engine, self.cell).await;
            }
            if !self.take_up_drift() {
                return self.leave().await;
            }
        }
        let again = self.known.present().and_then(|present| present.again);
        // Who is told of changes need not look every moment: each look is a durable write.
        let (usual, least) = match self.cell.capabilities.watch {
            true => (LOOK_AGAIN_WATCHED, LOOK_AGAIN_LEAST),
            false => (LOOK_AGAIN, Duration::ZERO),
        };
        let taken = self.moved_since().map_or(Duration::ZERO, |since| self.engine.now().since(since));
        let least = least.max((taken / LOOK_AGAIN_SHARE).min(LOOK_AGAIN_WATCHED));
        self.look_again(again.unwrap_or(usual).max(least)).await
    }

    /// The step was called in this run, and the planner wants it still: it takes its time, or it had no effect.
    async fn under_way(&mut self, step: Step) -> Result<Next, StoreError> {
        match self.known.present() {
            Some(present) if present.phase == Phase::Failed && step == Step::Create => {
                let reason = present.reason.clone().unwrap_or_else(|| Reason::new("failed", "no reason given"));
                self.fail(reason, None).await
            }
            Some(_) => self.wait().await,
            // Only a create of what was never seen gets here: it was called, and nothing is there.
            None => self.fail(Reason::new("not-made", "create was called, and nothing is there"), None).await,
        }
    }

    /// What is on its way may be taken there by nobody any more: the call for it failed half-way, was one of a control
    /// plane that is gone, or is long past. A verb continues what it finds, so it is called again.
    fn abandoned_step(&self) -> Option<Step> {
        let step = match (self.target_state(), self.known.phase()) {
            (TargetState::Running, Some(Phase::Provisioning)) => Step::Create,
            (TargetState::Gone(_), Some(Phase::Destroying)) => Step::Destroy,
            _ => return None,
        };
        let row = &self.draft.row;
        let last_call = row.live.as_ref().and_then(|live| live.last_call);
        let since = self.engine.started_at.max(row.taken_over_at.unwrap_or(self.engine.started_at));
        let of_somebody_else = last_call.is_none_or(|at| at <= since);
        let long_past = last_call.is_some_and(|at| self.engine.now().since(at) >= CALL_AGAIN);
        let abandoned = of_somebody_else || long_past || row.retry_at.is_some();
        (self.called.is_none() && abandoned).then_some(step)
    }

    /// It failed since it was last called for, so the failure is that call's: back off before calling again.
    fn has_failed_since_called(&self) -> bool {
        let row = &self.draft.row;
        let failed = self
            .known
            .present()
            .is_some_and(|present| present.phase == Phase::Failed && present.generation >= row.in_force);
        // A time to retry that has come is the permission to call.
        if !failed || row.retry_at.is_some() {
            return false;
        }
        let last_call = row.live.as_ref().and_then(|live| live.last_call);
        if row.settled {
            // It ran, and then failed by itself. At once again, unless that is becoming a habit.
            let now = self.engine.now();
            return row.settled_at.is_some_and(|at| now.since(at) < self.engine.config.stable_after);
        }
        last_call >= row.moving_since && last_call.is_some()
    }

    async fn failed_again(&mut self) -> Result<Next, StoreError> {
        let present = self.known.present().expect("a failure was seen");
        let reason = present.reason.clone().unwrap_or_else(|| Reason::new("failed", "no reason given"));
        if self.draft.row.settled {
            if self.cell.guard.is_frozen() {
                return self.leave().await;
            }
            self.draft.event(EventKind::Drifted { found: describe(present) });
            self.draft.begin_move(Lane::Background);
        }
        self.fail(reason, None).await
    }

    async fn look_again(&mut self, again: Duration) -> Result<Next, StoreError> {
        let now = self.engine.now();
        let mut due = now.after(again.max(Duration::from_millis(1)));
        if self.is_too_late() {
            return self.park_for_deadline().await;
        }
        if let Some(deadline) = self.deadline() {
            due = due.min(deadline);
        }
        self.draft.row.due_at = Some(due);
        // While nothing is known, what failed is not seen to be on its way: that it may be called for again stays so.
        if !matches!(self.known, Observed::Unknown { .. }) {
            self.draft.row.retry_at = None;
        }
        self.write_last().await?;
        Ok(Next::Due(due))
    }

    fn is_too_late(&self) -> bool {
        self.deadline().is_some_and(|deadline| self.engine.now() >= deadline)
    }

    async fn park_for_deadline(&mut self) -> Result<Next, StoreError> {
        let detail = self.draft.row.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let message = format!(
            "not {} within {} s{detail}",
            describe_target(self.target_state()),
            self.engine.config.move_deadline.as_secs()
        );
        self.park(Reason::new("deadline", message)).await
    }

    /// When the move counts as failed. A removal never does, as what is left would go on costing money.
    fn deadline(&self) -> Option<Timestamp> {
        match self.target_state() {
            TargetState::Gone(_) => None,
            _ => Some(self.moved_since()?.after(self.engine.config.move_deadline)),
        }
    }

    /// Since when the move is worked on: time during which no control plane was at work, all was frozen, or the cell was
    /// unavailable, does not count, nor does what was before a jump of time.
    fn moved_since(&self) -> Option<Timestamp> {
        let since = self.draft.row.moving_since?;
        let since = since.max(self.engine.working_since()).max(self.cell.available_since());
        Some(since.max(self.engine.jumped_at()))
    }
}

fn describe(present: &Present) -> String {
    match &present.reason {
        Some(reason) => format!("{} ({reason})", present.phase),
        None => present.phase.to_string(),
    }
}

fn describe_target(target: TargetState) -> &'static str {
    match target {
        TargetState::Running => Phase::Running.as_str(),
        TargetState::Zero => Phase::Zero.as_str(),
        TargetState::Suspended => Phase::Suspended.as_str(),
        TargetState::Gone(_) => "gone",
    }
}

/// Whether an error leaves it open what happened.
pub(crate) fn lost_answer(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation)
        .with_effect(Effect::Unknown)
        .with_message("no answer within the time for one call")
}
