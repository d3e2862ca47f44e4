//! The small objects: bounds, policies, service, routes, and the environment.

use k8s_openapi::api::core::v1::{ResourceQuota, Secret};
use provisioner_core::Result;
use serde_json::{Value, json};

use super::{OVERTAKEN_MAX, Secrets, Work, resource};
use crate::{
    applied,
    cache::{Kind, Space, version_of},
    client::operation,
    names,
    render::{self, Part},
};

/// What a quota may allow or not: nobody makes any in a home.
const UNCHARGED: &str = "/spec/hard/replicationcontrollers";

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
        let mut seen = space.zip(kind).and_then(|(space, kind)| space.part(kind, &part.name));
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
                    return Ok(());
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

    /// Has the cluster count anew what its quotas charge the making for. It charges for a pod before that is made, and where that
    /// fails it finds out minutes later; but at once where what a quota allows is changed. See
    /// <https://github.com/kubernetes/kubernetes/blob/v1.31.0/pkg/controller/resourcequota/resource_quota_controller.go>.
    pub(super) async fn have_quotas_counted(&self, space: &Space) -> Result<()> {
        let quota = resource::<ResourceQuota>();
        for (_, name) in space.parts(self.incarnation()).filter(|(kind, _)| *kind == Kind::Quota) {
            for patch in [json!([operation("add", UNCHARGED, "0")]), json!([{"op": "remove", "path": UNCHARGED}])] {
                match self.calls.patch(&quota, Some(self.home.namespace()), name, patch).await {
                    Ok(object) => self.note(Kind::Quota, &object),
                    // Somebody else is at it, or has taken it away, which is seen.
                    Err(failure) if failure.is_overtaken() || failure.is_not_found() => {}
                    Err(failure) => return Err(self.calls.writing(failure)),
                }
            }
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
