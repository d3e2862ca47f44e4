//! What each verb writes.

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

use provisioner_account::{During, Failure, Writing};
use provisioner_azure::web;
use provisioner_core::{
    Effect, Error, ErrorKind, OpContext, Result,
    types::{Incarnation, Observed, Target, Timestamp},
};
use tokio::time::Instant;

pub(crate) use self::{remove::delete_data, run::Wake};
use crate::{
    backend::Shared,
    digest::{Owner, Share, Site},
    names,
    seen::Seen,
    writes::Write,
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

/// A word that no write had before.
fn word() -> String {
    format!("{:016x}", rand::random::<u64>())
}

impl Work<'_> {
    fn incarnation(&self) -> Incarnation {
        self.target.incarnation
    }

    /// The name of its site.
    fn site_name(&self) -> String {
        names::site(&self.cx.control_plane, &self.target.id, self.incarnation())
    }

    fn owner(&self) -> Owner {
        Owner {
            control_plane: self.cx.control_plane.clone(),
            instance: self.target.id.clone(),
            incarnation: self.incarnation(),
            data: self.target.data.id().clone(),
            tenant: self.target.tenant.digest().into(),
        }
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

    fn data_missing(&self) -> Error {
        self.error(ErrorKind::DataMissing).with_message("its share is not there")
    }

    fn acted_too(&self, error: Error) -> Error {
        if self.acted.load(Ordering::Relaxed) { error.with_effect(Effect::Unknown) } else { error }
    }

    fn reading(&self, failure: Failure) -> Error {
        self.acted_too(failure.during(self.during(), false))
    }

    fn writing(&self, failure: Failure) -> Error {
        self.acted_too(failure.during(self.during(), true))
    }

    /// An error of a check, as one of the verb that made it.
    fn refused(&self, error: Error) -> Error {
        let mut refused = self.during().error(error.kind());
        if let Some(field) = error.field() {
            refused = refused.with_field(field);
        }
        refused.with_customer_message(error.customer_message().to_owned()).with_source(error)
    }

    /// A write was answered.
    fn wrote(&self) {
        self.acted.store(true, Ordering::Relaxed);
    }

    /// What is there of the making, as new as what this process wrote before.
    async fn look(&self) -> Result<Seen> {
        self.look_at(false).await
    }

    /// The same with its share in any case.
    async fn look_wholly(&self) -> Result<Seen> {
        self.look_at(true).await
    }

    async fn look_at(&self, wholly: bool) -> Result<Seen> {
        let until = Instant::now() + self.shared.config.settling;
        loop {
            let seen = match wholly {
                true => self.shared.seen_wholly(self.cx, self.target).await,
                false => self.shared.seen(self.cx, self.target).await,
            };
            let seen = seen.map_err(|failure| self.reading(failure))?;
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
        let health = self.shared.health(seen, self.now()).await;
        Ok(seen.observed(self.incarnation(), health, self.shared.config.look_every))
    }

    // Writes

    /// Writes a site: how it is then. The caller has the turn at its plan. What is answered may be older than that.
    async fn put_site(&self, name: &str, site: web::Site, word: &str) -> Result<Option<Site>, Failure> {
        let mut made = self.shared.group.put_site(self.cx, name, &site).await?;
        self.wrote();
        self.writing.note(Write::Site(word.into()));
        self.shared.prober.begin_again(name);
        (made.tags, made.properties.server_farm_id) = (site.tags, site.properties.server_farm_id);
        Ok(Site::of(made))
    }

    /// Has a site do something, when it is its plan's turn.
    async fn tell_site(&self, site: &mut Site, what: &str) -> Result<()> {
        let _turn = self.turn_at(site).await?;
        let done = self.shared.group.tell_site(self.cx, &site.name, what).await;
        done.map_err(|failure| self.writing(failure))?;
        self.wrote();
        let runs = what != "stop";
        self.writing.note(Write::SiteRuns(runs));
        self.shared.prober.begin_again(&site.name);
        site.is_running = runs;
        Ok(())
    }

    async fn turn_at(&self, site: &Site) -> Result<provisioner_account::Turn> {
        let plan = crate::plans::name_of(&site.plan).unwrap_or_default();
        self.shared.plans.turn(self.cx, plan).await.map_err(|failure| self.reading(failure))
    }

    /// Notes something else about a share.
    async fn note(&self, share: &mut Share, change: impl FnOnce(&mut Share)) -> Result<()> {
        let before = share.size_gib;
        let mut noted = share.clone();
        change(&mut noted);
        noted.written = word().into();
        let done = self.shared.group.note_share(self.cx, &noted, noted.size_gib != before).await;
        done.map_err(|failure| self.writing(failure))?;
        self.wrote();
        self.writing.note(Write::Share(noted.written.clone()));
        *share = noted;
        Ok(())
    }
}
