//! RunInstances: once for each client token, with what the real service adds to a machine by itself.

use crate::{
    answer::{Refusal, answer},
    disks,
    machine::{Machine, State},
    query::{Form, is_below},
    stand::{Stand, locked},
    tokens,
    xml::Element,
};

/// How much user data a machine takes.
const USER_DATA_MAX: usize = 16 * 1024;

impl Stand {
    pub(crate) async fn run(&self, form: &Form) -> Result<Element, Refusal> {
        check(form)?;
        let (subnet, zone) = self.place(form)?;
        let Some(token) = form.get("ClientToken") else {
            let id = self.launch(form, &subnet, &zone).await?;
            return self.launched(&id).await;
        };
        // Tokens count in the zone that is asked for; without one, in the region.
        let scope = if subnet_of(form).is_some() { &*zone } else { "" };
        let mut launched = self.tokens.take(token, scope).await;
        let asked = form.clone().sorted();
        let id = match tokens::replayed(&launched, &asked)? {
            Some(id) => id,
            None => {
                let id = self.launch(form, &subnet, &zone).await?;
                *launched = Some((asked, id.clone()));
                id
            }
        };
        self.launched(&id).await
    }

    /// The subnet and its zone. Without one, moto would give no subnet at all.
    fn place(&self, form: &Form) -> Result<(String, String), Refusal> {
        let zone = form.get("Placement.AvailabilityZone");
        match subnet_of(form) {
            Some(id) => {
                let known = self.subnets.iter().find(|(known, _)| known == id);
                let missing =
                    || Refusal::new("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"));
                known.cloned().ok_or_else(missing)
            }
            None => {
                let fits = |(_, known): &&(String, String)| zone.is_none_or(|zone| zone == known);
                let missing = || Refusal::new("InvalidParameterValue", "Invalid availability zone");
                self.subnets.iter().find(fits).cloned().ok_or_else(missing)
            }
        }
    }

    async fn launch(&self, form: &Form, subnet: &str, zone: &str) -> Result<String, Refusal> {
        let kind = form.get("InstanceType").unwrap_or("m1.small");
        let root = self.root_of(form.get("ImageId").unwrap_or_default()).await?;
        self.faults.check_capacity(zone, kind)?;
        // Counting and launching are one step.
        let _one = self.one_by_one.lock().await;
        let _launching = self.launching.write().await;
        self.check_quota(1)?;
        let address = self.new_address()?;
        let reservation = self.moto.call(&completed(form, subnet, &root)).await?;
        let [instance] = reservation.items("instancesSet") else {
            return Err(Refusal::with_status(500, "InternalError", "moto launched another number of machines"));
        };
        let id = instance.at(&["instanceId"]).to_owned();
        self.tag_interfaces(form, instance).await?;
        let mut machine = Machine::new(State::Pending, zone, kind, address);
        machine.doom = locked(&self.doom).take();
        machine.user_data = form.get("UserData").unwrap_or_default().to_owned();
        machine.may_not_stop = form.is_true("DisableApiStop");
        machine.may_not_terminate = form.is_true("DisableApiTermination");
        if machine.may_not_terminate {
            // At a launch, moto reads only that it may not be stopped.
            let form = Form::new("ModifyInstanceAttribute").with("InstanceId", &*id);
            self.moto.call(&form.with("DisableApiTermination.Value", "true")).await?;
        }
        self.lag.remember(&id, None);
        for (volume, is_root) in volumes_of(instance) {
            self.lag.remember(&volume, None);
            if !is_root {
                self.attach(&id, &volume).map_err(|error| Refusal::with_status(500, "InternalError", error))?;
                if let Some(snapshot) = form.get("BlockDeviceMapping.1.Ebs.SnapshotId") {
                    self.copy(&format!("{snapshot}/."), &volume)
                        .map_err(|error| Refusal::with_status(500, "InternalError", error))?;
                }
            }
        }
        locked(&self.machines).insert(id.clone(), machine);
        self.spawn(self.shared().finish(id.clone()));
        Ok(id)
    }

    /// moto tags machines and volumes alone.
    async fn tag_interfaces(&self, form: &Form, instance: &Element) -> Result<(), Refusal> {
        let is_of_them = |at: &usize| {
            form.get(&format!("TagSpecification.{at}.ResourceType")).is_some_and(|kind| kind == "network-interface")
        };
        let Some(at) = form.numbers("TagSpecification").find(is_of_them) else { return Ok(()) };
        let tags = form.below(&format!("TagSpecification.{at}")).only(|name| is_below(name, "Tag"));
        for interface in instance.items("networkInterfaceSet") {
            let id = interface.at(&["networkInterfaceId"]);
            self.moto.call(&Form::new("CreateTags").with("ResourceId.1", id).extended(&tags)).await?;
        }
        Ok(())
    }

    /// The device of the system in an image.
    async fn root_of(&self, image: &str) -> Result<String, Refusal> {
        if let Some(root) = locked(&self.roots).get(image) {
            return Ok(root.clone());
        }
        let images = self.moto.call(&Form::new("DescribeImages").with("ImageId.1", image)).await?;
        let root = images.items("imagesSet").first().map(|image| image.at(&["rootDeviceName"]).to_owned());
        let root = root
            .ok_or_else(|| Refusal::new("InvalidAMIID.NotFound", format!("The image id '[{image}]' does not exist")))?;
        locked(&self.roots).insert(image.to_owned(), root.clone());
        Ok(root)
    }

    /// The answer for a machine that was launched, whenever that was.
    async fn launched(&self, id: &str) -> Result<Element, Refusal> {
        let [reservation] = &*self.reservations(&Form::new("").with("InstanceId.1", id)).await? else {
            return Err(Refusal::no_instance(id));
        };
        let mut answer = answer("RunInstances");
        answer.children.extend(reservation.children.iter().cloned());
        Ok(answer)
    }
}

/// The volumes of an instance, and whether each is that of the system.
pub(crate) fn volumes_of(instance: &Element) -> Vec<(String, bool)> {
    let root = instance.at(&["rootDeviceName"]);
    let mappings = instance.items("blockDeviceMapping").iter();
    let volume = |mapping: &Element| (mapping.at(&["ebs", "volumeId"]).to_owned(), mapping.at(&["deviceName"]) == root);
    mappings.map(volume).collect()
}

fn subnet_of(form: &Form) -> Option<&str> {
    form.get("SubnetId").or_else(|| form.get("NetworkInterface.1.SubnetId"))
}

/// What moto takes and the real service does not.
fn check(form: &Form) -> Result<(), Refusal> {
    let invalid = |message: &str| Err(Refusal::new("InvalidParameterValue", message));
    if form.get("MinCount") != Some("1") || form.get("MaxCount") != Some("1") {
        return invalid("Here machines are launched one by one.");
    }
    if form.get("ClientToken").is_some_and(|token| token.len() > 64 || !token.is_ascii()) {
        return invalid("Client tokens have up to 64 ASCII characters.");
    }
    let user_data = form.get("UserData").unwrap_or_default();
    if user_data.len() / 4 * 3 > USER_DATA_MAX + 2 {
        return invalid("User data is limited to 16384 bytes");
    }
    if !user_data.is_empty() && disks::unpacked(user_data).is_empty() {
        return Err(Refusal::new("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data."));
    }
    check_tags(form, "TagSpecification")
}

/// Tags that only the service itself writes.
pub(crate) fn check_tags(form: &Form, prefix: &str) -> Result<(), Refusal> {
    let keys = form.only(|name| is_below(name, prefix) && name.ends_with(".Key"));
    match keys.values().any(|key| key.starts_with("aws:")) {
        true => {
            Err(Refusal::new("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use"))
        }
        false => Ok(()),
    }
}

/// A request with what moto does not add by itself: the disk of the system, which it gives to no machine with other disks and
/// under another name to the rest, and a network interface that goes with the machine.
fn completed(form: &Form, subnet: &str, root: &str) -> Form {
    let mut completed = form.only(|name| name != "SubnetId" && !is_below(name, "SecurityGroupId"));
    let mut add = |prefix: String, defaults: [(&str, &str); 3]| {
        for (name, value) in defaults {
            let name = format!("{prefix}.{name}");
            if form.get(&name).is_none() {
                completed = completed.clone().with(name, value);
            }
        }
    };
    let mappings = || form.numbers("BlockDeviceMapping");
    let is_root = |at: &usize| form.get(&format!("BlockDeviceMapping.{at}.DeviceName")) == Some(root);
    let at = mappings().find(is_root).unwrap_or_else(|| mappings().last().unwrap_or_default() + 1);
    let disk = [("DeviceName", root), ("Ebs.VolumeSize", "8"), ("Ebs.DeleteOnTermination", "true")];
    add(format!("BlockDeviceMapping.{at}"), disk);
    let interface = [("DeviceIndex", "0"), ("SubnetId", subnet), ("DeleteOnTermination", "true")];
    add("NetworkInterface.1".to_owned(), interface);
    completed.with_list("NetworkInterface.1.SecurityGroupId", form.list("SecurityGroupId"))
}
