//! What an outsider sees and does, behind the back of whoever uses the API.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::{
    actions::data_volumes,
    answer::Refusal,
    disks,
    machine::{Machine, State},
    query::Form,
    reads::instance_of,
    service::Service,
    stand::{Ec2, locked},
    states::Verb,
    xml::Element,
};

/// A machine, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: State,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Where it listens, as long as it is not terminated.
    pub address: IpAddr,
    /// Its type.
    pub kind: String,
    /// Its zone.
    pub zone: String,
    /// The volumes that are attached, without that of the system.
    pub volumes: Vec<String>,
}

impl Ec2 {
    /// Sends a request straight to the bare server. Nobody counts it.
    ///
    /// # Errors
    /// The status, the code and the message of a refusal.
    pub async fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<String, (u16, String, String)> {
        let form = parameters.iter().fold(Form::new(action), |form, (name, value)| form.with(*name, *value));
        let answer = self.stand().moto.call(&form).await;
        answer.map(|element| element.to_string()).map_err(|refusal| (refusal.status, refusal.code, refusal.message))
    }

    /// Finds an image that there is.
    ///
    /// # Panics
    /// When there is none.
    pub async fn image(&self) -> String {
        self.stand().image.get_or_init(|| self.find_image()).await.clone()
    }

    async fn find_image(&self) -> String {
        let form = Form::new("DescribeImages").with_filter("name", "amzn-ami-hvm-*");
        let images = self.stand().moto.call(&form).await.expect("images are listed");
        let is_plain =
            |image: &&Element| image.at(&["architecture"]) == "x86_64" && image.at(&["rootDeviceType"]) == "ebs";
        let image = images.items("imagesSet").iter().find(is_plain).expect("an image for a plain machine");
        image.at(&["imageId"]).to_owned()
    }

    /// Lists the machines with a tag, terminated ones too.
    ///
    /// # Panics
    /// When they cannot be listed.
    pub async fn machines(&self, tag: (&str, &str)) -> Vec<Seen> {
        let instances = self.stand().tagged(tag).await.expect("machines are listed");
        let machines = locked(&self.stand().machines);
        let seen = |instance: &Element| {
            let id = instance.at(&["instanceId"]);
            let tags = instance.items("tagSet").iter();
            let tags = tags.map(|tag| (tag.at(&["key"]).to_owned(), tag.at(&["value"]).to_owned()));
            Seen {
                id: id.to_owned(),
                state: State::read(instance.at(&["instanceState", "name"])).unwrap_or(State::Terminated),
                tags: tags.collect(),
                address: machines.get(id).map_or(Ipv4Addr::UNSPECIFIED, |machine| machine.address).into(),
                kind: instance.at(&["instanceType"]).to_owned(),
                zone: instance.at(&["placement", "availabilityZone"]).to_owned(),
                volumes: data_volumes(instance),
            }
        };
        instances.iter().map(seen).collect()
    }

    /// Reads the environment of the product of a running machine.
    ///
    /// # Errors
    /// When no product runs there.
    pub fn environment(&self, id: &str) -> Result<BTreeMap<String, String>, String> {
        let pid = self.service(id)?.product().ok_or_else(|| format!("{id}: no product runs"))?;
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
            let bytes = fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
            Ok::<_, String>(String::from_utf8_lossy(&bytes).into_owned())
        };
        // Before it becomes the product it has not read its environment.
        let ours = ["/user-data\0", "/etc/provisioner/start\0"];
        if ours.iter().any(|script| read("cmdline").is_ok_and(|line| line.ends_with(script))) {
            return Err(format!("{id}: the product is about to start"));
        }
        let environment = read("environ")?;
        let pairs = environment.split('\0').filter_map(|pair| pair.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Tells what a machine said while it booted, and its product since.
    #[must_use]
    pub fn console(&self, id: &str) -> String {
        self.stand().console(id)
    }

    /// Sets a variable that the product of a machine is started with, in its user data and on its disk, as somebody does at the
    /// console and on the machine. One that runs is started again.
    ///
    /// # Errors
    /// When there is no such machine, or it starts nothing.
    pub async fn set_variable(&self, id: &str, name: &str, value: &str) -> Result<(), String> {
        let user_data = locked(&self.stand().machines).get(id).map(|machine| machine.user_data.clone());
        let user_data = user_data.ok_or_else(|| format!("{id}: no such machine"))?;
        let before = String::from_utf8(disks::unpacked(&user_data)).map_err(|error| error.to_string())?;
        let line = format!("export {name}='{value}'\n");
        let (head, tail) = before.split_once("export PORT=").ok_or("the user data starts no product")?;
        let encoded = BASE64_STANDARD.encode(format!("{head}{line}export PORT={tail}"));
        let form = Form::new("ModifyInstanceAttribute").with("InstanceId", id);
        // It decodes what it is given, and then wants what it has to be encoded.
        let form = form.with("UserData.Value", BASE64_STANDARD.encode(&encoded));
        self.stand().moto.call(&form).await.map_err(words)?;
        self.with(id, |machine| machine.user_data = encoded)?;
        let file = disks::machine(&self.stand().folder, id).join("root/etc/provisioner/environment");
        let environment = fs::read_to_string(&file).map_err(|error| format!("{id}: {error}"))?;
        fs::write(&file, environment + &line).map_err(|error| format!("{id}: {error}"))?;
        // Where none runs, it is started with that later.
        let _ = self.service(id).and_then(|service| service.kill());
        Ok(())
    }

    /// Tells the memory that a type of machine has, in mebibytes, and its processors.
    ///
    /// # Errors
    /// When there is no such type.
    pub async fn has(&self, kind: &str) -> Result<(u64, u64), String> {
        let form = Form::new("DescribeInstanceTypes").with("InstanceType.1", kind);
        let answer = self.stand().moto.call(&form).await.map_err(words)?;
        let kind = answer.items("instanceTypeSet").first().ok_or_else(|| format!("there is no type {kind}"))?;
        let number = |path: &[&str]| kind.at(path).parse().map_err(|_| format!("{path:?} is no number"));
        Ok((number(&["memoryInfo", "sizeInMiB"])?, number(&["vCpuInfo", "defaultVCpus"])?))
    }

    /// Kills the product of a machine. It is started again after a moment.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill_product(&self, id: &str) -> Result<(), String> {
        self.service(id)?.kill()
    }

    /// Stops a machine.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn stop_behind(&self, id: &str) -> Result<(), String> {
        self.stand().change(Verb::Stop, &[id.to_owned()]).await.map(drop).map_err(words)
    }

    /// Starts a machine.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn start_behind(&self, id: &str) -> Result<(), String> {
        self.stand().change(Verb::Start, &[id.to_owned()]).await.map(drop).map_err(words)
    }

    /// Terminates a machine.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn terminate_behind(&self, id: &str) -> Result<(), String> {
        self.stand().change(Verb::Terminate, &[id.to_owned()]).await.map(drop).map_err(words)
    }

    /// Detaches a volume by force, and deletes it.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn delete_volume_behind(&self, id: &str) -> Result<(), String> {
        self.stand().force_delete(id).await.map_err(words)
    }

    /// Protects a machine from being terminated, or lets it go.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn protect(&self, id: &str, is_protected: bool) -> Result<(), String> {
        self.with(id, |machine| machine.may_not_terminate = is_protected)
    }

    /// Has the status checks of a machine fail, or pass again.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn impair(&self, id: &str, is_impaired: bool) -> Result<(), String> {
        self.with(id, |machine| machine.impaired_since = is_impaired.then(|| jiff::Timestamp::now().to_string()))
    }

    /// Announces that the hardware of a machine retires, at a time such as `2099-01-01T00:00:00.000Z`.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn retire(&self, id: &str, at: &str) -> Result<(), String> {
        self.with(id, |machine| machine.retires_at = Some(at.to_owned()))
    }

    /// Has the next machine that is launched end instead of coming up, with this reason.
    pub fn doom(&self, code: &str, message: &str) {
        *locked(&self.stand().doom) = Some((code.to_owned(), message.to_owned()));
    }

    /// Sets what machines get for a reference to a secret. Schemes are `secretsmanager` and `ssm`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn set_secret(&self, scheme: &str, path: &str, value: &str) {
        self.stand().set_secret(scheme, path, value).expect("a secret is written");
    }

    /// Lists where a text occurs in what is kept of machines, volumes, snapshots and tags, in words.
    ///
    /// # Panics
    /// When that cannot be read.
    pub async fn search(&self, text: &str) -> Vec<String> {
        let stand = self.stand();
        let mut found = Vec::new();
        for reservation in stand.reservations(&Form::new("")).await.expect("machines are listed") {
            let instance = instance_of(&reservation);
            let id = instance.at(&["instanceId"]);
            if instance.mentions(text) {
                found.push(format!("machine {id}"));
            }
            let form = Form::new("DescribeInstanceAttribute").with("InstanceId", id).with("Attribute", "userData");
            let user_data = stand.moto.call(&form).await.expect("user data is read");
            let user_data = disks::unpacked(user_data.at(&["userData", "value"]));
            if String::from_utf8_lossy(&user_data).contains(text) {
                found.push(format!("the user data of machine {id}"));
            }
            if stand.console(id).contains(text) {
                found.push(format!("the console log of machine {id}"));
            }
        }
        for (action, list, id, name) in [
            ("DescribeVolumes", "volumeSet", "volumeId", "volume"),
            ("DescribeSnapshots", "snapshotSet", "snapshotId", "snapshot"),
            ("DescribeTags", "tagSet", "resourceId", "a tag of"),
        ] {
            let answer = stand.moto.call(&Form::new(action)).await.expect("all is listed");
            let items = answer.items(list).iter().filter(|item| item.mentions(text));
            found.extend(items.map(|item| format!("{name} {}", item.at(&[id]))));
        }
        found
    }

    /// Lists what is left with a tag, in words: machines that are not terminated, volumes, snapshots, addresses, and
    /// network interfaces.
    ///
    /// # Panics
    /// When that cannot be read.
    pub async fn left(&self, tag: (&str, &str)) -> Vec<String> {
        let machines = self.machines(tag).await.into_iter();
        let machines = machines.filter(|machine| machine.state != State::Terminated);
        let mut left: Vec<_> = machines.map(|machine| format!("machine {} ({})", machine.id, machine.state)).collect();
        for (action, list, id, name) in [
            ("DescribeVolumes", "volumeSet", "volumeId", "volume"),
            ("DescribeSnapshots", "snapshotSet", "snapshotId", "snapshot"),
            ("DescribeAddresses", "addressesSet", "allocationId", "address"),
            ("DescribeNetworkInterfaces", "networkInterfaceSet", "networkInterfaceId", "network interface"),
        ] {
            let form = Form::new(action).with_filter(&format!("tag:{}", tag.0), tag.1);
            let answer = self.stand().moto.call(&form).await.expect("all is listed");
            left.extend(answer.items(list).iter().map(|item| format!("{name} {}", item.at(&[id]))));
        }
        left
    }

    fn service(&self, id: &str) -> Result<Arc<Service>, String> {
        let machines = locked(&self.stand().machines);
        let machine = machines.get(id).ok_or_else(|| format!("{id}: no such machine"))?;
        machine.service.clone().ok_or_else(|| format!("{id}: it has not booted"))
    }

    fn with(&self, id: &str, change: impl FnOnce(&mut Machine)) -> Result<(), String> {
        locked(&self.stand().machines).get_mut(id).map(change).ok_or_else(|| format!("{id}: no such machine"))
    }
}

fn words(refusal: Refusal) -> String {
    format!("{}: {}", refusal.code, refusal.message)
}
