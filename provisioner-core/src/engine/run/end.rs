//! Ending a move: settled, forgotten, failed, parked, or expired.

use tracing::{info, warn};

use super::{EXPIRED, Next, Run};
use crate::{
    engine::backoff,
    error::{Error, ErrorKind, Retry},
    store::{DataState, EventKind, Lane, OperationState, StoreError},
    types::{DataDisposition, Generation, Hold, Observed, Phase, Reason, TargetState},
};

impl Run<'_> {
    pub(super) async fn settle(&mut self) -> Result<Next, StoreError> {
        let now = self.engine.now();
        let target = self.target_state();
        let was_settled = self.draft.row.settled;
        let late_calls_until = self.late_calls_until();
        let row = &mut self.draft.row;
        row.settled = true;
        row.moving_since = None;
        row.retry_at = None;
        row.due_at = row.expires_at;
        match late_calls_until {
            // Whatever a late call does is seen, and undone, when there can be none any more.
            Some(until) if now < until => row.due_at = Some(row.due_at.map_or(until, |due| due.min(until))),
            _ => row.taken_over_at = None,
        }
        if was_settled {
            // Looks that saw nothing are over.
            row.busy = 0;
        } else {
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
        // Also where the spec in force is not the wanted one: the update to that has ended as failed or superseded.
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
        self.write_last().await?;
        Ok(next)
    }

    pub(super) async fn forget(&mut self) -> Result<Next, StoreError> {
        let TargetState::Gone(disposition) = self.target_state() else {
            unreachable!("only what is to be gone is forgotten")
        };
        let row = &self.draft.row;
        // On record is all data that may exist, be it of a making or taken up.
        let on_record = self.engine.store.data_set(&row.data).await?.is_some();
        if !self.engine.allows_calls(self.epoch) {
            // The answer took so long that another process may work on it by now.
            return Ok(Next::StoreFailed);
        }
        // The verb removes the data of what is there; this removes the data of what was gone before.
        if disposition == DataDisposition::Delete && on_record && !self.is_removed() {
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
            // What was never seen to run may have left data behind.
            DataDisposition::Retain if on_record => self.draft.data(DataState::Unseen),
            DataDisposition::Retain => self.draft.drop_data(),
        }
        self.draft.end_operation(OperationState::Done, None);
        self.draft.event(EventKind::Forgotten { data: disposition });
        let removed = self.engine.remove(self.epoch, &self.draft).await;
        self.let_go(&removed);
        removed?;
        self.cell.call_is_recorded(&self.draft.row.id);
        info!(instance = %self.draft.row.id, ?disposition, "forgotten");
        Ok(Next::Rest)
    }

    /// Writes a failure down: to be tried again later, or given up.
    pub(super) async fn fail(&mut self, reason: Reason, error: Option<&Error>) -> Result<Next, StoreError> {
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
        // A provider that is busy or down is not the instance's fault: only the deadline ends that.
        let counts = error.is_none_or(|error| {
            !matches!(
                error.kind(),
                ErrorKind::Throttled | ErrorKind::CapacityExhausted | ErrorKind::Unavailable | ErrorKind::Cancelled
            )
        });
        let row = &mut self.draft.row;
        *(if counts { &mut row.attempts } else { &mut row.busy }) += 1;
        let (attempts, failures) = (row.attempts, row.attempts.saturating_add(row.busy));
        let gone = matches!(self.target_state(), TargetState::Gone(_));
        if !gone && (attempts >= config.attempts_max || self.is_too_late()) {
            return self.park(reason).await;
        }
        let delay = backoff::delay(config, &self.engine.seams.random, failures, error);
        let mut retry_at = now.after(delay);
        if let Some(deadline) = self.deadline() {
            retry_at = retry_at.min(deadline);
        }
        self.draft.event(EventKind::Retrying {
            failure: reason.clone(),
            attempts: failures,
            again_ms: u64::try_from(retry_at.since(now).as_millis()).unwrap_or(u64::MAX),
        });
        let row = &mut self.draft.row;
        row.reason = Some(reason);
        row.retry_at = Some(retry_at);
        row.due_at = Some(retry_at);
        row.lane = Lane::Background;
        self.write_last().await?;
        Ok(Next::Due(retry_at))
    }

    /// Gives up until somebody asks for something. After a failed update the spec applied last is in force again, so
    /// that sleep and wake bring the customer back.
    pub(super) async fn park(&mut self, reason: Reason) -> Result<Next, StoreError> {
        warn!(instance = %self.draft.row.id, %reason, "parked");
        self.draft.at(self.engine.now());
        if self.target_state() == TargetState::Running {
            self.draft.fall_back();
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
        self.write_last().await?;
        Ok(self.draft.row.due_at.map_or(Next::Rest, Next::Due))
    }

    /// Leaves a settled instance as it is until somebody says that what differs in its cell is true: it is looked at
    /// again then, so the row tells what it did before. Nothing else is to come back to it.
    pub(super) async fn leave(&mut self) -> Result<Next, StoreError> {
        self.draft.drop_change();
        if let Some(live) = &mut self.draft.row.live {
            // Nobody looks for a long time: no later absence may count as the second one.
            live.absent_since = None;
        }
        self.draft.row.due_at = self.draft.row.expires_at;
        self.cell.guard.note_left(&self.draft.row.id);
        if !self.draft.is_unchanged() {
            self.write_last().await?;
        }
        Ok(self.draft.row.due_at.map_or(Next::Rest, Next::Due))
    }

    /// Suspends an instance whose time is over. What is written next writes this too.
    pub(super) fn expire(&mut self) {
        let now = self.engine.now();
        let row = &mut self.draft.row;
        if row.intent.gone.is_some() || row.expires_at.is_none_or(|at| at > now) {
            return;
        }
        row.expires_at = None;
        row.intent.holds.insert(Hold::new(EXPIRED).expect("a DNS label"));
        row.revision = row.revision.next();
        row.attempts = 0;
        row.busy = 0;
        info!(instance = %row.id, "expired");
        self.draft.end_operation(OperationState::Superseded, None);
        self.draft.event(EventKind::Drifted { found: EXPIRED.into() });
        self.draft.begin_move(Lane::Background);
    }
}
