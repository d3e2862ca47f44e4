//! Somebody who looks at the account, and interferes with it, without the backend's code.

use std::collections::BTreeMap;

use provisioner_contract::{Ability, Outsider, Refusal, Sight, Told, async_trait};
use provisioner_core::types::{Bound, ControlPlaneId, DataId, Isolation, Target, VariableName};
use serde_json::{Value, json};
use test_ec2::{Ec2, Lasting, Seen, State};

const OWNER: &str = "provisioner:control-plane";
const INCARNATION: &str = "provisioner:incarnation";
const DATA: &str = "provisioner:data";

pub(crate) struct Ec2Outsider {
    pub(crate) stand: Ec2,
}

fn refused((status, code, message): (u16, String, String)) -> String {
    format!("{status} {code}: {message}")
}

impl Ec2Outsider {
    /// The machines of a making that were not ended.
    async fn machines(&self, owner: &ControlPlaneId, target: &Target) -> Told<Vec<Seen>> {
        let machines = self.stand.machines((INCARNATION, &target.incarnation.to_string())).await;
        let own = |machine: &Seen| machine.tags.get(OWNER).is_some_and(|tag| tag == owner.as_str());
        Ok(machines.into_iter().filter(|machine| own(machine) && machine.state != State::Terminated).collect())
    }

    async fn machine(&self, owner: &ControlPlaneId, target: &Target) -> Told<Seen> {
        self.machines(owner, target).await?.into_iter().next().ok_or_else(|| "there is no machine of it".to_owned())
    }

    /// Asks the product for its pages. With a body, makes one of it.
    async fn pages(&self, owner: &ControlPlaneId, target: &Target, new: Option<Value>) -> Told<Value> {
        let machine = self.machine(owner, target).await?;
        let url = format!("http://{}:8080/api/pages", machine.address);
        let client = reqwest::Client::new();
        let request = match new {
            None => client.get(url),
            Some(page) => client.post(url).header("content-type", "application/json").body(page.to_string()),
        };
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("the product answers {status}: {}", String::from_utf8_lossy(&body)));
        }
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Outsider for Ec2Outsider {
    fn abilities(&self) -> &[Ability] {
        use Ability::*;
        &[
            Sight,
            Inventory,
            Notes,
            Ask,
            Environment,
            Name,
            Search,
            Calls,
            Kill,
            Stop,
            Change,
            Delete,
            DeleteData,
            Block,
            Throttle,
            Capacity,
            Rights,
            Hang,
            Unreachable,
            Codes,
            Isolation,
        ]
    }

    async fn sight(&self, owner: &ControlPlaneId, target: &Target) -> Told<Sight> {
        let machines = self.machines(owner, target).await?;
        let awake = machines.iter().filter(|machine| matches!(machine.state, State::Pending | State::Running)).count();
        Ok(Sight { made: machines.len(), awake })
    }

    async fn inventory(&self, owner: &ControlPlaneId) -> Told<Vec<String>> {
        Ok(self.stand.left((OWNER, owner.as_str())).await)
    }

    async fn write_note(&self, owner: &ControlPlaneId, target: &Target, note: &str) -> Told<()> {
        self.pages(owner, target, Some(json!({"title": "note", "text": note}))).await.map(drop)
    }

    async fn read_note(&self, owner: &ControlPlaneId, target: &Target) -> Told<Option<String>> {
        // The one written last comes first.
        let pages = self.pages(owner, target, None).await?;
        Ok(pages[0]["text"].as_str().map(str::to_owned))
    }

    async fn ask(&self, endpoint: &str) -> Told<()> {
        let answer = reqwest::get(format!("{endpoint}/healthz")).await.map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("answers {}", answer.status())) }
    }

    async fn environment(&self, owner: &ControlPlaneId, target: &Target) -> Told<BTreeMap<String, String>> {
        let machine = self.machine(owner, target).await?;
        self.stand.environment(&machine.id)
    }

    async fn name(&self, owner: &ControlPlaneId, target: &Target) -> Told<String> {
        let machine = self.machine(owner, target).await?;
        machine.tags.get("Name").cloned().ok_or_else(|| "the machine has no name".to_owned())
    }

    async fn search(&self, text: &str) -> Told<Vec<String>> {
        Ok(self.stand.search(text).await)
    }

    async fn calls(&self) -> Told<u64> {
        Ok(self.stand.calls())
    }

    async fn kill(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let machine = self.machine(owner, target).await?;
        self.stand.kill_product(&machine.id)
    }

    async fn stop(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let machine = self.machine(owner, target).await?;
        self.stand.stop_behind(&machine.id).await
    }

    async fn change(&self, owner: &ControlPlaneId, target: &Target, name: &VariableName, value: &str) -> Told<()> {
        let machine = self.machine(owner, target).await?;
        self.stand.set_variable(&machine.id, name.as_str(), value).await
    }

    /// It is alone on a machine that has so much and no more.
    async fn isolation(&self, owner: &ControlPlaneId, target: &Target) -> Told<Isolation> {
        let machine = self.machine(owner, target).await?;
        let of_others = |(key, value): (&String, &String)| key == OWNER && value != owner.as_str();
        let (memory, cpus) = self.stand.has(&machine.kind).await?;
        let bound = |most: u64| if most > 0 { Bound::Instance } else { Bound::None };
        Ok(Isolation {
            users: !machine.tags.iter().any(of_others),
            memory: bound(memory),
            cpu: bound(cpus),
            processes: Bound::None,
        })
    }

    async fn delete(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let machine = self.machine(owner, target).await?;
        self.stand.terminate_behind(&machine.id).await
    }

    async fn delete_data(&self, owner: &ControlPlaneId, data: &DataId) -> Told<()> {
        let by_tag = [
            ("Filter.1.Name", format!("tag:{DATA}")),
            ("Filter.1.Value.1", data.to_string()),
            ("Filter.2.Name", format!("tag:{OWNER}")),
            ("Filter.2.Value.1", owner.to_string()),
        ];
        let by_tag = by_tag.each_ref().map(|(name, value)| (*name, value.as_str()));
        let found = self.stand.call("DescribeVolumes", &by_tag).await.map_err(refused)?;
        let mut volumes: Vec<_> = found.split("<volumeId>").skip(1).filter_map(|rest| rest.split('<').next()).collect();
        volumes.sort_unstable();
        volumes.dedup();
        for volume in volumes {
            self.stand.delete_volume_behind(volume).await?;
        }
        Ok(())
    }

    async fn block(&self, owner: &ControlPlaneId, target: &Target, blocked: bool) -> Told<()> {
        let machine = self.machine(owner, target).await?;
        self.stand.protect(&machine.id, blocked)
    }

    async fn refuse(&self, refusal: Option<Refusal>) -> Told<()> {
        self.stand.befall(refusal.map(|refusal| match refusal {
            Refusal::Throttled { .. } => Lasting::Throttled,
            Refusal::Capacity => Lasting::Capacity,
            Refusal::Rights => Lasting::Rights,
            Refusal::Hang => Lasting::Hang,
            Refusal::Unreachable => Lasting::Unreachable,
        }));
        Ok(())
    }
}
