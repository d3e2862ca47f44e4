//! The small objects: bounds, policies, service, routes, and the environment.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ResourceQuota, Secret};
use provisioner_core::{Result, types::Generation};
use serde_json::Value;
use tokio::time::Instant;

use super::{OVERTAKEN_MAX, Secrets, Work};
use crate::{
    applied,
    cache::{Kind, Space, version_of},
    names,
    render::{self, Part},
};

/// What a quota may limit or not, as nobody makes any.
const UNCHARGED: &str = "replicationcontrollers";
/// How long a cluster may take to count for a quota that was changed, and how often it is asked meanwhile.
const COUNTED_WITHIN: Duration = Duration::from_secs(2);
const COUNTED_LOOK: Duration = Duration::from_millis(100);

impl Work<'_> {
    pub(super) async fn apply_all(&self, parts: &[Part], space: Option<&Space>) -> Result<()> {
        for part in parts {
            self.apply_part(part, space).await?;
        }
        Ok(())
    }

    /// Applies what is there only as what was seen of it, and unless that is newer: a call that comes late must not change
    /// what a newer one has made meanwhile.
    pub(super) async fn apply_part(&self, part: &Part, space: Option<&Space>) -> Result<()> {
        let kind = Kind::of(&part.resource);
        let seen = space.zip(kind).and_then(|(space, kind)| space.part(kind, &part.name));
        self.apply_as_seen(part, seen).await.map(drop)
    }

    /// The same with what was seen: its generation and version. Gives the version that it has now.
    async fn apply_as_seen(&self, part: &Part, mut seen: Option<(Generation, u64)>) -> Result<u64> {
        let kind = Kind::of(&part.resource);
        for _ in 0..OVERTAKEN_MAX {
            let mut body = part.body.clone();
            if let Some((generation, version)) = seen {
                self.check_overtaken(generation)?;
                body["metadata"]["resourceVersion"] = Value::String(version.to_string());
            }
            match self.calls.apply(&part.resource, Some(self.home.namespace()), &part.name, &body).await {
                Ok(object) => {
                    if let Some(kind) = kind {
                        self.note(kind, &object);
                    }
                    return Ok(version_of(&object.metadata));
                }
                Err(failure) if failure.is_overtaken() || (seen.is_some() && failure.is_not_found()) => {}
                Err(failure) => return Err(self.calls.writing(failure)),
            }
            let found = self.calls.find(&part.resource, Some(self.home.namespace()), &part.name).await;
            let found = found.map_err(|failure| self.calls.reading(failure))?;
            seen = found.map(|found| (applied::generation(&found.metadata), version_of(&found.metadata)));
        }
        Err(self.overtaken())
    }

    /// Has the cluster count anew what the quotas of the making are charged for. It charges for a pod before that is made, and where
    /// that fails it finds out minutes later; but at once where what a quota allows is changed. See
    /// <https://github.com/kubernetes/kubernetes/blob/v1.31.0/pkg/controller/resourcequota/resource_quota_controller.go>.
    pub(super) async fn have_quotas_counted(&self, space: &Space) -> Result<()> {
        let objects = self.objects();
        for quota in objects.before.iter().filter(|part| Kind::of(&part.resource) == Some(Kind::Quota)) {
            let hard = &quota.body["spec"]["hard"];
            // What a layout limits by itself stays as it is.
            if !hard.is_object() || hard.get(UNCHARGED).is_some() {
                continue;
            }
            let mut changed = quota.clone();
            changed.body["spec"]["hard"][UNCHARGED] = "0".into();
            let version = self.apply_as_seen(&changed, space.part(Kind::Quota, &quota.name)).await?;
            self.until_counted(quota).await?;
            // Also if this is not reached: whoever applies it next takes away what only the other one says.
            self.apply_as_seen(quota, Some((self.subject.target.generation, version))).await?;
        }
        Ok(())
    }

    /// Waits until what a changed quota allows is what was counted for. What is tried before that is refused again.
    async fn until_counted(&self, quota: &Part) -> Result<()> {
        let deadline = Instant::now() + COUNTED_WITHIN;
        while Instant::now() < deadline {
            let found = self.calls.get::<ResourceQuota>(Some(self.home.namespace()), &quota.name).await;
            let found = found.map_err(|failure| self.calls.reading(failure))?;
            let counted = found.and_then(|found| found.status?.hard);
            if counted.is_some_and(|counted| counted.contains_key(UNCHARGED)) {
                break;
            }
            tokio::time::sleep(COUNTED_LOOK).await;
        }
        Ok(())
    }

    /// Takes away what may be there of routes, but for these.
    pub(super) async fn drop_routes_but(&self, kept: &[Part]) -> Result<()> {
        for (resource, name) in self.layout.routes(self.subject.control_plane, self.subject.target) {
            if kept.iter().any(|part| part.resource == resource && part.name == name) {
                continue;
            }
            let done = self.calls.delete(&resource, Some(self.home.namespace()), &name, None).await;
            done.map_err(|failure| self.calls.writing(failure))?;
        }
        Ok(())
    }

    pub(super) async fn apply_environment(&self, secrets: &Secrets) -> Result<()> {
        let mut secret = Part::of(&render::environment(&self.subject, secrets));
        self.attach(&mut secret);
        let done = self.calls.apply(&secret.resource, Some(self.home.namespace()), &secret.name, &secret.body).await;
        done.map(drop).map_err(|failure| self.calls.writing(failure))
    }

    /// Removes what is left of other makings of the data. Only for who is known to have the home.
    pub(super) async fn drop_others(&self, space: &Space) -> Result<()> {
        for other in space.makings().into_iter().filter(|making| *making != self.incarnation()) {
            for (resource, name) in space.parts_of(other) {
                let done = self.calls.delete(&resource, Some(self.home.namespace()), name, None).await;
                done.map_err(|failure| self.calls.writing(failure))?;
            }
        }
        let (owner, data, incarnation) =
            (self.subject.control_plane, self.subject.target.data.id(), self.incarnation());
        let labels =
            format!("{}={owner},{}={data},{}!={incarnation}", names::CONTROL_PLANE, names::DATA, names::INCARNATION);
        let done = self.calls.delete_all::<Secret>(self.home.namespace(), &labels).await;
        done.map_err(|failure| self.calls.writing(failure))
    }

    /// What selects the objects of the making.
    pub(super) fn of_making(&self) -> String {
        let (owner, making) = (self.subject.control_plane, self.incarnation());
        format!("{}={owner},{}={making}", names::CONTROL_PLANE, names::INCARNATION)
    }

    /// Removes the environments of other generations, also those that a call before did not come to.
    pub(super) async fn drop_environments(&self) -> Result<()> {
        let generation = self.subject.target.generation.0;
        let generations = names::GENERATION;
        // Of the secrets of a making, environments alone have a generation.
        let labels = format!("{},{generations},{generations}!={generation}", self.of_making());
        let done = self.calls.delete_all::<Secret>(self.home.namespace(), &labels).await;
        done.map_err(|failure| self.calls.writing(failure))
    }
}
