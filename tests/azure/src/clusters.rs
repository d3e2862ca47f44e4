//! Kubernetes clusters, and what leads to them.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Refusal},
    request::Request,
    stand::{REGION, Stand, locked},
};

impl Stand {
    pub(crate) fn get_cluster(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        self.credentials_of(name)?;
        Ok(Answer::ok(self.show_cluster(name)))
    }

    pub(crate) fn list_clusters(&self, request: &Request) -> Answer {
        let world = locked(&self.world);
        self.page(request, world.clusters.keys().map(|name| self.show_cluster(name)).collect())
    }

    pub(crate) fn list_credentials(&self, request: &Request) -> Result<Answer, Refusal> {
        let credentials = BASE64_STANDARD.encode(self.credentials_of(request.name())?);
        Ok(Answer::ok(json!({ "kubeconfigs": [{ "name": "clusterUser", "value": credentials }] })))
    }

    fn credentials_of(&self, name: &str) -> Result<String, Refusal> {
        let missing =
            || Refusal::no_resource(&format!("Microsoft.ContainerService/managedClusters/{name}"), &self.group);
        locked(&self.world).clusters.get(&name.to_lowercase()).cloned().ok_or_else(missing)
    }

    fn show_cluster(&self, name: &str) -> Value {
        json!({
            "id": self.id("Microsoft.ContainerService/managedClusters", name),
            "name": name,
            "type": "Microsoft.ContainerService/ManagedClusters",
            "location": REGION,
            "properties": {
                "provisioningState": "Succeeded",
                "powerState": { "code": "Running" },
                "kubernetesVersion": "1.33.0",
                "dnsPrefix": name,
                "fqdn": format!("{name}.hcp.{REGION}.azmk8s.io"),
                "enableRBAC": true,
            },
            "sku": { "name": "Base", "tier": "Standard" },
        })
    }
}
