//! Somebody who looks at the resource group, and interferes with it, without the backend's code.

use std::collections::BTreeMap;

use provisioner_contract::{Ability, Outsider, Refusal, Sight, Told, async_trait};
use provisioner_core::types::{ControlPlaneId, DataId, Target, VariableName};
use serde_json::{Value, json};
use test_azure::{Azure, Client, Lasting, Seen};

use crate::{LAG, stand::ask};

const OWNER: &str = "provisioner-control-plane";
const INCARNATION: &str = "provisioner-incarnation";

pub(crate) struct AzureOutsider {
    pub(crate) stand: Azure,
    pub(crate) client: Client,
}

impl AzureOutsider {
    async fn sites(&self, owner: &ControlPlaneId, target: &Target) -> Vec<Seen> {
        let sites = self.stand.sites((INCARNATION, &target.incarnation.to_string())).await;
        sites.into_iter().filter(|site| site.tags.get(OWNER).is_some_and(|tag| tag == owner.as_str())).collect()
    }

    async fn site(&self, owner: &ControlPlaneId, target: &Target) -> Told<Seen> {
        self.sites(owner, target).await.into_iter().next().ok_or_else(|| "there is no site of it".to_owned())
    }

    /// Asks the product for its pages. With a body, makes one of it.
    async fn pages(&self, owner: &ControlPlaneId, target: &Target, new: Option<Value>) -> Told<Value> {
        let site = self.site(owner, target).await?;
        let url = format!("https://{}/api/pages", site.address);
        let answer = ask(&self.client, &url, new.map(|page| page.to_string())).await?;
        serde_json::from_slice(&answer).map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Outsider for AzureOutsider {
    fn abilities(&self) -> &[Ability] {
        use Ability::*;
        &[
            Sight,
            Inventory,
            Notes,
            Ask,
            Environment,
            Secrets,
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
        ]
    }

    async fn sight(&self, owner: &ControlPlaneId, target: &Target) -> Told<Sight> {
        let sites = self.sites(owner, target).await;
        let awake = sites.iter().filter(|site| site.state == "Running").count();
        Ok(Sight { made: sites.len(), awake })
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
        ask(&self.client, &format!("{endpoint}/healthz"), None).await.map(drop)
    }

    async fn environment(&self, owner: &ControlPlaneId, target: &Target) -> Told<BTreeMap<String, String>> {
        let site = self.site(owner, target).await?;
        self.stand.environment(&site.name)
    }

    async fn name(&self, owner: &ControlPlaneId, target: &Target) -> Told<String> {
        Ok(self.site(owner, target).await?.name)
    }

    async fn search(&self, text: &str) -> Told<Vec<String>> {
        Ok(self.stand.search(text).await)
    }

    async fn calls(&self) -> Told<u64> {
        Ok(self.stand.calls())
    }

    async fn kill(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let site = self.site(owner, target).await?;
        self.stand.kill_product(&site.name)
    }

    async fn stop(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let site = self.site(owner, target).await?;
        self.stand.stop_behind(&site.name)
    }

    async fn change(&self, owner: &ControlPlaneId, target: &Target, name: &VariableName, value: &str) -> Told<()> {
        let site = self.site(owner, target).await?;
        self.stand.set_setting_behind(&site.name, name.as_str(), value)
    }

    async fn delete(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let site = self.site(owner, target).await?;
        self.stand.delete_site_behind(&site.name)
    }

    async fn delete_data(&self, owner: &ControlPlaneId, data: &DataId) -> Told<()> {
        let with_data = self.stand.shares(("provisioner_data", data.as_str())).await;
        for (name, metadata) in with_data {
            if metadata.get("provisioner_control_plane").is_some_and(|found| found == owner.as_str()) {
                self.stand.delete_share_behind(&name)?;
            }
        }
        // It is done when everybody is shown that.
        tokio::time::sleep(2 * LAG).await;
        Ok(())
    }

    async fn block(&self, owner: &ControlPlaneId, target: &Target, blocked: bool) -> Told<()> {
        let site = self.site(owner, target).await?;
        self.stand.lock(&site.name, blocked);
        Ok(())
    }

    async fn refuse(&self, refusal: Option<Refusal>) -> Told<()> {
        self.stand.befall(refusal.map(|refusal| match refusal {
            Refusal::Throttled { after } => Lasting::Throttled { after },
            Refusal::Capacity => Lasting::Capacity,
            Refusal::Rights => Lasting::Rights,
            Refusal::Hang => Lasting::Hang,
            Refusal::Unreachable => Lasting::Unreachable,
        }));
        Ok(())
    }
}
