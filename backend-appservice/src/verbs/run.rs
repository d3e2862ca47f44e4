//! Having an instance run, at its target's generation.

use provisioner_account::Failure;
use provisioner_core::{
    ErrorKind, Result, Retry,
    types::{HostName, Observed},
};

use super::{Work, word};
use crate::{
    digest::{Intended, Share, Site},
    names, render,
    seen::{Health, Seen},
};

/// What a verb that wakes may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Make it, where nothing is there.
    Create,
    /// Only what is there.
    Resume,
}

impl Work<'_> {
    pub(crate) async fn run(&self, wake: Wake) -> Result<Observed> {
        self.shared.check(&self.target.spec, None).map_err(|error| self.refused(error))?;
        let mut seen = self.look_wholly().await?;
        match (seen.site.clone(), wake) {
            // Also one whose removal was cut: its share goes after it, and so is whole.
            (Some(mut site), _) => {
                self.bring(&mut seen, &mut site).await?;
                seen.site = Some(site);
            }
            (None, Wake::Create) => self.make(&mut seen).await?,
            (None, Wake::Resume) => {}
        }
        self.answer(&seen).await
    }

    /// Brings a site to the target.
    async fn bring(&self, seen: &mut Seen, site: &mut Site) -> Result<()> {
        let target = self.target;
        if site.owner.data != *target.data.id() {
            return Err(self.conflict("data", "a site keeps the data that it was made with"));
        }
        if site.generation > target.generation {
            let message = format!("{}: it is at {} already", target.generation, site.generation);
            return Err(self.conflict("generation", message));
        }
        // It was made with data, however it is called for: without it, it would start blank.
        let Some(share) = &mut seen.share else { return Err(self.data_missing()) };
        if share.owner.incarnation != self.incarnation() {
            return Err(self.conflict("data", "another instance has taken it up"));
        }
        let is_newer = site.generation < target.generation;
        self.keep_share(share, is_newer).await?;
        let lacks_hosts = !site.has_its_host_names();
        if is_newer || !site.is_running {
            // Also what only wakes: secrets that were rotated meanwhile are read at each start.
            self.update(site).await?;
        } else if site.intended != Intended::Running {
            self.intend(site, Intended::Running).await?;
        } else if site.is_running {
            self.help(site).await?;
        }
        if is_newer || lacks_hosts {
            self.bind_hosts(site).await?;
        }
        if !site.is_running {
            self.tell_site(site, "start").await?;
        }
        Ok(())
    }

    /// What a making or a removal that was cut has left undone, and more room where that is wanted.
    async fn keep_share(&self, share: &mut Share, is_newer: bool) -> Result<()> {
        let wanted = if is_newer { render::share_gib(&self.target.spec).max(share.size_gib) } else { share.size_gib };
        let is_plain = share.making.is_none() && share.released.is_none() && share.ending.is_none();
        if is_plain && wanted == share.size_gib {
            return Ok(());
        }
        let _data = self.data_turn().await?;
        self.note(share, |share| {
            (share.making, share.released, share.ending, share.size_gib) = (None, None, None, wanted);
        })
        .await
    }

    /// Writes all of it anew. What sleeps stays asleep by that, and starts with it.
    async fn update(&self, site: &mut Site) -> Result<()> {
        let secrets = self.secrets().await?;
        let key = self.shared.group.storage_key(self.cx).await.map_err(|failure| self.reading(failure))?;
        let (config, word) = (&self.shared.config, word());
        let wanted = render::site(config, &self.cx.control_plane, self.target, &site.plan, &key, &secrets, &word);
        let _turn = self.turn_at(site).await?;
        let changed = self.put_site(&site.name, wanted, &word).await.map_err(|failure| self.writing(failure))?;
        if let Some(changed) = changed {
            *site = changed;
        }
        Ok(())
    }

    /// Has a site say what it is meant to be.
    pub(super) async fn intend(&self, site: &mut Site, intended: Intended) -> Result<()> {
        let (mut tags, word) = (site.tags.clone(), word());
        tags.insert(names::INTENDED.to_owned(), intended.as_str().to_owned());
        tags.insert(names::WRITTEN.to_owned(), word.clone());
        let wanted = render::retagged(&self.shared.config, site, tags);
        let _turn = self.turn_at(site).await?;
        let changed = self.put_site(&site.name, wanted, &word).await.map_err(|failure| self.writing(failure))?;
        match changed {
            Some(changed) => *site = changed,
            None => site.intended = intended,
        }
        Ok(())
    }

    /// A site that runs and does not answer is started anew.
    async fn help(&self, site: &mut Site) -> Result<()> {
        if !self.shared.config.probes {
            return Ok(());
        }
        match self.shared.prober.health(site, self.now()).await {
            Health::Silent(_) => self.tell_site(site, "restart").await,
            Health::Answers | Health::Starting(_) => Ok(()),
        }
    }

    /// Has a site answer to the host names of its spec, and to no others.
    pub(super) async fn bind_hosts(&self, site: &mut Site) -> Result<()> {
        let wanted = &self.target.spec.host_names;
        let missing: Vec<_> =
            wanted.iter().filter(|host| !site.host_names.iter().any(|has| **has == *host.as_str())).collect();
        let is_wanted = |has: &str| wanted.iter().any(|host: &HostName| host.as_str() == has);
        let spare: Vec<_> = site.host_names.iter().filter(|has| !is_wanted(has)).cloned().collect();
        if missing.is_empty() && spare.is_empty() {
            return Ok(());
        }
        let _turn = self.turn_at(site).await?;
        let group = &self.shared.group;
        for host in spare {
            group.unbind_host(self.cx, &site.name, &host).await.map_err(|failure| self.writing(failure))?;
            self.wrote();
            site.host_names.retain(|has| *has != host);
        }
        for host in missing {
            let bound = group.bind_host(self.cx, &site.name, host.as_str()).await;
            bound.map_err(|failure| match (failure.kind, failure.retry) {
                // Another site has it: for good, or until that has been updated too.
                (_, Some(Retry::Anew)) => {
                    let taken = Failure { kind: ErrorKind::Conflict, retry: Some(Retry::Backoff), ..failure };
                    self.writing(taken.about("host_names"))
                }
                // Nothing in its zone says that it is ours.
                (ErrorKind::InvalidSpec | ErrorKind::Conflict, _) => self.writing(failure.about("host_names")),
                _ => self.writing(failure),
            })?;
            self.wrote();
            site.host_names.push(host.as_str().into());
        }
        Ok(())
    }
}
