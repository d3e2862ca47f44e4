//! What each verb asks of the service, request by request. Every one of them may be repeated, and may be the last one before a crash.

mod make;
mod remove;
mod rest;
mod run;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use provisioner_account::Writing;
use provisioner_core::{
    Effect, Error, ErrorKind, OpContext, Result, Retry,
    types::{Incarnation, Observed, Target, Timestamp},
};
use tokio::time::Instant;

pub(crate) use self::{remove::delete_data, run::Wake};
use crate::{
    backend::Shared,
    digest::{Intended, Machine, State, Volume},
    error::{During, Failure},
    names,
    seen::{self, Seen},
    writes::{ENDED, STOPPED, Write},
};

/// Between two looks of a verb that waits for what was written before to be shown.
const SHOWN_AGAIN: Duration = Duration::from_millis(200);

/// One verb on one target.
pub(crate) struct Work<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) cx: &'a OpContext,
    pub(crate) operation: &'static str,
    pub(crate) target: &'a Target,
    pub(crate) writing: Writing<'a, Write>,
    /// When it was called, which is the caller's `now`.
    pub(crate) began: Instant,
    /// Whether it has done something that can be seen.
    pub(crate) acted: AtomicBool,
}

impl Work<'_> {
    fn incarnation(&self) -> Incarnation {
        self.target.incarnation
    }

    /// By the caller's clock.
    fn now(&self) -> Timestamp {
        self.cx.now.after(self.began.elapsed())
    }

    fn during(&self) -> During<'_> {
        During { operation: self.operation, instance: Some(&self.target.id) }
    }

    fn error(&self, kind: ErrorKind) -> Error {
        self.acted_too(self.during().error(kind))
    }

    fn conflict(&self, field: &str, message: impl Into<String>) -> Error {
        self.error(ErrorKind::Conflict).with_field(field).with_message(message)
    }

    /// Something moves that has to come to its end first.
    fn too_early(&self, message: impl Into<String>) -> Error {
        self.error(ErrorKind::Unavailable).with_retry(Retry::After(crate::seen::MOVING)).with_message(message)
    }

    fn acted_too(&self, error: Error) -> Error {
        if self.acted.load(Ordering::Relaxed) { error.with_effect(Effect::Unknown) } else { error }
    }

    fn no_place(&self, zone: &str) -> Error {
        self.conflict("data", format!("its volume is in {zone}, where this cell has no place"))
    }

    fn reading(&self, failure: Failure) -> Error {
        self.acted_too(failure.during(self.during(), false))
    }

    fn writing(&self, failure: Failure) -> Error {
        self.acted_too(failure.during(self.during(), true))
    }

    /// A write was answered.
    fn wrote(&self, write: Write) {
        self.acted.store(true, Ordering::Relaxed);
        self.writing.note(write);
    }

    /// The volumes with the target's data, whichever making used them last.
    async fn volumes(&self) -> Result<Vec<Volume>> {
        let volumes = self.shared.fleet.data(self.cx, self.target.data.id()).await;
        volumes.map_err(|failure| self.reading(failure))
    }

    /// What is there of the making, and of the data unless a machine has it, as new as what this process wrote before.
    async fn look(&self) -> Result<Seen> {
        let until = Instant::now() + self.shared.config.settling;
        loop {
            let seen = self.shared.seen_machines(self.cx, self.incarnation()).await;
            let mut seen = seen.map_err(|failure| self.reading(failure))?;
            if seen.living().is_none() {
                seen.volumes = self.volumes().await?;
            }
            if self.shared.writes.are_shown(self.incarnation(), &seen) || Instant::now() >= until {
                return Ok(seen);
            }
            self.pause().await?;
        }
    }

    /// A moment, unless the caller's time is over.
    async fn pause(&self) -> Result<()> {
        let wake = Instant::now() + SHOWN_AGAIN;
        if self.cx.deadline.is_some_and(|deadline| deadline <= wake) {
            return Err(self.error(ErrorKind::Timeout).with_message("the service does not show what was done"));
        }
        tokio::select! {
            () = tokio::time::sleep_until(wake) => Ok(()),
            () = self.cx.cancel.cancelled() => Err(self.error(ErrorKind::Cancelled)),
        }
    }

    /// What the verb answers: what was seen, and what it did since. That is not looked at again: it is known.
    async fn answer(&self, seen: &Seen) -> Result<Observed> {
        let health = self.shared.health(self.cx, seen).await.map_err(|failure| self.reading(failure))?;
        Ok(seen::together(seen.observed(self.incarnation(), health), self.now(), self.shared.config.look_every))
    }

    async fn intend(&self, seen: &mut Seen, machine: &Machine, intended: Intended) -> Result<()> {
        if machine.intended == intended {
            return Ok(());
        }
        let tags = [(names::INTENDED.to_owned(), intended.as_str().to_owned())].into();
        let done = self.shared.fleet.during(self.cx).tag(&machine.id, &tags).await;
        done.map_err(|failure| self.writing(failure))?;
        self.wrote(Write::Intended(machine.id.clone(), intended));
        seen.change(&machine.id, |machine| machine.intended = intended);
        Ok(())
    }

    async fn stop(&self, seen: &mut Seen, machine: &Machine) -> Result<()> {
        let done = self.shared.fleet.stop(self.cx, &machine.id).await;
        done.map_err(|failure| self.writing(failure))?;
        self.wrote(Write::State(machine.id.clone(), STOPPED));
        seen.change(&machine.id, |machine| machine.state = State::Stopping);
        Ok(())
    }

    /// Ends a machine for good.
    async fn end(&self, seen: &mut Seen, machine: &Machine) -> Result<()> {
        match self.shared.fleet.end(self.cx, &machine.id).await {
            Err(failure) if failure.kind == ErrorKind::NotFound => {}
            done => done.map_err(|failure| self.writing(failure))?,
        }
        self.wrote(Write::State(machine.id.clone(), ENDED));
        seen.change(&machine.id, |machine| machine.state = State::ShuttingDown);
        Ok(())
    }
}
