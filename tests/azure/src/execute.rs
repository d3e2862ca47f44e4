//! Each operation, and what does it.

use axum::http::{HeaderMap, header};
use serde_json::json;

use crate::{
    answer::{Answer, Refusal},
    operations::VERSIONS,
    request::Request,
    stand::{REGION, Stand},
};

impl Stand {
    /// What holds for every operation alike.
    pub(crate) fn check_caller(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        self.tokens.check(authorization)
    }

    /// The version, the subscription and the group that a request names.
    pub(crate) fn check_place(&self, request: &Request) -> Result<(), Refusal> {
        let provider = crate::operations::provider(&request.path);
        let versions = VERSIONS.iter().find(|(name, _)| *name == provider).map_or(&[][..], |(_, versions)| versions);
        let Some(version) = request.query.get("api-version") else {
            let message = "The api-version query parameter (?api-version=) is required for all requests.";
            return Err(Refusal::new(400, "MissingApiVersionParameter", message));
        };
        if !versions.contains(&&**version) {
            let code = if provider == "microsoft.resources" {
                "InvalidApiVersionParameter"
            } else {
                "NoRegisteredProviderFound"
            };
            let message = format!(
                "No registered resource provider found for location '{REGION}' and API version '{version}' for '{provider}'. The supported api-versions are '{}'.",
                versions.join(", ")
            );
            return Err(Refusal::new(400, code, message));
        }
        let subscription = &request.target.subscription;
        if !subscription.eq_ignore_ascii_case(&self.subscription) {
            let message = format!("The subscription '{subscription}' could not be found.");
            return Err(Refusal::new(404, "SubscriptionNotFound", message));
        }
        match &request.target.group {
            Some(group) if !group.eq_ignore_ascii_case(&self.group) => {
                let message = format!("Resource group '{group}' could not be found.");
                Err(Refusal::new(404, "ResourceGroupNotFound", message))
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn execute(&self, request: &Request) -> Result<Answer, Refusal> {
        if let Some(answer) = self.read(request) {
            return answer;
        }
        match request.operation.id {
            "AppServicePlans_CreateOrUpdate" | "AppServicePlans_Update" => self.write_plan(request).await,
            "AppServicePlans_Delete" => self.delete_plan(request).await,
            "AppServicePlans_RestartWebApps" => self.restart_sites_of_plan(request).await,
            "WebApps_CreateOrUpdate" | "WebApps_Update" => self.write_site(request).await,
            "WebApps_Delete" => self.delete_site(request).await,
            "WebApps_Start" => self.order(request, |site| site.enabled = true).await,
            "WebApps_Stop" => self.order(request, |site| site.enabled = false).await,
            "WebApps_Restart" => self.order(request, |site| site.restarts += 1).await,
            "WebApps_UpdateApplicationSettings" => self.write_settings(request).await,
            "WebApps_CreateOrUpdateConfiguration" | "WebApps_UpdateConfiguration" => {
                self.write_configuration(request).await
            }
            "WebApps_UpdateAzureStorageAccounts" => self.write_mounts(request).await,
            "WebApps_CreateOrUpdateHostNameBinding" => self.write_binding(request).await,
            "WebApps_DeleteHostNameBinding" => self.delete_binding(request).await,
            "Certificates_CreateOrUpdate" => self.write_certificate(request).await,
            "Certificates_Delete" => self.delete_certificate(request).await,
            "FileShares_Create" => self.create_share(request),
            "FileShares_Update" => self.update_share(request),
            "FileShares_Delete" => self.delete_share(request),
            other => Err(Refusal::new(500, "InternalError", format!("The stand does not do {other}."))),
        }
    }

    /// The operations that change nothing.
    fn read(&self, request: &Request) -> Option<Result<Answer, Refusal>> {
        Some(match request.operation.id {
            "Subscriptions_Get" => Ok(Answer::ok(json!({
                "id": format!("/subscriptions/{}", self.subscription),
                "subscriptionId": self.subscription,
                "tenantId": crate::words::TENANT,
                "displayName": "test",
                "state": "Enabled",
            }))),
            "ResourceGroups_Get" => Ok(Answer::ok(json!({
                "id": format!("/subscriptions/{}/resourceGroups/{}", self.subscription, self.group),
                "name": self.group,
                "type": "Microsoft.Resources/resourceGroups",
                "location": REGION,
                "properties": { "provisioningState": "Succeeded" },
            }))),
            "AppServicePlans_List" | "AppServicePlans_ListByResourceGroup" => Ok(self.list_plans(request)),
            "AppServicePlans_Get" => self.get_plan(request),
            "AppServicePlans_ListWebApps" => self.list_sites_of_plan(request),
            "WebApps_List" | "WebApps_ListByResourceGroup" => Ok(self.list_sites(request)),
            "WebApps_Get" => self.get_site(request),
            "WebApps_ListApplicationSettings" => self.list_settings(request),
            "WebApps_GetConfiguration" => self.get_configuration(request),
            "WebApps_ListAzureStorageAccounts" => self.list_mounts(request),
            "WebApps_ListHostNameBindings" => self.list_bindings(request),
            "WebApps_GetHostNameBinding" => self.get_binding(request),
            "WebApps_ListInstanceIdentifiers" => self.list_instances(request),
            "WebApps_GetInstanceInfo" => self.get_instance(request),
            "Certificates_ListByResourceGroup" => Ok(self.list_certificates(request)),
            "Certificates_Get" => self.get_certificate(request),
            "CheckNameAvailability" => self.check_availability(request),
            "Poll" => self.poll(request),
            "ManagedClusters_List" | "ManagedClusters_ListByResourceGroup" => Ok(self.list_clusters(request)),
            "ManagedClusters_Get" => self.get_cluster(request),
            "ManagedClusters_ListClusterUserCredentials" => self.list_credentials(request),
            "FileShares_List" => self.list_shares(request),
            "FileShares_Get" => self.get_share(request),
            "StorageAccounts_ListKeys" => self.list_keys(request),
            "StorageAccounts_GetProperties" => self.get_account(request),
            _ => return None,
        })
    }
}
