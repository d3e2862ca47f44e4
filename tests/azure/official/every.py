"""Every operation of the contract that the stand-in has beside those of a life, as Microsoft's Python client calls it.

Arguments: the endpoint, the file with the certificate authority, the token, the subscription, the resource group, the
region, the command line of the product, the version of the API, and the names of the storage account and of a cluster.
Asserts what the real service does, and prints as JSON what it saw.
"""

import http.client
import json
import ssl
import sys
import time
import urllib.parse

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.mgmt.web import WebSiteManagementClient

ENDPOINT, CA_FILE, TOKEN, SUBSCRIPTION, GROUP, REGION, COMMAND, VERSION, ACCOUNT, CLUSTER = sys.argv[1:]
PLAN, SITE, HOST, CERTIFICATE = "every-plan", "every-site", "www.every.example", "every-certificate"
CLUSTERS_VERSION = "2024-09-01"


class Credential:
    def get_token(self, *_, **__):
        return AccessToken(TOKEN, int(time.time()) + 3600)


def refused(status, call):
    try:
        call()
    except HttpResponseError as error:
        assert error.status_code == status, error
        # The client finds the code in either shape of an error.
        return error.error.code if error.error else None
    raise AssertionError(f"not refused with {status}")


def plain(method, path):
    """A call that this client does not have."""
    endpoint = urllib.parse.urlsplit(ENDPOINT)
    trusted = ssl.create_default_context(cafile=CA_FILE)
    connection = http.client.HTTPSConnection(endpoint.hostname, endpoint.port, context=trusted, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"/subscriptions/{SUBSCRIPTION}{path}?api-version={CLUSTERS_VERSION}"
        connection.request(method, url, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200, (path, answer.status)
        return json.load(answer)
    finally:
        connection.close()


saw = {}
client = WebSiteManagementClient(
    Credential(),
    SUBSCRIPTION,
    base_url=ENDPOINT,
    api_version=VERSION,
    connection_verify=CA_FILE,
    polling_interval=1,
    use_env_settings=False,
    retry_total=0,
)
plans, sites, certificates = client.app_service_plans, client.web_apps, client.certificates


def available():
    return client.check_name_availability({"name": SITE, "type": "Microsoft.Web/sites"}).name_available


def site_with(**properties):
    return {"location": REGION, "kind": "app,linux", "properties": {"serverFarmId": plan.id, **properties}}


sku = {"name": "P1v3", "tier": "PremiumV3", "capacity": 1}
plan = plans.begin_create_or_update(
    GROUP, PLAN, {"location": REGION, "kind": "linux", "sku": sku, "properties": {"reserved": True}}
).result()
assert (plan.sku.tier, plan.sku.size) == ("PremiumV3", "P1v3"), plan
assert available()
image = "DOCKER|registry.example/product:1.0"
config = {"linuxFxVersion": image, "appCommandLine": COMMAND, "healthCheckPath": "/healthz"}
identity = {"type": "SystemAssigned"}
site = sites.begin_create_or_update(GROUP, SITE, {**site_with(siteConfig=config), "identity": identity}).result()
assert site.identity.type == "SystemAssigned" and site.identity.principal_id, site
assert not available()
saw["reads"] = [
    [found.name for found in plans.list()],
    [found.name for found in sites.list()],
    [found.name for found in plans.list_web_apps(GROUP, PLAN)],
]
assert saw["reads"] == [[PLAN], [SITE], [SITE]], saw
assert plans.update(GROUP, PLAN, {"properties": {"targetWorkerCount": 1}}).name == PLAN
updated = sites.update(GROUP, SITE, {"properties": {"clientAffinityEnabled": False}})
assert updated.properties.client_affinity_enabled is False, updated
# A write of the whole is repeatable.
assert sites.begin_create_or_update(GROUP, SITE, site_with(httpsOnly=True)).result().id == site.id
saw["occupied"] = refused(409, lambda: plans.delete(GROUP, PLAN))
plans.restart_web_apps(GROUP, PLAN)

assert sites.update_configuration(GROUP, SITE, {"properties": {"alwaysOn": True}}).properties.always_on
replaced = sites.create_or_update_configuration(GROUP, SITE, {"properties": config}).properties
assert (replaced.always_on, replaced.health_check_path) == (False, "/healthz"), replaced
mount = {
    "type": "AzureFiles",
    "accountName": ACCOUNT,
    "shareName": "every-share",
    "accessKey": "a2V5",
    "mountPath": "/data",
}
mounts = sites.update_azure_storage_accounts(GROUP, SITE, {"properties": {"data": mount}}).properties
assert mounts["data"].mount_path == "/data", mounts
assert sites.list_azure_storage_accounts(GROUP, SITE).properties["data"].share_name == "every-share"
assert not sites.update_azure_storage_accounts(GROUP, SITE, {"properties": {}}).properties

instances = list(sites.list_instance_identifiers(GROUP, SITE))
assert len(instances) == 1, instances
saw["instance"] = sites.get_instance_info(GROUP, SITE, instances[0].name).properties.state

content = {"pfxBlob": b"content", "password": "secret", "serverFarmId": plan.id, "hostNames": [HOST]}
certificate = certificates.create_or_update(GROUP, CERTIFICATE, {"location": REGION, "properties": content})
thumbprint = certificates.get(GROUP, CERTIFICATE).properties.thumbprint
assert thumbprint and thumbprint == certificate.properties.thumbprint, certificate
assert [found.name for found in certificates.list_by_resource_group(GROUP)] == [CERTIFICATE]
bound = {"properties": {"sslState": "SniEnabled", "thumbprint": thumbprint, "siteName": SITE}}
binding = sites.create_or_update_host_name_binding(GROUP, SITE, HOST, bound)
assert (binding.properties.ssl_state, binding.properties.thumbprint) == ("SniEnabled", thumbprint), binding
assert sites.get_host_name_binding(GROUP, SITE, HOST).name == f"{SITE}/{HOST}"
assert len(list(sites.list_host_name_bindings(GROUP, SITE))) == 2
assert HOST in sites.get(GROUP, SITE).properties.host_names
saw["in use"] = refused(409, lambda: certificates.delete(GROUP, CERTIFICATE))
sites.delete_host_name_binding(GROUP, SITE, HOST)
# Removing what is absent succeeds.
sites.delete_host_name_binding(GROUP, SITE, HOST)
certificates.delete(GROUP, CERTIFICATE)
certificates.delete(GROUP, CERTIFICATE)
for read in (
    lambda: certificates.get(GROUP, CERTIFICATE),
    lambda: sites.get_host_name_binding(GROUP, SITE, HOST),
    lambda: sites.list_application_settings(GROUP, "nothing"),
    lambda: sites.stop(GROUP, "nothing"),
    lambda: plans.list_web_apps(GROUP, "nothing").next(),
):
    assert refused(404, read) == "ResourceNotFound"
on_none = {"location": REGION, "properties": {"serverFarmId": "none"}}
saw["refused"] = [
    refused(400, lambda: plans.begin_create_or_update(GROUP, "p", {"location": "nowhere", "sku": sku})),
    refused(400, lambda: sites.begin_create_or_update(GROUP, "-", site_with())),
    refused(404, lambda: sites.begin_create_or_update(GROUP, "another", on_none)),
]

CLUSTERS = f"/resourceGroups/{GROUP}/providers/Microsoft.ContainerService/managedClusters"
for path in (CLUSTERS, "/providers/Microsoft.ContainerService/managedClusters"):
    assert [found["name"] for found in plain("GET", path)["value"]] == [CLUSTER]
assert plain("GET", f"{CLUSTERS}/{CLUSTER}")["properties"]["provisioningState"] == "Succeeded"
credentials = plain("POST", f"{CLUSTERS}/{CLUSTER}/listClusterUserCredential")
saw["credentials"] = [found["name"] for found in credentials["kubeconfigs"]]

# The last site takes its plan with it, unless it is told not to.
sites.delete(GROUP, SITE)
sites.delete(GROUP, SITE)
assert refused(404, lambda: plans.get(GROUP, PLAN)) == "ResourceNotFound"
print(json.dumps(saw))
