//! One run: from a look at one instance to the next moment when nothing can be done but wait.
//!
//! The runner does what the planner says and writes down what came of it. Before a mutating call the row is unsettled on
//! disk, so that a start after a crash looks before it acts; what is known from then until the answer is in is
//! `Unknown`, and lives in memory alone.

use std::{sync::Arc, time::Duration};

use tracing::{debug, info, warn};

use super::{
    Engine, backoff,
    cells::CellHandle,
    draft::Draft,
    plan::{Step, plan},
    queue::Work,
};
use crate::{
    context::OpContext,
    error::{Chain, Effect, Error, ErrorKind, Result, Retry},
    store::{DataState, EventKind, OperationState, Record, StoreError},
    types::{
        DataDisposition, DataSource, Generation, Hold, Observed, Phase, Present, Reason, Target, TargetState, Timestamp,
    },
};

/// How often a thing in motion is looked at when nothing says when to.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The same when the backend tells of changes by itself: a safety net for lost events.
const LOOK_AGAIN_WATCHED: Duration = Duration::from_secs(30);
/// The hold that an expired instance gets.
const EXPIRED: &str = "expired";
/// How long a removal may go on before it is asked for again.
const REMOVAL_LASTS: Duration = Duration::from_secs(60);
/// More steps than any move has: a planner that goes in circles is stopped here.
const STEPS_MAX: usize = 16;

/// When to come back to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// When somebody says so.
    Rest,
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
    draft: Draft,
    known: Observed,
    /// The mutating step called last in this run. A step that the planner wants twice in a row is under way.
    called: Option<Step>,
}

/// Works on one instance until there is nothing to do but wait.
pub(crate) async fn run(engine: &Engine, cell: &CellHandle, work: Work) -> Next {
    let record = match work.record {
        Some(record) => record,
        None => match engine.store.instance(&work.id).await {
            Ok(Some(record)) => record,
            Ok(None) => return Next::Rest,
            Err(error) => return store_failed(&error),
        },
    };
    match Run::new(engine, cell, &record).finish().await {
        Ok(next) => next,
        Err(StoreError::Stale) => Next::Again,
        Err(error) => store_failed(&error),
    }
}

fn store_failed(error: &StoreError) -> Next {
    warn!(error = %Chain(error), "the store failed; the instance is looked at again");
    Next::StoreFailed
}

impl<'a> Run<'a> {
    fn new(engine: &'a Engine, cell: &'a CellHandle, record: &Record) -> Self {
        let known = match record.row.live {
            // Nothing was ever called for, or what there was has ended.
            None => Observed::Absent,
            Some(_) => Observed::Unknown { again: Duration::ZERO },
        };
        Self { engine, cell, draft: Draft::of(record, engine.now()), known, called: None }
    }

    async fn finish(mut self) -> Result<Next, StoreError> {
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
            if self.engine.cancel.is_cancelled() || self.engine.is_frozen() {
                return Ok(Next::Rest);
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
            Step::Wait if self.removal_may_have_stopped() => self.act(Step::Destroy).await,
            Step::Wait => self.wait().await.map(Flow::End),
            Step::Settled => self.settle().await.map(Flow::End),
            Step::Forget => self.forget().await.map(Flow::End),
            // Called already, and under way.
            step if self.called == Some(step) => self.under_way(step).await.map(Flow::End),
            Step::Create if self.has_failed_since_called() => self.failed_again().await.map(Flow::End),
            step => self.act(step).await,
        }
    }

    // Looking

    async fn observe(&mut self) -> Result<Flow, StoreError> {
        if let Observed::Unknown { again } = self.known
            && again > Duration::ZERO
        {
            return self.look_again(again).await.map(Flow::End);
        }
        let target = self.target();
        let observed = self.engine.call(self.cell, self.context(), "observe", &target.id, |cx, provisioner| {
            let target = target.clone();
            Box::pin(async move { provisioner.observe(&cx, &target).await })
        });
        match observed.await {
            Ok(observed) => {
                self.known = self.confirmed(observed);
                // An answer of "unknown, look at once" would be asked for ever.
                if let Observed::Unknown { again } = &mut self.known
                    && again.is_zero()
                    && self.draft.row.live.as_ref().is_none_or(|live| live.absent_since.is_none())
                {
                    *again = LOOK_AGAIN;
                }
                Ok(Flow::Continue)
            }
            // It was fine when it was looked at last, and a look that failed says nothing else.
            Err(error) if self.draft.row.settled => {
                warn!(instance = %target.id, error = %Chain(&error), "could not look at a settled instance");
                self.look_again(LOOK_AGAIN_WATCHED).await.map(Flow::End)
            }
            Err(error) => self.fail(error.to_reason(), Some(&error)).await.map(Flow::End),
        }
    }

    /// Believes an absence of what was once there only after two looks, a settling time apart.
    fn confirmed(&mut self, observed: Observed) -> Observed {
        let now = self.engine.now();
        let settling = self.cell.capabilities.settling;
        let gone = matches!(self.target_state(), TargetState::Gone(_));
        let Some(live) = &mut self.draft.row.live else { return observed };
        if observed != Observed::Absent || gone || !live.seen {
            self.draft.absorb(&observed);
            return observed;
        }
        match live.absent_since {
            Some(since) if now.since(since) >= settling => {
                warn!(instance = %self.draft.row.id, incarnation = %live.incarnation, "what was there is gone");
                if self.draft.row.settled {
                    self.engine.note_vanished(self.cell);
                    if self.cell.drift_is_frozen() {
                        return Observed::Unknown { again: LOOK_AGAIN_WATCHED };
                    }
                    self.draft.event(EventKind::Drifted { found: "absent".into() });
                    self.draft.begin_move();
                }
                self.draft.absorb(&Observed::Absent);
                self.end_incarnation(now);
                Observed::Absent
            }
            Some(since) => Observed::Unknown { again: settling.saturating_sub(now.since(since)) },
            None => {
                live.absent_since = Some(now);
                Observed::Unknown { again: settling }
            }
        }
    }

    /// A making is over. What a late call of it makes is looked for once no call can be under way any more.
    fn end_incarnation(&mut self, now: Timestamp) {
        let look_at = now.after(self.cell.capabilities.call_max.max(self.engine.config.call_timeout));
        self.draft.end_incarnation(look_at);
        self.cell.note_due(look_at);
    }

    // Acting

    async fn act(&mut self, step: Step) -> Result<Flow, StoreError> {
        // A mutating call is made only for a row that is unsettled on disk.
        let row = &self.draft.row;
        let new_incarnation = step == Step::Create && row.live.is_none();
        if row.settled {
            if self.cell.drift_is_frozen() {
                return Ok(Flow::End(Next::Rest));
            }
            let found = self.known.present().map_or_else(|| "absent".to_owned(), describe);
            info!(instance = %row.id, found, "drifted");
            if row.settled_at.is_none_or(|at| self.engine.now().since(at) >= self.engine.config.stable_after) {
                self.draft.row.attempts = 0;
            }
            self.draft.event(EventKind::Drifted { found });
            self.draft.begin_move();
        }
        if new_incarnation {
            // The name of what is about to be made is on disk before the call that makes it.
            let incarnation = self.engine.seams.random.incarnation(self.draft.row.incarnations + 1);
            self.draft.start_incarnation(incarnation);
        }
        if new_incarnation || !self.draft.is_unsettled_on_disk() {
            self.engine.write(&mut self.draft).await?;
        }
        self.called = Some(step);
        self.known = Observed::Unknown { again: Duration::ZERO };
        let answer = self.call(step).await;
        self.draft.at(self.engine.now());
        if let Some(live) = &mut self.draft.row.live {
            live.last_call = Some(self.engine.now());
        }
        self.draft.row.retry_at = None;
        match answer {
            Ok(observed) => {
                // An absence told by a verb is no observation: it is looked for.
                self.known = match observed {
                    Observed::Absent => Observed::Unknown { again: Duration::ZERO },
                    observed => observed,
                };
                self.draft.absorb(&self.known);
                Ok(Flow::Continue)
            }
            Err(error) => {
                warn!(instance = %self.draft.row.id, step = step.as_str(), error = %Chain(&error), "a step failed");
                self.fail(error.to_reason(), Some(&error)).await.map(Flow::End)
            }
        }
    }

    async fn call(&self, step: Step) -> Result<Observed> {
        let target = self.target();
        let data = match self.target_state() {
            TargetState::Gone(data) => data,
            _ => DataDisposition::Retain,
        };
        let id = target.id.clone();
        self.engine
            .call(self.cell, self.context(), step.as_str(), &id, move |cx, provisioner| {
                Box::pin(async move {
                    match step {
                        Step::Create => provisioner.create(&cx, &target).await,
                        Step::Suspend => provisioner.suspend(&cx, &target).await,
                        Step::ScaleToZero => provisioner.scale_to_zero(&cx, &target).await,
                        Step::Resume => provisioner.resume(&cx, &target).await,
                        Step::Destroy => provisioner.destroy(&cx, &target, data).await,
                        step => unreachable!("{} is no call", step.as_str()),
                    }
                })
            })
            .await
    }

    fn target(&self) -> Target {
        let row = &self.draft.row;
        let live = row.live.as_ref().expect("a provider is called only with an incarnation");
        Target {
            id: row.id.clone(),
            tenant: row.tenant.clone(),
            incarnation: live.incarnation,
            generation: row.in_force,
            spec: Arc::clone(&self.draft.specs[&row.in_force]),
            data: if row.data_made {
                DataSource::Existing(row.data.clone())
            } else {
                DataSource::Fresh(row.data.clone())
            },
        }
    }

    fn context(&self) -> OpContext {
        let row = &self.draft.row;
        let now = self.engine.now();
        let mut last_call = row.live.as_ref().and_then(|live| live.last_call);
        if !row.settled {
            // A call of an earlier session may have been made and not recorded, at the latest when this one began.
            last_call = last_call.max(Some(self.engine.started_at));
        }
        let mut cx = self.engine.context(row.lane.into());
        cx.since_last_call = last_call.map(|at| now.since(at));
        if self.called.is_some() {
            cx.since_last_call = Some(Duration::ZERO);
        }
        cx
    }

    // Waiting

    /// Something is on its way by itself.
    async fn wait(&mut self) -> Result<Next, StoreError> {
        let again = self.known.present().and_then(|present| present.again);
        let usual = if self.cell.capabilities.watch { LOOK_AGAIN_WATCHED } else { LOOK_AGAIN };
        self.look_again(again.unwrap_or(usual)).await
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

    /// Whether what is on its way out may be taken there by nobody any more: the call for it is one of a control plane
    /// that is gone, or of long ago.
    fn removal_may_have_stopped(&self) -> bool {
        let TargetState::Gone(_) = self.target_state() else { return false };
        let last_call = self.draft.row.live.as_ref().and_then(|live| live.last_call);
        self.called.is_none()
            && self.known.phase() == Some(Phase::Destroying)
            && last_call.is_none_or(|at| at <= self.engine.started_at || self.engine.now().since(at) >= REMOVAL_LASTS)
    }

    async fn failed_again(&mut self) -> Result<Next, StoreError> {
        let present = self.known.present().expect("a failure was seen");
        let reason = present.reason.clone().unwrap_or_else(|| Reason::new("failed", "no reason given"));
        if self.draft.row.settled {
            self.draft.event(EventKind::Drifted { found: describe(present) });
            self.draft.begin_move();
        }
        self.fail(reason, None).await
    }

    async fn look_again(&mut self, again: Duration) -> Result<Next, StoreError> {
        let now = self.engine.now();
        let mut due = now.after(again.max(Duration::from_millis(1)));
        if let Some(deadline) = self.deadline() {
            if now >= deadline {
                let detail = self.draft.row.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                let message = format!(
                    "not {} within {} s{detail}",
                    describe_target(self.target_state()),
                    self.engine.config.move_deadline.as_secs()
                );
                return self.park(Reason::new("deadline", message)).await;
            }
            due = due.min(deadline);
        }
        self.draft.row.due_at = Some(due);
        self.draft.row.retry_at = None;
        self.engine.write(&mut self.draft).await?;
        Ok(Next::Due(due))
    }

    /// When the move counts as failed: time during which no control plane was at work does not count. A removal never
    /// counts as failed, as what is left would go on costing money.
    fn deadline(&self) -> Option<Timestamp> {
        match self.target_state() {
            TargetState::Gone(_) => None,
            _ => {
                let since = self.draft.row.moving_since?.max(self.engine.started_at);
                Some(since.after(self.engine.config.move_deadline))
            }
        }
    }

    // Ending

    async fn settle(&mut self) -> Result<Next, StoreError> {
        let now = self.engine.now();
        let target = self.target_state();
        let was_settled = self.draft.row.settled;
        let row = &mut self.draft.row;
        row.settled = true;
        row.moving_since = None;
        row.retry_at = None;
        row.due_at = row.expires_at;
        if !was_settled {
            row.settled_at = Some(now);
        }
        match (&self.known, target) {
            (Observed::Present(present), TargetState::Running) if present.generation >= row.in_force => {
                row.applied = Some(row.in_force);
            }
            // Nothing was made, or what was made is gone: asleep as asked, all the same.
            (Observed::Absent, TargetState::Zero) => self.draft.set_phase(Some(Phase::Zero), None),
            (Observed::Absent, TargetState::Suspended) => self.draft.set_phase(Some(Phase::Suspended), None),
            _ => {}
        }
        self.draft.keep_only_needed_specs();
        // The customer wants another spec than the one in force: that one failed, and this settles something else.
        self.draft.end_operation(OperationState::Done, None);
        let next = self.draft.row.due_at.map_or(Next::Rest, Next::Due);
        if self.draft.is_unchanged() {
            return Ok(next);
        }
        let row = &self.draft.row;
        if !was_settled
            && row.phase == Some(Phase::Running)
            && row.incarnations == 1
            && row.applied == Some(Generation::FIRST)
        {
            metrics::histogram!("provisioner_time_to_ready_seconds", "cell" => self.cell.name.to_string())
                .record(now.since(row.created_at).as_secs_f64());
        }
        self.engine.write(&mut self.draft).await?;
        Ok(next)
    }

    async fn forget(&mut self) -> Result<Next, StoreError> {
        let TargetState::Gone(disposition) = self.target_state() else {
            unreachable!("only what is to be gone is forgotten")
        };
        let row = &self.draft.row;
        // The verb removes the data of what is there; this removes the data of what was gone before.
        let verb_was_called = self.called == Some(Step::Destroy) || row.phase == Some(Phase::Destroying);
        if disposition == DataDisposition::Delete && row.incarnations > 0 && !verb_was_called {
            let data = row.data.clone();
            let deleted =
                self.engine.call(self.cell, self.context(), "delete data", &row.id, move |cx, provisioner| {
                    Box::pin(async move { provisioner.delete_data(&cx, &data).await })
                });
            if let Err(error) = deleted.await {
                return self.fail(error.to_reason(), Some(&error)).await;
            }
        }
        let now = self.engine.now();
        self.draft.at(now);
        self.end_incarnation(now);
        match disposition {
            DataDisposition::Delete => self.draft.drop_data(),
            DataDisposition::Retain if self.draft.row.data_made => self.draft.data(DataState::Retained),
            DataDisposition::Retain => self.draft.drop_data(),
        }
        self.draft.end_operation(OperationState::Done, None);
        self.draft.event(EventKind::Forgotten { data: disposition });
        self.engine.remove(&self.draft).await?;
        info!(instance = %self.draft.row.id, ?disposition, "forgotten");
        Ok(Next::Rest)
    }

    // Failing

    /// Writes a failure down: to be tried again later, or given up.
    async fn fail(&mut self, reason: Reason, error: Option<&Error>) -> Result<Next, StoreError> {
        let now = self.engine.now();
        let config = &self.engine.config;
        if let Some(error) = error {
            metrics::counter!(
                "provisioner_errors_total", "cell" => self.cell.name.to_string(), "kind" => error.kind().as_str()
            )
            .increment(1);
        }
        if error.is_some_and(|error| error.retry() == Retry::Never) {
            return self.park(reason).await;
        }
        self.draft.row.attempts += 1;
        let attempts = self.draft.row.attempts;
        // A provider that is busy or down is not the instance's fault: only the deadline ends that.
        let counts = error.is_none_or(|error| {
            !matches!(
                error.kind(),
                ErrorKind::Throttled | ErrorKind::CapacityExhausted | ErrorKind::Unavailable | ErrorKind::Cancelled
            )
        });
        let gone = matches!(self.target_state(), TargetState::Gone(_));
        let too_often = counts && attempts >= config.attempts_max;
        let too_late = self.deadline().is_some_and(|deadline| now >= deadline);
        if !gone && (too_often || too_late) {
            return self.park(reason).await;
        }
        let delay = backoff::delay(config, &self.engine.seams.random, attempts, error);
        let retry_at = now.after(delay);
        self.draft.event(EventKind::Retrying {
            failure: reason.clone(),
            attempts,
            again_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        });
        let row = &mut self.draft.row;
        row.reason = Some(reason);
        row.retry_at = Some(retry_at);
        row.due_at = Some(retry_at);
        row.lane = crate::store::Lane::Background;
        self.engine.write(&mut self.draft).await?;
        Ok(Next::Due(retry_at))
    }

    /// Gives up until somebody asks for something. After a failed update the spec applied last is in force again, so
    /// that sleep and wake bring the customer back.
    async fn park(&mut self, reason: Reason) -> Result<Next, StoreError> {
        warn!(instance = %self.draft.row.id, %reason, "parked");
        self.draft.at(self.engine.now());
        let row = &self.draft.row;
        if let Some(applied) = row.applied
            && row.in_force == row.wanted
            && applied != row.wanted
            && self.target_state() == TargetState::Running
        {
            let fallback = row.next_generation();
            let spec = Arc::clone(&self.draft.specs[&applied]);
            self.draft.put_spec(fallback, spec);
            self.draft.row.in_force = fallback;
        }
        let row = &mut self.draft.row;
        row.parked = true;
        row.reason = Some(reason.clone());
        row.retry_at = None;
        row.moving_since = None;
        row.due_at = row.expires_at.filter(|_| row.intent.gone.is_none());
        if row.live.is_some() && row.phase.is_some_and(|phase| phase == Phase::Provisioning) {
            self.draft.set_phase(Some(Phase::Failed), Some(reason.clone()));
        }
        self.draft.event(EventKind::Parked { failure: reason.clone() });
        self.draft.end_operation(OperationState::Failed, Some(reason));
        metrics::counter!("provisioner_parked_total", "cell" => self.cell.name.to_string()).increment(1);
        self.engine.write(&mut self.draft).await?;
        Ok(self.draft.row.due_at.map_or(Next::Rest, Next::Due))
    }

    /// Suspends an instance whose time is over. What is written next writes this too.
    fn expire(&mut self) {
        let now = self.engine.now();
        let row = &mut self.draft.row;
        if row.intent.gone.is_some() || row.expires_at.is_none_or(|at| at > now) {
            return;
        }
        row.expires_at = None;
        row.intent.holds.insert(Hold::new(EXPIRED).expect("a DNS label"));
        row.revision = row.revision.next();
        row.attempts = 0;
        info!(instance = %row.id, "expired");
        self.draft.end_operation(OperationState::Superseded, None);
        self.draft.event(EventKind::Drifted { found: EXPIRED.into() });
        self.draft.begin_move();
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
