//! The home: who uses the data in it, and the labels by which it is found.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::DynamicObject;
use provisioner_core::Result;
use serde_json::{Value, json};

use super::Work;
use crate::{
    applied,
    cache::{HomeDigest, Kind, Space},
    client::{operation, path_of},
    error::Failure,
    home::Home,
    names,
};

impl Work<'_> {
    /// Gives a home its labels back that somebody took away or changed: without them nobody sees that it is there. What
    /// is done next begins with another look.
    pub(super) async fn keep_home(&self, space: Option<&Space>, is_wanted: bool) -> Result<()> {
        let known = space.and_then(|space| space.home.as_ref());
        let is_in_use = space.is_some_and(|space| space.claim.is_some() || space.has_any(self.incarnation()));
        if known.is_some_and(|known| !known.is_foreign || known.is_ending)
            || (known.is_none() && !is_in_use && !is_wanted)
        {
            return Ok(());
        }
        let Some(found) = self.found_home().await? else { return Ok(()) };
        if found.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let has = found.metadata.labels.clone().unwrap_or_default();
        if !self.is_own(&has, &applied::noted_labels(&found.metadata)).await? {
            return Ok(());
        }
        let rendered = self.objects().home;
        let (mut labels, mut annotations) = (has, found.metadata.annotations.unwrap_or_default());
        for (key, value) in rendered.labels.unwrap_or_default() {
            // Who used it last is not for this to say.
            let is_last_user = [names::INSTANCE, names::INCARNATION].contains(&key.as_str());
            if !(is_last_user && labels.contains_key(&key)) {
                labels.insert(key, value);
            }
        }
        annotations.extend(rendered.annotations.unwrap_or_default());
        let patch = json!([
            operation("test", "/metadata/uid", found.metadata.uid.unwrap_or_default()),
            operation("test", "/metadata/resourceVersion", found.metadata.resource_version.unwrap_or_default()),
            operation("add", "/metadata/labels", json!(labels)),
            operation("add", "/metadata/annotations", json!(annotations)),
        ]);
        let done = self.patch_home(patch).await;
        let object = done.map_err(|failure| self.written(failure))?;
        self.note(Kind::Home, &object);
        Err(self.overtaken().with_message(format!("its {} had lost its labels, and has them again", self.home.word())))
    }

    /// Whether a home of our name holds the data of this tenant, by its labels, by what was noted of them, or by its claim.
    async fn is_own(&self, has: &BTreeMap<String, String>, noted: &BTreeMap<String, String>) -> Result<bool> {
        if let Some(is_own) = self.is_tenants(has, noted) {
            return Ok(is_own);
        }
        let claim = self.calls.get::<PersistentVolumeClaim>(Some(self.home.namespace()), self.home.claim()).await;
        let claim = claim.map_err(|failure| self.calls.reading(failure))?;
        Ok(claim.is_some_and(|claim| self.is_own_claim(&claim)))
    }

    fn is_own_claim(&self, claim: &PersistentVolumeClaim) -> bool {
        let has = claim.metadata.labels.clone().unwrap_or_default();
        self.is_tenants(&has, &applied::noted_labels(&claim.metadata)) == Some(true)
    }

    /// Whether labels are those of this data and tenant, as they are or as they were noted. `None`: they do not say.
    fn is_tenants(&self, has: &BTreeMap<String, String>, noted: &BTreeMap<String, String>) -> Option<bool> {
        let (tenant, data) = (self.subject.target.tenant.digest(), self.subject.target.data.id().as_str());
        let is_data = |labels: &BTreeMap<String, String>| labels.get(names::DATA).is_some_and(|found| *found == *data);
        let is_tenant = |labels: &BTreeMap<String, String>| labels.get(names::TENANT).map(|found| *found == tenant);
        if is_data(has) || is_data(noted) { is_tenant(noted).or(is_tenant(has)) } else { None }
    }

    pub(super) async fn make_home(&self) -> Result<()> {
        match self.calls.create(self.home.scope(), &self.home.part(self.objects().home)).await {
            Ok(object) => {
                self.note(Kind::Home, &object);
                self.know_home(object.metadata.uid.as_deref());
                Ok(())
            }
            Err(failure) if failure.is_already_there() => self.expect_own_home().await,
            Err(failure) => Err(self.calls.writing(failure)),
        }
    }

    /// Whether somebody took the home away alone, and the making is still there, or for one that is to be made the data.
    pub(super) fn is_orphaned(&self, space: &Space, make: bool) -> bool {
        let is_left = space.has_any(self.incarnation()) || (make && space.claim.is_some());
        self.home.is_shared() && space.home.is_none() && is_left
    }

    /// Makes a home again that was taken away alone, for whoever has the data. What is done next begins with another look.
    pub(super) async fn make_home_again(&self, left: &Space) -> Result<()> {
        if self.found_home().await?.is_some_and(|found| found.metadata.deletion_timestamp.is_none()) {
            self.expect_own_home().await?;
            return Err(self.overtaken());
        }
        let makings = left.sets.iter().map(|set| set.incarnation).chain(left.pods.iter().map(|pod| pod.incarnation));
        if makings.into_iter().any(|making| making != self.incarnation()) {
            return Err(self
                .overtaken()
                .with_message("what stands for the data is gone, and another making still ends"));
        }
        let claim = self.calls.get::<PersistentVolumeClaim>(Some(self.home.namespace()), self.home.claim()).await;
        match claim.map_err(|failure| self.calls.reading(failure))? {
            None if left.set_of(self.incarnation()).is_some() || self.wants_existing() => {
                return Err(self.data_missing("its claim is not there"));
            }
            None => {}
            // On its way out, or about to be: it belongs to the home that it had.
            Some(claim) if claim.metadata.deletion_timestamp.is_some() || belongs_to(&claim, self.home) => {
                return Err(self.overtaken());
            }
            Some(claim) if !self.is_own_claim(&claim) => return Err(self.conflict("data", "it is another tenant's")),
            Some(_) => {}
        }
        self.make_home().await?;
        Err(self.overtaken().with_message(format!("its {} was gone, and is there again", self.home.word())))
    }

    /// Somebody made it before: this making, by a call that was cut, or another one.
    pub(super) async fn expect_own_home(&self) -> Result<()> {
        let found = self.found_home().await?;
        let found = found.as_ref().and_then(HomeDigest::of);
        match found {
            Some(found) if found.is_ending => Err(self.overtaken()),
            Some(found) if found.incarnation == self.incarnation() && found.released.is_none() => {
                self.know_home(Some(&found.uid));
                // Somebody took away the one that was seen: what is made must belong to this one.
                let is_known = self.home_uid.get().is_some_and(|known| *known == found.uid);
                if is_known { Ok(()) } else { Err(self.overtaken()) }
            }
            Some(_) => Err(self.overtaken()),
            None => {
                let problem = format!("the {} {} is somebody else's", self.home.word(), self.home.name());
                Err(self.conflict("data", problem))
            }
        }
    }

    /// What the cluster has under the home's name.
    pub(super) async fn found_home(&self) -> Result<Option<DynamicObject>> {
        self.calls.home(self.home).await.map_err(|failure| self.calls.reading(failure))
    }

    /// What is made from now on belongs to the home with this uid.
    pub(super) fn know_home(&self, uid: Option<&str>) {
        if let Some(uid) = uid {
            self.home_uid.get_or_init(|| uid.into());
        }
    }

    async fn patch_home(&self, patch: Value) -> Result<DynamicObject, Failure> {
        self.calls.patch(&self.home.resource(), self.home.scope(), self.home.name(), patch).await
    }

    /// Gives data that nobody uses to this making.
    pub(super) async fn take_over(&self, before: &HomeDigest) -> Result<()> {
        let incarnation = path_of("labels", names::INCARNATION);
        let mut patch = vec![
            operation("test", &incarnation, before.incarnation.to_string()),
            operation("replace", &incarnation, self.incarnation().to_string()),
            operation("replace", &path_of("labels", names::INSTANCE), self.subject.target.id.as_str()),
        ];
        if before.released.is_some() {
            patch.push(json!({"op": "remove", "path": path_of("annotations", names::RELEASED)}));
        }
        let done = self.patch_home(Value::Array(patch)).await;
        let object = done.map_err(|failure| self.written(failure))?;
        self.note(Kind::Home, &object);
        Ok(())
    }

    /// Says first that the making is on its way out: what is left half-way is known for that.
    pub(super) async fn release(&self) -> Result<()> {
        let mut patch = vec![operation("test", &path_of("labels", names::INCARNATION), self.incarnation().to_string())];
        let found = self.found_home().await?;
        if found.is_some_and(|found| found.metadata.annotations.is_none()) {
            patch.push(operation("add", "/metadata/annotations", json!({})));
        }
        let released = path_of("annotations", names::RELEASED);
        patch.push(operation("add", &released, self.incarnation().to_string()));
        let done = self.patch_home(Value::Array(patch)).await;
        let object = done.map_err(|failure| self.written(failure))?;
        self.note(Kind::Home, &object);
        Ok(())
    }
}

fn belongs_to(claim: &PersistentVolumeClaim, home: &Home) -> bool {
    claim.metadata.owner_references.iter().flatten().any(|owner| owner.name == home.name())
}
