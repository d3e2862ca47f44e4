//! Which operation a request is: by its method and its path.

use axum::http::Method;

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    /// As the contract names it.
    pub(crate) id: &'static str,
    method: &'static str,
    /// Its path, below the subscription where it begins with no slash. A `{}` stands for a name.
    path: &'static str,
    /// The right that it takes, as custom roles name it; empty, where it takes none.
    pub(crate) action: &'static str,
}

/// The versions that a provider answers for.
pub(crate) const VERSIONS: [(&str, &[&str]); 4] = [
    ("microsoft.web", &["2024-04-01", "2023-12-01", "2022-03-01"]),
    ("microsoft.containerservice", &["2024-09-01", "2024-05-01"]),
    ("microsoft.storage", &["2023-05-01"]),
    ("microsoft.resources", &["2021-04-01"]),
];

const fn operation(id: &'static str, method: &'static str, path: &'static str, action: &'static str) -> Operation {
    Operation { id, method, path, action }
}

macro_rules! web {
    ($path:literal) => {
        concat!("resourcegroups/{group}/providers/microsoft.web/", $path)
    };
}

macro_rules! storage {
    ($path:literal) => {
        concat!("resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{}/", $path)
    };
}

const SHARES: &str = storage!("fileservices/default/shares");
const SHARE: &str = storage!("fileservices/default/shares/{}");
const PLAN: &str = web!("serverfarms/{}");
const SITE: &str = web!("sites/{}");
const SETTINGS: &str = web!("sites/{}/config/appsettings");
const CONFIGURATION: &str = web!("sites/{}/config/web");
const MOUNTS: &str = web!("sites/{}/config/azurestorageaccounts");
const BINDINGS: &str = web!("sites/{}/hostnamebindings");
const BINDING: &str = web!("sites/{}/hostnamebindings/{}");
const CERTIFICATE: &str = web!("certificates/{}");
const CLUSTERS: &str = "resourcegroups/{group}/providers/microsoft.containerservice/managedclusters";
const CLUSTER: &str = "resourcegroups/{group}/providers/microsoft.containerservice/managedclusters/{}";

const OPERATIONS: [Operation; 50] = [
    operation("Subscriptions_Get", "GET", "", "Microsoft.Resources/subscriptions/read"),
    operation(
        "ResourceGroups_Get",
        "GET",
        "resourcegroups/{group}",
        "Microsoft.Resources/subscriptions/resourceGroups/read",
    ),
    operation("AppServicePlans_List", "GET", "providers/microsoft.web/serverfarms", "Microsoft.Web/serverfarms/read"),
    operation("AppServicePlans_ListByResourceGroup", "GET", web!("serverfarms"), "Microsoft.Web/serverfarms/read"),
    operation("AppServicePlans_Get", "GET", PLAN, "Microsoft.Web/serverfarms/read"),
    operation("AppServicePlans_CreateOrUpdate", "PUT", PLAN, "Microsoft.Web/serverfarms/write"),
    operation("AppServicePlans_Update", "PATCH", PLAN, "Microsoft.Web/serverfarms/write"),
    operation("AppServicePlans_Delete", "DELETE", PLAN, "Microsoft.Web/serverfarms/delete"),
    operation(
        "AppServicePlans_ListWebApps",
        "GET",
        web!("serverfarms/{}/sites"),
        "Microsoft.Web/serverfarms/sites/read",
    ),
    operation("WebApps_List", "GET", "providers/microsoft.web/sites", "Microsoft.Web/sites/read"),
    operation("WebApps_ListByResourceGroup", "GET", web!("sites"), "Microsoft.Web/sites/read"),
    operation("WebApps_Get", "GET", SITE, "Microsoft.Web/sites/read"),
    operation("WebApps_CreateOrUpdate", "PUT", SITE, "Microsoft.Web/sites/write"),
    operation("WebApps_Update", "PATCH", SITE, "Microsoft.Web/sites/write"),
    operation("WebApps_Delete", "DELETE", SITE, "Microsoft.Web/sites/delete"),
    operation("WebApps_Start", "POST", web!("sites/{}/start"), "Microsoft.Web/sites/start/action"),
    operation("WebApps_Stop", "POST", web!("sites/{}/stop"), "Microsoft.Web/sites/stop/action"),
    operation("WebApps_Restart", "POST", web!("sites/{}/restart"), "Microsoft.Web/sites/restart/action"),
    operation(
        "WebApps_ListApplicationSettings",
        "POST",
        web!("sites/{}/config/appsettings/list"),
        "Microsoft.Web/sites/config/list/action",
    ),
    operation("WebApps_UpdateApplicationSettings", "PUT", SETTINGS, "Microsoft.Web/sites/config/write"),
    operation("WebApps_GetConfiguration", "GET", CONFIGURATION, "Microsoft.Web/sites/config/read"),
    operation("WebApps_CreateOrUpdateConfiguration", "PUT", CONFIGURATION, "Microsoft.Web/sites/config/write"),
    operation("WebApps_UpdateConfiguration", "PATCH", CONFIGURATION, "Microsoft.Web/sites/config/write"),
    operation(
        "WebApps_ListAzureStorageAccounts",
        "POST",
        web!("sites/{}/config/azurestorageaccounts/list"),
        "Microsoft.Web/sites/config/list/action",
    ),
    operation("WebApps_UpdateAzureStorageAccounts", "PUT", MOUNTS, "Microsoft.Web/sites/config/write"),
    operation("WebApps_ListHostNameBindings", "GET", BINDINGS, "Microsoft.Web/sites/hostNameBindings/read"),
    operation("WebApps_GetHostNameBinding", "GET", BINDING, "Microsoft.Web/sites/hostNameBindings/read"),
    operation("WebApps_CreateOrUpdateHostNameBinding", "PUT", BINDING, "Microsoft.Web/sites/hostNameBindings/write"),
    operation("WebApps_DeleteHostNameBinding", "DELETE", BINDING, "Microsoft.Web/sites/hostNameBindings/delete"),
    operation(
        "WebApps_ListInstanceIdentifiers",
        "GET",
        web!("sites/{}/instances"),
        "Microsoft.Web/sites/instances/read",
    ),
    operation("WebApps_GetInstanceInfo", "GET", web!("sites/{}/instances/{}"), "Microsoft.Web/sites/instances/read"),
    operation("Certificates_ListByResourceGroup", "GET", web!("certificates"), "Microsoft.Web/certificates/read"),
    operation("Certificates_Get", "GET", CERTIFICATE, "Microsoft.Web/certificates/read"),
    operation("Certificates_CreateOrUpdate", "PUT", CERTIFICATE, "Microsoft.Web/certificates/write"),
    operation("Certificates_Delete", "DELETE", CERTIFICATE, "Microsoft.Web/certificates/delete"),
    operation(
        "CheckNameAvailability",
        "POST",
        "providers/microsoft.web/checknameavailability",
        "Microsoft.Web/checknameavailability/read",
    ),
    operation("Poll", "GET", "providers/microsoft.web/locations/{}/operations/{}", ""),
    operation("Poll", "GET", "providers/microsoft.web/locations/{}/operationresults/{}", ""),
    operation(
        "ManagedClusters_List",
        "GET",
        "providers/microsoft.containerservice/managedclusters",
        "Microsoft.ContainerService/managedClusters/read",
    ),
    operation(
        "ManagedClusters_ListByResourceGroup",
        "GET",
        CLUSTERS,
        "Microsoft.ContainerService/managedClusters/read",
    ),
    operation("ManagedClusters_Get", "GET", CLUSTER, "Microsoft.ContainerService/managedClusters/read"),
    operation(
        "ManagedClusters_ListClusterUserCredentials",
        "POST",
        "resourcegroups/{group}/providers/microsoft.containerservice/managedclusters/{}/listclusterusercredential",
        "Microsoft.ContainerService/managedClusters/listClusterUserCredential/action",
    ),
    operation("FileShares_List", "GET", SHARES, "Microsoft.Storage/storageAccounts/fileServices/shares/read"),
    operation("FileShares_Get", "GET", SHARE, "Microsoft.Storage/storageAccounts/fileServices/shares/read"),
    operation("FileShares_Create", "PUT", SHARE, "Microsoft.Storage/storageAccounts/fileServices/shares/write"),
    operation("FileShares_Update", "PATCH", SHARE, "Microsoft.Storage/storageAccounts/fileServices/shares/write"),
    operation("FileShares_Delete", "DELETE", SHARE, "Microsoft.Storage/storageAccounts/fileServices/shares/delete"),
    operation(
        "StorageAccounts_ListKeys",
        "POST",
        storage!("listkeys"),
        "Microsoft.Storage/storageAccounts/listKeys/action",
    ),
    operation(
        "StorageAccounts_GetProperties",
        "GET",
        "resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{}",
        "Microsoft.Storage/storageAccounts/read",
    ),
    operation(
        "AppServicePlans_RestartWebApps",
        "POST",
        web!("serverfarms/{}/restartsites"),
        "Microsoft.Web/serverfarms/restartSites/action",
    ),
];

/// What a path names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) subscription: String,
    pub(crate) group: Option<String>,
    /// What stands for each `{}`.
    pub(crate) names: Vec<String>,
}

/// Which operation this is, and on what.
pub(crate) fn find(method: &Method, path: &str) -> Option<(Operation, Target)> {
    let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let [first, subscription, rest @ ..] = &*segments else { return None };
    if !first.eq_ignore_ascii_case("subscriptions") {
        return None;
    }
    let fits = |operation: &Operation| {
        let mut target = Target { subscription: (*subscription).to_owned(), ..Target::default() };
        let pattern: Vec<_> = operation.path.split('/').filter(|segment| !segment.is_empty()).collect();
        if operation.method != method.as_str() || pattern.len() != rest.len() {
            return None;
        }
        for (pattern, segment) in pattern.into_iter().zip(rest) {
            match pattern {
                "{}" => target.names.push(decoded(segment)),
                "{group}" => target.group = Some((*segment).to_owned()),
                _ if segment.eq_ignore_ascii_case(pattern) => {}
                _ => return None,
            }
        }
        Some((*operation, target))
    };
    OPERATIONS.iter().find_map(fits)
}

/// Whose operations are at this path, in small letters.
pub(crate) fn provider(path: &str) -> String {
    let path = path.to_lowercase();
    let after = path.split_once("/providers/").map(|(_, after)| after.split('/').next().unwrap_or_default());
    after.unwrap_or("microsoft.resources").to_owned()
}

/// A name may be escaped, as a query is.
fn decoded(segment: &str) -> String {
    let plain = segment.replace('+', "%2B");
    form_urlencoded::parse(format!("{plain}=").as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_in_any_case() {
        let path = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Web/sites/a%20b/hostNameBindings/x.y";
        let (operation, target) = find(&Method::PUT, path).unwrap();
        assert_eq!(operation.id, "WebApps_CreateOrUpdateHostNameBinding");
        assert_eq!(target.names, ["a b", "x.y"]);
        assert_eq!(target.group.as_deref(), Some("G"));
        assert_eq!(find(&Method::GET, "/subscriptions/S/").unwrap().0.id, "Subscriptions_Get");
        assert_eq!(find(&Method::PUT, "/subscriptions/S/"), None);
        assert_eq!((&*provider(path), &*provider("/subscriptions/S")), ("microsoft.web", "microsoft.resources"));
    }
}
