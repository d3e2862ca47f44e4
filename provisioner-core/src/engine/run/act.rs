//! Acting: what is on disk before a call, the call, and what is made of its answer.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{Flow, Next, Run, describe};
use crate::{
    context::OpContext,
    engine::plan::Step,
    error::{Chain, Effect, Error, Result, Retry},
    store::{EventKind, Lane, StoreError},
    types::{DataDisposition, DataSource, Incarnation, Observed, Target, TargetState, Timestamp},
};

impl Run<'_> {
    /// Begins the move back of an instance that was settled, and is not as it was. `false`: what differs in this cell waits
    /// for somebody's word.
    pub(super) fn take_up_drift(&mut self) -> bool {
        if self.cell.guard.is_frozen() {
            return false;
        }
        let row = &self.draft.row;
        let found = self.known.present().map_or_else(|| "absent".to_owned(), describe);
        info!(instance = %row.id, found, "drifted");
        if row.settled_at.is_none_or(|at| self.engine.now().since(at) >= self.engine.config.stable_after) {
            self.draft.row.attempts = 0;
            self.draft.row.busy = 0;
        }
        self.draft.event(EventKind::Drifted { found });
        self.draft.begin_move(Lane::Background);
        true
    }

    pub(super) async fn act(&mut self, step: Step) -> Result<Flow, StoreError> {
        // A mutating call is made only for a row that is unsettled on disk.
        let row = &self.draft.row;
        let new_incarnation = step == Step::Create && row.live.is_none();
        if row.settled && !self.take_up_drift() {
            return self.leave().await.map(Flow::End);
        }
        if new_incarnation {
            // The name of what is about to be made is on disk before the call that makes it.
            let number = self.draft.row.incarnations + 1;
            let incarnation = match is_planted!(self.engine, ReusesIncarnation) {
                true => Incarnation::new(1, u128::from_str_radix(self.draft.row.data.as_str(), 16).unwrap_or(1)),
                false => self.engine.seams.random.incarnation(number),
            };
            self.draft.start_incarnation(incarnation);
        }
        if new_incarnation || (!self.draft.is_unsettled_on_disk() && !is_planted!(self.engine, SkipsUnsettledWrite)) {
            self.write().await?;
            if !self.engine.allows_calls(self.epoch) {
                // The answer took so long that another process may work on it by now.
                return Ok(Flow::End(Next::StoreFailed));
            }
        }
        self.cell.call_begins(&self.draft.row.id, self.engine.now());
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
                if is_planted!(self.engine, EndsWithoutLooking)
                    && step == Step::Create
                    && error.effect() == Effect::Unknown
                {
                    self.end_incarnation(self.engine.now());
                }
                self.begin_anew(step, &error);
                self.fail(error.to_reason(), Some(&error)).await.map(Flow::End)
            }
        }
    }

    /// What its names stand for cannot be had: the next call is for another incarnation. Nothing was made of this one, as far as
    /// anybody knows.
    fn begin_anew(&mut self, step: Step, error: &Error) {
        let is_new = self.draft.row.live.as_ref().is_some_and(|live| !live.seen);
        if step == Step::Create && error.retry() == Retry::Anew && error.effect() == Effect::None && is_new {
            self.end_incarnation(self.engine.now());
        }
    }

    pub(super) async fn call(&self, step: Step) -> Result<Observed> {
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

    pub(super) fn target(&self) -> Target {
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

    pub(super) fn context(&self) -> OpContext {
        let row = &self.draft.row;
        let now = self.engine.now();
        let mut last_call = row.live.as_ref().and_then(|live| live.last_call);
        if !row.settled {
            // A call of an earlier session may have been made and not recorded, at the latest when this one began.
            last_call = last_call.max(Some(self.engine.started_at)).max(row.taken_over_at);
        }
        let mut cx = self.engine.context(row.lane.into());
        // How long before a jump of time it was is not known.
        let since =
            |at: Timestamp| now.since(at.max(self.engine.jumped_at())).saturating_sub(self.engine.tenure.skew());
        cx.since_last_call = last_call.map(since);
        if self.called.is_some() {
            cx.since_last_call = Some(Duration::ZERO);
        }
        cx
    }
}
