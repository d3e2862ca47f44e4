//! What each action does: as moto does it, where that is what the real service does.

use crate::{
    answer::{Refusal, done},
    launch::{check_tags, volumes_of},
    machine::State,
    query::Form,
    reads::instance_of,
    stand::{Stand, locked},
    states::Verb,
    xml::Element,
};

impl Stand {
    pub(crate) async fn execute(&self, form: &Form) -> Result<Element, Refusal> {
        self.levels.take(form)?;
        if form.is_true("DryRun") {
            return self.moto.call(form).await;
        }
        if let Some(answer) = self.read(form).await {
            return answer;
        }
        self.check_shown(form)?;
        let ids = form.list("InstanceId");
        match form.action() {
            "RunInstances" => self.run(form).await,
            "StartInstances" => self.change(Verb::Start, &ids).await,
            "StopInstances" => self.change(Verb::Stop, &ids).await,
            "RebootInstances" => self.reboot(form, &ids).await,
            "TerminateInstances" => self.change(Verb::Terminate, &ids).await,
            "ModifyInstanceAttribute" => self.modify(form).await,
            "AttachVolume" => self.attach_volume(form).await,
            "DetachVolume" => self.detach_volume(form).await,
            "CreateVolume" | "CreateSnapshot" => self.create(form).await,
            "DeleteVolume" | "DeleteSnapshot" => self.delete(form).await,
            "ModifyVolume" => self.modify_volume(form).await,
            "CreateTags" | "DeleteTags" => self.write_tags(form).await,
            _ => self.moto.call(form).await,
        }
    }

    /// moto reboots nothing. Here the product starts again, which is what is seen of it from outside.
    async fn reboot(&self, form: &Form, ids: &[String]) -> Result<Element, Refusal> {
        let answer = self.moto.call(form).await?;
        let machines = locked(&self.machines);
        for machine in ids.iter().filter_map(|id| machines.get(id)) {
            if let Some(service) = &machine.service {
                // Where none runs, one is about to start.
                let _ = service.kill();
            }
        }
        Ok(answer)
    }

    async fn modify(&self, form: &Form) -> Result<Element, Refusal> {
        let id = form.get("InstanceId").unwrap_or_default().to_owned();
        self.know(std::slice::from_ref(&id)).await?;
        let attribute = |name: &str| {
            let older = form.get("Attribute").is_some_and(|attribute| attribute.eq_ignore_ascii_case(name));
            form.get(&format!("{name}.Value")).or_else(|| form.get("Value").filter(|_| older)).map(str::to_owned)
        };
        let [kind, user_data, termination, stop] =
            ["InstanceType", "UserData", "DisableApiTermination", "DisableApiStop"].map(attribute);
        if let Some(machine) = locked(&self.machines).get(&id)
            && (kind.is_some() || user_data.is_some())
            && machine.state != State::Stopped
        {
            let message = format!("The instance '{id}' is not in the 'stopped' state.");
            return Err(Refusal::new("IncorrectInstanceState", message));
        }
        self.remember(std::slice::from_ref(&id)).await;
        let asked = match &user_data {
            // It decodes what it is given, and then wants what it has to be encoded.
            Some(user_data) => {
                use base64::{Engine as _, prelude::BASE64_STANDARD};

                let encoded = BASE64_STANDARD.encode(user_data);
                form.only(|name| !matches!(name, "UserData.Value" | "Attribute" | "Value"))
                    .with("UserData.Value", encoded)
            }
            None => form.clone(),
        };
        self.moto.call(&asked).await?;
        if let Some(machine) = locked(&self.machines).get_mut(&id) {
            machine.kind = kind.unwrap_or_else(|| machine.kind.clone());
            machine.user_data = user_data.unwrap_or_else(|| machine.user_data.clone());
            machine.may_not_terminate = termination.map_or(machine.may_not_terminate, |value| value == "true");
            machine.may_not_stop = stop.map_or(machine.may_not_stop, |value| value == "true");
        }
        Ok(done(form.action()))
    }

    /// moto attaches whatever to whatever.
    async fn attach_volume(&self, form: &Form) -> Result<Element, Refusal> {
        let [id, volume_id] = ["InstanceId", "VolumeId"].map(|name| form.get(name).unwrap_or_default().to_owned());
        self.know(std::slice::from_ref(&id)).await?;
        // Looking and attaching are one step.
        let _one = self.one_by_one.lock().await;
        let volume = self.volume(&volume_id).await?;
        if volume.at(&["status"]) != "available" {
            let message = format!("{volume_id} is already attached to an instance");
            return Err(Refusal::new("VolumeInUse", message));
        }
        let (state, zone) = {
            let machines = locked(&self.machines);
            let machine = machines.get(&id).ok_or_else(|| Refusal::no_instance(&id))?;
            (machine.state, machine.zone.clone())
        };
        if !matches!(state, State::Running | State::Stopped) {
            let message = format!("Instance '{id}' is not 'running'.");
            return Err(Refusal::new("IncorrectInstanceState", message));
        }
        if volume.at(&["availabilityZone"]) != zone {
            let message = format!("The volume '{volume_id}' is not in the same availability zone as instance '{id}'");
            return Err(Refusal::new("InvalidVolume.ZoneMismatch", message));
        }
        self.remember(&form.resources()).await;
        let answer = self.moto.call(form).await?;
        self.attach(&id, &volume_id).map_err(failed)?;
        Ok(answer)
    }

    /// moto wants the machine, which the real service knows.
    async fn detach_volume(&self, form: &Form) -> Result<Element, Refusal> {
        let volume_id = form.get("VolumeId").unwrap_or_default();
        let volume = self.volume(volume_id).await?;
        let Some(attachment) = volume.items("attachmentSet").first() else {
            let message = format!("Volume '{volume_id}' is in the 'available' state.");
            return Err(Refusal::new("IncorrectState", message));
        };
        self.remember(&form.resources()).await;
        let asked = match form.get("InstanceId") {
            Some(_) => form.clone(),
            None => form.clone().with("InstanceId", attachment.at(&["instanceId"])),
        };
        let answer = self.moto.call(&asked).await?;
        self.detach(volume_id).map_err(failed)?;
        Ok(answer)
    }

    async fn create(&self, form: &Form) -> Result<Element, Refusal> {
        check_tags(form, "TagSpecification")?;
        let answer = self.moto.call(form).await?;
        let (volume, snapshot) = (answer.at(&["volumeId"]), answer.at(&["snapshotId"]));
        if form.action() == "CreateSnapshot" {
            self.copy(volume, snapshot).map_err(failed)?;
        } else {
            if !snapshot.is_empty() {
                self.copy(snapshot, volume).map_err(failed)?;
            }
            self.lag.remember(volume, None);
        }
        Ok(answer)
    }

    async fn delete(&self, form: &Form) -> Result<Element, Refusal> {
        let answer = self.moto.call(form).await?;
        let id = form.get("VolumeId").or_else(|| form.get("SnapshotId")).unwrap_or_default();
        self.delete_disk(id);
        Ok(answer)
    }

    /// moto makes volumes smaller, too.
    async fn modify_volume(&self, form: &Form) -> Result<Element, Refusal> {
        let volume = self.volume(form.get("VolumeId").unwrap_or_default()).await?;
        let size = |text: &str| text.parse::<u64>().unwrap_or_default();
        let now = size(volume.at(&["size"]));
        if form.get("Size").is_some_and(|wanted| size(wanted) < now) {
            return Err(Refusal::new("InvalidParameterValue", "New size cannot be smaller than existing size"));
        }
        self.remember(&form.resources()).await;
        self.moto.call(form).await
    }

    /// moto writes tags to machines and volumes that there are not.
    async fn write_tags(&self, form: &Form) -> Result<Element, Refusal> {
        check_tags(form, "Tag")?;
        let resources = form.resources();
        let machines: Vec<_> = resources.iter().filter(|id| id.starts_with("i-")).cloned().collect();
        self.know(&machines).await?;
        for id in resources.iter().filter(|id| id.starts_with("vol-")) {
            self.volume(id).await?;
        }
        self.remember(&resources).await;
        self.moto.call(form).await
    }

    /// Deletes a volume that may be attached.
    pub(crate) async fn force_delete(&self, id: &str) -> Result<(), Refusal> {
        let volume = self.volume(id).await?;
        if let Some(attachment) = volume.items("attachmentSet").first() {
            let form = Form::new("DetachVolume").with("VolumeId", id);
            self.moto.call(&form.with("InstanceId", attachment.at(&["instanceId"]))).await?;
        }
        self.detach(id).map_err(failed)?;
        self.moto.call(&Form::new("DeleteVolume").with("VolumeId", id)).await?;
        self.delete_disk(id);
        Ok(())
    }

    /// The instances with a tag, as they are.
    pub(crate) async fn tagged(&self, (key, value): (&str, &str)) -> Result<Vec<Element>, Refusal> {
        let form = Form::new("").with_filter(&format!("tag:{key}"), value);
        let reservations = self.reservations(&form).await?;
        Ok(reservations.iter().map(|reservation| instance_of(reservation).clone()).collect())
    }
}

/// The volumes of an instance, without that of the system.
pub(crate) fn data_volumes(instance: &Element) -> Vec<String> {
    volumes_of(instance).into_iter().filter(|(_, is_root)| !is_root).map(|(id, _)| id).collect()
}

fn failed(error: String) -> Refusal {
    Refusal::with_status(500, "InternalError", error)
}
