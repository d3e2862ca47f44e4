// The life of a site, as Microsoft's JavaScript client has it: made, read, changed, stopped, started, restarted, removed.
//
// Arguments: the endpoint, the file with the certificate authority, the token, the subscription, the resource group, the
// region, the command line of the product, the version of the API. The variable AZURE_JS names the folder with the
// packages, which `cargo xtask peers` makes. Asserts what the real service does, and prints as JSON what it saw.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync } from "node:fs";
import { get } from "node:https";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const packages = process.env.AZURE_JS ?? "/var/tmp/provisioner-peers/oav";
const { WebSiteManagementClient } = createRequire(join(packages, "package.json"))("@azure/arm-appservice");

const [ENDPOINT, CA_FILE, TOKEN, SUBSCRIPTION, GROUP, REGION, COMMAND, VERSION] = process.argv.slice(2);
const [PLAN, SITE] = ["life-js", "life-js-site"];
const IMAGE = "DOCKER|registry.example/product:1.0";
const CA = readFileSync(CA_FILE);
const MS_MAX = 60_000;

const credential = {
  async getToken(scopes) {
    assert([scopes].flat().every((scope) => scope.endsWith("/.default")), String(scopes));
    return { token: TOKEN, expiresOnTimestamp: Date.now() + 3_600_000 };
  },
};

/** What somebody's browser gets from a site: the status and the text; 0 where nothing listens. */
function frontDoor(host) {
  return new Promise((resolve, reject) => {
    const refused = (error) =>
      ["ECONNREFUSED", "ECONNRESET"].includes(error.code) ? resolve([0, ""]) : reject(error);
    const sent = get(`https://${host}/`, { ca: CA, agent: false, timeout: 10_000 }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (part) => (text += part));
      answer.on("end", () => resolve([answer.statusCode, text])).on("error", refused);
    });
    sent.on("timeout", () => sent.destroy(new Error("no answer"))).on("error", refused);
  });
}

async function until(host, statuses, text = "") {
  const deadline = Date.now() + MS_MAX;
  for (;;) {
    const seen = await frontDoor(host);
    if (statuses.includes(seen[0]) && seen[1].includes(text)) {
      return seen[0];
    }
    assert(Date.now() < deadline, `${host} should answer ${statuses} with ${JSON.stringify(text)}: ${seen}`);
    await sleep(100);
  }
}

async function absent(read) {
  const error = await read().then(
    (found) => assert.fail(`still there: ${JSON.stringify(found)}`),
    (error) => error,
  );
  assert.equal(Number(error.statusCode), 404, String(error));
  return error.code;
}

async function names(pages) {
  const names = [];
  for await (const { name } of pages) {
    names.push(name);
  }
  return names;
}

const saw = {};
const client = new WebSiteManagementClient(credential, SUBSCRIPTION, {
  endpoint: ENDPOINT,
  apiVersion: VERSION,
  tlsOptions: { ca: CA },
  // An answer that the client would have to ask for twice is a fault of the stand-in.
  retryOptions: { maxRetries: 0 },
});
const { appServicePlans: plans, webApps: sites } = client;
const often = { updateIntervalInMs: 1000 };

const plan = await plans.createOrUpdate(
  GROUP,
  PLAN,
  {
    location: REGION,
    kind: "linux",
    sku: { name: "B1", tier: "Basic", capacity: 1 },
    reserved: true,
    tags: { owner: "life" },
  },
  often,
);
assert.deepEqual([plan.name, plan.location, plan.sku.name, plan.sku.capacity], [PLAN, REGION, "B1", 1]);
assert.equal(plan.type, "Microsoft.Web/serverfarms");
assert.deepEqual({ ...plan.tags }, { owner: "life" });
assert.deepEqual([plan.reserved, plan.provisioningState], [true, "Succeeded"]);
const wanted = `/subscriptions/${SUBSCRIPTION}/resourceGroups/${GROUP}/providers/Microsoft.Web/serverfarms/${PLAN}`;
assert.equal(plan.id.toLowerCase(), wanted.toLowerCase());
assert.equal((await plans.get(GROUP, PLAN)).id, plan.id);
assert.deepEqual(await names(plans.listByResourceGroup(GROUP)), [PLAN]);
saw.plan = plan.id;

const settings = {
  TENANT: "javascript",
  PRODUCT_VERSION: "1.0",
  DATA_PATH: mkdtempSync(join(tmpdir(), "life-js-")),
  GREETING: "first words",
  WEBSITES_PORT: "8080",
  PORT: "8080",
};
const site = await sites.createOrUpdate(
  GROUP,
  SITE,
  {
    location: REGION,
    kind: "app,linux,container",
    tags: { owner: "life" },
    serverFarmId: plan.id,
    reserved: true,
    httpsOnly: true,
    siteConfig: {
      linuxFxVersion: IMAGE,
      appCommandLine: COMMAND,
      alwaysOn: true,
      appSettings: Object.entries(settings).map(([name, value]) => ({ name, value })),
    },
  },
  often,
);
assert.deepEqual([site.name, site.type, site.location], [SITE, "Microsoft.Web/sites", REGION]);
assert.deepEqual({ ...site.tags }, { owner: "life" });
assert.deepEqual([site.state, site.enabled, site.httpsOnly], ["Running", true, true]);
assert.equal(site.serverFarmId.toLowerCase(), plan.id.toLowerCase());
const host = site.defaultHostName;
assert(site.hostNames.includes(host) && site.enabledHostNames.includes(host));
saw.site = site.id;
saw.host = host;
saw.created = await until(host, [200], "first words");

assert.deepEqual(await names(sites.listByResourceGroup(GROUP)), [SITE]);
const found = await sites.get(GROUP, SITE);
assert.deepEqual([found.id, found.state, found.defaultHostName], [site.id, "Running", host]);
// Settings hold secrets: only a call that asks for them is answered with them.
assert(!found.siteConfig?.appSettings?.length);
assert.equal((await plans.get(GROUP, PLAN)).numberOfSites, 1);

assert.deepEqual({ ...(await sites.listApplicationSettings(GROUP, SITE)).properties }, settings);
const { PORT: _, ...changed } = { ...settings, GREETING: "second words" };
const updated = await sites.updateApplicationSettings(GROUP, SITE, { properties: changed });
assert.deepEqual({ ...updated.properties }, changed);
// The whole of them is replaced, and the site runs with the new ones.
assert.deepEqual({ ...(await sites.listApplicationSettings(GROUP, SITE)).properties }, changed);
saw.settings = Object.keys(changed).sort();
saw.changed = await until(host, [200], "second words");

await sites.stop(GROUP, SITE);
assert.equal((await sites.get(GROUP, SITE)).state, "Stopped");
saw.stopped = await until(host, [403]);
await sites.start(GROUP, SITE);
assert.equal((await sites.get(GROUP, SITE)).state, "Running");
saw.started = await until(host, [200], "second words");
await sites.restart(GROUP, SITE, { softRestart: false, synchronous: true });
saw.restarted = await until(host, [200], "second words");

saw.bindings = await names(sites.listHostNameBindings(GROUP, SITE));
assert.deepEqual(saw.bindings, [`${SITE}/${host}`]);

const config = await sites.getConfiguration(GROUP, SITE);
assert.deepEqual([config.linuxFxVersion, config.appCommandLine, config.alwaysOn], [IMAGE, COMMAND, true]);
assert(!config.appSettings?.length);
saw.image = config.linuxFxVersion;

await sites.delete(GROUP, SITE, { deleteEmptyServerFarm: false });
saw["site absent"] = await absent(() => sites.get(GROUP, SITE));
assert.deepEqual(await names(sites.listByResourceGroup(GROUP)), []);
saw.removed = await until(host, [404, 0]);
// The plan is still there, and nothing is on it.
assert.equal((await plans.get(GROUP, PLAN)).numberOfSites, 0);
await plans.delete(GROUP, PLAN);
saw["plan absent"] = await absent(() => plans.get(GROUP, PLAN));
// Removing what is absent succeeds.
await plans.delete(GROUP, PLAN);
console.log(JSON.stringify(saw));
