"""The life of a site, as Microsoft's Python client has it: made, read, changed, stopped, started, restarted, removed.

Arguments: the endpoint, the file with the certificate authority, the token, the subscription, the resource group, the
region, the command line of the product, the version of the API. Asserts what the real service does, and prints as JSON
what it saw.
"""

import http.client
import json
import ssl
import sys
import tempfile
import time

from azure.core.credentials import AccessToken
from azure.core.exceptions import ResourceNotFoundError
from azure.mgmt.web import WebSiteManagementClient

ENDPOINT, CA_FILE, TOKEN, SUBSCRIPTION, GROUP, REGION, COMMAND, VERSION = sys.argv[1:]
PLAN, SITE = "life-python", "life-python-site"
IMAGE = "DOCKER|registry.example/product:1.0"
TRUSTED = ssl.create_default_context(cafile=CA_FILE)
SECONDS_MAX = 60


class Credential:
    def get_token(self, *scopes, **_):
        assert all(scope.endswith("/.default") for scope in scopes), scopes
        return AccessToken(TOKEN, int(time.time()) + 3600)


def front_door(host):
    """What somebody's browser gets from a site: the status and the text; 0 where nothing listens."""
    connection = http.client.HTTPSConnection(host, context=TRUSTED, timeout=10)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


def until(host, *statuses, text=""):
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        seen = front_door(host)
        if seen[0] in statuses and text in seen[1]:
            return seen[0]
        assert time.monotonic() < deadline, f"{host} should answer {statuses} with {text!r}: {seen}"
        time.sleep(0.1)


def absent(read):
    try:
        found = read()
    except ResourceNotFoundError as error:
        return error.error.code
    raise AssertionError(f"still there: {found}")


saw = {}
client = WebSiteManagementClient(
    Credential(),
    SUBSCRIPTION,
    base_url=ENDPOINT,
    api_version=VERSION,
    connection_verify=CA_FILE,
    polling_interval=1,
    # The stand-in is on this machine, and no proxy leads to it.
    use_env_settings=False,
    # An answer that the client would have to ask for twice is a fault of the stand-in.
    retry_total=0,
)
plans, sites = client.app_service_plans, client.web_apps

plan = plans.begin_create_or_update(
    GROUP,
    PLAN,
    {
        "location": REGION,
        "kind": "linux",
        "sku": {"name": "B1", "tier": "Basic", "capacity": 1},
        "properties": {"reserved": True},
        "tags": {"owner": "life"},
    },
).result()
assert (plan.name, plan.location, plan.sku.name, plan.sku.capacity) == (PLAN, REGION, "B1", 1), plan
assert plan.type == "Microsoft.Web/serverfarms" and plan.tags == {"owner": "life"}, plan
assert plan.properties.reserved and plan.properties.provisioning_state == "Succeeded", plan
wanted = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Web/serverfarms/{PLAN}"
assert plan.id.lower() == wanted.lower(), plan.id
assert plans.get(GROUP, PLAN).id == plan.id
assert [found.name for found in plans.list_by_resource_group(GROUP)] == [PLAN]
saw["plan"] = plan.id

data = tempfile.mkdtemp(prefix="life-python-")
settings = {
    "TENANT": "python",
    "PRODUCT_VERSION": "1.0",
    "DATA_PATH": data,
    "GREETING": "first words",
    "WEBSITES_PORT": "8080",
    "PORT": "8080",
}
site = sites.begin_create_or_update(
    GROUP,
    SITE,
    {
        "location": REGION,
        "kind": "app,linux,container",
        "tags": {"owner": "life"},
        "properties": {
            "serverFarmId": plan.id,
            "reserved": True,
            "httpsOnly": True,
            "siteConfig": {
                "linuxFxVersion": IMAGE,
                "appCommandLine": COMMAND,
                "alwaysOn": True,
                "appSettings": [{"name": name, "value": value} for name, value in settings.items()],
            },
        },
    },
).result()
assert (site.name, site.type, site.location, site.tags) == (SITE, "Microsoft.Web/sites", REGION, {"owner": "life"}), site
assert site.properties.state == "Running" and site.properties.enabled, site
assert site.properties.server_farm_id.lower() == plan.id.lower(), site
assert site.properties.https_only, site
host = site.properties.default_host_name
assert host in site.properties.host_names and host in site.properties.enabled_host_names, site
saw["site"], saw["host"] = site.id, host
saw["created"] = until(host, 200, text="first words")

assert [found.name for found in sites.list_by_resource_group(GROUP)] == [SITE]
found = sites.get(GROUP, SITE)
assert (found.id, found.properties.state, found.properties.default_host_name) == (site.id, "Running", host), found
# Settings hold secrets: only a call that asks for them is answered with them.
assert found.properties.site_config is None or not found.properties.site_config.app_settings, found
assert plans.get(GROUP, PLAN).properties.number_of_sites == 1

read = sites.list_application_settings(GROUP, SITE)
assert read.properties == settings, read
changed = {**settings, "GREETING": "second words"}
del changed["PORT"]
assert sites.update_application_settings(GROUP, SITE, {"properties": changed}).properties == changed
# The whole of them is replaced, and the site runs with the new ones.
assert sites.list_application_settings(GROUP, SITE).properties == changed
saw["settings"] = sorted(changed)
saw["changed"] = until(host, 200, text="second words")

sites.stop(GROUP, SITE)
assert sites.get(GROUP, SITE).properties.state == "Stopped"
saw["stopped"] = until(host, 403)
sites.start(GROUP, SITE)
assert sites.get(GROUP, SITE).properties.state == "Running"
saw["started"] = until(host, 200, text="second words")
sites.restart(GROUP, SITE, soft_restart=False, synchronous=True)
saw["restarted"] = until(host, 200, text="second words")

bindings = list(sites.list_host_name_bindings(GROUP, SITE))
assert [binding.name for binding in bindings] == [f"{SITE}/{host}"], bindings
assert bindings[0].properties.site_name == SITE, bindings
saw["bindings"] = [binding.name for binding in bindings]

config = sites.get_configuration(GROUP, SITE)
assert (config.properties.linux_fx_version, config.properties.app_command_line) == (IMAGE, COMMAND), config
assert config.properties.always_on and not config.properties.app_settings, config
saw["image"] = config.properties.linux_fx_version

sites.delete(GROUP, SITE, delete_empty_server_farm=False)
saw["site absent"] = absent(lambda: sites.get(GROUP, SITE))
assert list(sites.list_by_resource_group(GROUP)) == []
saw["removed"] = until(host, 404, 0)
# The plan is still there, and nothing is on it.
assert plans.get(GROUP, PLAN).properties.number_of_sites == 0
plans.delete(GROUP, PLAN)
saw["plan absent"] = absent(lambda: plans.get(GROUP, PLAN))
# Removing what is absent succeeds.
plans.delete(GROUP, PLAN)
print(json.dumps(saw))
