//! Making a site, on fresh data or on a share that is there.

use provisioner_account::{Failure, Turn};
use provisioner_core::{
    Effect, Error, ErrorKind, Result, Retry,
    secret::{ExposeSecret, SecretString},
    types::{DataSource, Target, VariableName},
};
use tokio::time::Instant;

use super::{Work, word};
use crate::{check, digest::Share, names, render, seen::Seen, writes::Write};

impl Work<'_> {
    pub(super) async fn make(&self, seen: &mut Seen) -> Result<()> {
        if let Some(share) = &seen.share {
            self.expect_takable(share).await?;
        } else if matches!(self.target.data, DataSource::Existing(_)) {
            return Err(self.data_missing());
        }
        let secrets = self.secrets().await?;
        let key = self.shared.group.storage_key(self.cx).await.map_err(|failure| self.reading(failure))?;
        let (name, config) = (self.site_name(), &self.shared.config);
        let chosen = self.shared.plans.choose(self.cx, &self.shared.group, config, &name).await;
        let plan = chosen.map_err(|failure| self.reading(failure))?;
        let made = self.make_in(seen, &name, &plan, &key, &secrets).await;
        if made.as_ref().is_err_and(|error| error.effect() == Effect::None) {
            // A plan that was made for it would cost as much as a full one.
            self.clear_plan(&name, Some(&plan)).await;
        }
        made
    }

    async fn make_in(
        &self,
        seen: &mut Seen,
        name: &str,
        plan: &str,
        key: &SecretString,
        secrets: &render::Secrets,
    ) -> Result<()> {
        let shared = self.shared;
        {
            // In this order, as whoever removes has them.
            let _data = self.data_turn().await?;
            let _turn = shared.plans.turn(self.cx, plan).await.map_err(|failure| self.reading(failure))?;
            // First what may have no room: data that waits for a site would be left. A plan is nobody's yet: nothing is done for this
            // making by that.
            let there = shared.plans.ensure(self.cx, &shared.group, &shared.config, plan).await;
            there.map_err(|failure| self.reading(failure))?;
            self.take_up(seen).await?;
            let (path, word) = (shared.group.plan_path(plan), word());
            let wanted = render::site(&shared.config, &self.cx.control_plane, self.target, &path, key, secrets, &word);
            seen.site = match self.put_site(name, wanted, &word).await {
                Ok(made) => made,
                Err(failure) => return Err(self.not_made(failure, plan)),
            };
        }
        if let Some(site) = &mut seen.site {
            self.bind_hosts(site).await?;
        }
        let _data = self.data_turn().await?;
        if matches!(self.target.data, DataSource::Existing(_)) {
            self.expect_still_ours(seen).await?;
        }
        // From here on an absence of its site is one, and no making that was cut.
        match &mut seen.share {
            Some(share) => self.note(share, |share| share.making = None).await,
            None => Ok(()),
        }
    }

    /// Another process may have taken the share up while the site was made, and two sites would write to it: this one goes.
    async fn expect_still_ours(&self, seen: &mut Seen) -> Result<()> {
        let Some(share) = &seen.share else { return Ok(()) };
        let shown = self.shared.group.share(self.cx, &share.name).await.map_err(|failure| self.reading(failure))?;
        let Some(shown) = shown.filter(|shown| shown.owner.incarnation != self.incarnation()) else { return Ok(()) };
        if shown.owner.incarnation.number() < self.incarnation().number() && shown.owner.instance == self.target.id {
            // An answer that is older than what this making wrote.
            return Ok(());
        }
        if let Some(site) = seen.site.clone() {
            self.delete_site(seen, &site).await?;
        }
        Err(self.conflict("data", "another instance has taken it up at the same moment"))
    }

    fn not_made(&self, failure: Failure, plan: &str) -> Error {
        if failure.kind == ErrorKind::NotFound {
            // Somebody has removed the plan: it is made again at the next call.
            self.shared.plans.missing(self.cx, plan);
        }
        if failure.retry == Some(Retry::Anew) {
            // The name is somebody else's. That the data was taken up is known: of this call there is no other effect.
            return failure.during(self.during(), true);
        }
        self.writing(failure)
    }

    /// Waits until nobody else of this process gives the data to a making, or takes it away.
    pub(super) async fn data_turn(&self) -> Result<Turn> {
        let turn = self.shared.data.take(self.target.data.id().clone(), self.cx).await;
        turn.map_err(|why| self.reading(Failure::not_sent(why, "a share")))
    }

    /// The share is this making's from here on. Fresh data is made. The caller has the turn at the data.
    async fn take_up(&self, seen: &mut Seen) -> Result<()> {
        let name = names::share(&self.cx.control_plane, self.target.data.id());
        if seen.share.is_none() {
            let made = self.shared.group.make_share(self.cx, &self.fresh_share(&name)).await;
            let made = made.map_err(|failure| self.writing(failure))?;
            self.wrote();
            if made.owner == self.owner() && made.making == Some(self.incarnation()) && made.ending.is_none() {
                self.writing.note(Write::Share(made.written.clone()));
                seen.share = Some(made);
                return Ok(());
            }
            // It was there, and not shown.
        }
        // What was seen of it may be another one's by now.
        let found = self.shared.group.share(self.cx, &name).await.map_err(|failure| self.reading(failure))?;
        // What a removal was cut at: only fresh data is made again in its place.
        let found = match found {
            Some(share) if share.ending.is_some() => {
                self.expect_takable(&share).await?;
                if matches!(self.target.data, DataSource::Existing(_)) {
                    return Err(self.data_missing());
                }
                self.delete_share(seen, &share).await?;
                None
            }
            found => found,
        };
        let mut share = match found {
            Some(share) => {
                self.expect_takable(&share).await?;
                share
            }
            // It was there when this began, or another call has just removed it.
            None if matches!(self.target.data, DataSource::Existing(_)) => return Err(self.data_missing()),
            None => {
                let made = self.shared.group.make_share(self.cx, &self.fresh_share(&name)).await;
                let made = made.map_err(|failure| self.writing(failure))?;
                self.wrote();
                self.writing.note(Write::Share(made.written.clone()));
                made
            }
        };
        let (owner, size) = (self.owner(), render::share_gib(&self.target.spec));
        let is_taken_up = share.owner == owner && share.making == Some(self.incarnation()) && share.released.is_none();
        // The spec may have grown since a site of it was refused.
        if !is_taken_up || share.size_gib < size {
            self.note(&mut share, |share| {
                (share.owner, share.making, share.released) = (owner, Some(self.incarnation()), None);
                share.size_gib = share.size_gib.max(size);
            })
            .await?;
        }
        self.expect_taken(&share).await?;
        seen.share = Some(share);
        Ok(())
    }

    fn fresh_share(&self, name: &str) -> Share {
        Share {
            name: name.into(),
            owner: self.owner(),
            size_gib: render::share_gib(&self.target.spec),
            making: Some(self.incarnation()),
            released: None,
            ending: None,
            written: word().into(),
        }
    }

    /// The service writes without conditions: another process may have taken the same share up at the same moment, and who wrote last
    /// has it. Waits until it is shown who that was.
    async fn expect_taken(&self, share: &Share) -> Result<()> {
        let until = Instant::now() + self.shared.config.settling;
        loop {
            let shown = self.shared.group.share(self.cx, &share.name).await.map_err(|failure| self.reading(failure))?;
            if shown.as_ref().is_some_and(|shown| shown.owner == share.owner) {
                return Ok(());
            }
            if Instant::now() >= until {
                let error = self.error(ErrorKind::Unavailable).with_retry(Retry::Backoff);
                return Err(error.with_message("another instance has taken the share up at the same moment"));
            }
            self.pause().await?;
        }
    }

    /// Whether this making may have the data: no other one has it, or is about to.
    async fn expect_takable(&self, share: &Share) -> Result<()> {
        let user = &share.owner;
        if *user.tenant != *self.target.tenant.digest() {
            return Err(self.conflict("data", "it is another tenant's"));
        }
        if user.incarnation == self.incarnation() {
            return Ok(());
        }
        let name = names::site(&self.cx.control_plane, &user.instance, user.incarnation);
        let site = self.shared.group.site_now(self.cx, &name).await.map_err(|failure| self.reading(failure))?;
        let is_awaited = share.making == Some(user.incarnation) && user.instance != self.target.id;
        match site.is_some() || is_awaited {
            true => Err(self.conflict("data", "another instance uses it")),
            false => Ok(()),
        }
    }

    /// Resolved before anything is written: without them nothing is made. Those of a vault the site fetches itself.
    pub(super) async fn secrets(&self) -> Result<Vec<(VariableName, SecretString)>> {
        let mut spec = (*self.target.spec).clone();
        spec.secrets.retain(|_, reference| reference.scheme() != render::KEY_VAULT);
        let resolved = Target { spec: spec.into(), ..self.target.clone() };
        let secrets = self.cx.resolve_secrets(self.operation, &resolved).await?;
        // It would fetch it as the identity of the site, which may be one that all sites have.
        match secrets.iter().find(|(_, value)| check::is_reference(value.expose_secret())) {
            None => Ok(secrets),
            Some((name, _)) => {
                let error = self.error(ErrorKind::InvalidSpec).with_field(format!("secrets.{name}"));
                Err(error.with_message("what the service would look up in a vault: expected a value"))
            }
        }
    }
}
