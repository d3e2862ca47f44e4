//! What is seen of a making, and what follows from it. Pure.

use std::time::Duration;

use provisioner_core::types::{Generation, Incarnation, Observed, Phase, Present, Reason};

use crate::digest::{Intended, Share, Site};

/// What is there of one making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) site: Option<Site>,
    pub(crate) share: Option<Share>,
    /// Whether the share was asked for: where there is a site, reads do without it.
    pub(crate) share_was_read: bool,
}

/// How a site that runs does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Answers,
    /// It has time left.
    Starting(Reason),
    /// It does not answer, and has had its time.
    Silent(Reason),
}

impl Seen {
    /// A site that runs, so that its health counts.
    pub(crate) fn to_check(&self) -> Option<&Site> {
        self.site.as_ref().filter(|site| site.is_running)
    }

    /// What is seen of the making. `health` is that of [`to_check`](Self::to_check), `again` when what moves is looked at.
    pub(crate) fn observed(&self, incarnation: Incarnation, health: Option<Health>, again: Duration) -> Observed {
        let Some(site) = &self.site else { return self.without_site(incarnation, again) };
        let present = |phase| Present::new(phase, generation(site), incarnation);
        let present = match (site.is_running, site.intended, health) {
            (false, Intended::Zero, _) => present(Phase::Zero),
            (false, Intended::Suspended, _) => present(Phase::Suspended),
            (false, Intended::Running, _) => present(Phase::Failed).with_reason(stopped(site)),
            // Also one that was to sleep and is not stopped yet: nothing but another call stops it.
            (true, _, Some(Health::Answers)) => match &site.host {
                Some(host) => present(Phase::Running).with_endpoint(format!("https://{host}")),
                None => present(Phase::Provisioning).look_again(again),
            },
            (true, _, Some(Health::Starting(why))) => present(Phase::Provisioning).with_reason(why).look_again(again),
            (true, _, Some(Health::Silent(why))) => present(Phase::Failed).with_reason(why),
            (true, _, None) => present(Phase::Provisioning).look_again(again),
        };
        present.into()
    }

    fn without_site(&self, incarnation: Incarnation, again: Duration) -> Observed {
        let Some(share) = self.share.as_ref().filter(|share| share.owner.incarnation == incarnation) else {
            return Observed::Absent;
        };
        let present = |phase| Present::new(phase, Generation(0), incarnation).look_again(again);
        if share.ending == Some(incarnation) {
            let reason = Reason::new("share-left", format!("its share {} is to go yet", share.name));
            return present(Phase::Destroying).with_reason(reason).into();
        }
        if share.making == Some(incarnation) {
            return present(Phase::Provisioning).into();
        }
        Observed::Absent
    }
}

/// What is half done is of no generation: whoever called for it calls again.
fn generation(site: &Site) -> Generation {
    if site.host_names.len() < site.host_names_wanted { Generation(0) } else { site.generation }
}

fn stopped(site: &Site) -> Reason {
    match site.is_over_quota {
        true => Reason::new("quota-exceeded", "the service has stopped it, as it is over a quota of its plan"),
        false => Reason::new("stopped", "somebody has stopped its site"),
    }
}
