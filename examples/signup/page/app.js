// Wires the page: the form, the fleet, the panel, the questions, and the stream of what happens.

import { at, call, element, path, say, web } from "/api.js";
import { Fleet } from "/fleet.js";
import { Panel } from "/log.js";

const KINDS = [
  "accepted", "operation_ended", "incarnation_started", "incarnation_ended", "phase_changed", "drifted", "retrying", "parked",
  "remnant_found", "stranger_found", "stranger_resolved", "drift_frozen", "drift_confirmed", "freeze", "forgotten",
];
const fleet = new Fleet();
const panel = new Panel();
let catalog = null;
let signedUp = null; // The last sign-up from this page, until it is running.

// ---- Names

/** A company's name as a DNS label. */
function label(name) {
  const plain = name.normalize("NFKD").replaceAll("ß", "ss").replace(/\p{M}/gu, "").toLowerCase();
  const dashed = plain.replace(/['’.]/g, "").replace(/[^a-z0-9]+/g, "-").replace(/^-+/, "");
  return (/^[0-9]/.test(dashed) ? `c-${dashed}` : dashed).slice(0, 40).replace(/-+$/, "");
}

let named = false; // Whether somebody typed a short name: it does not follow any more.
at("company").addEventListener("input", () => {
  if (!named) at("short").value = label(at("company").value);
});
at("short").addEventListener("input", () => {
  named = at("short").value !== "";
});

// ---- Plans and versions

function planCard(plan, checked) {
  const rest = [`${plan.memory_mib} MiB of memory`, `${plan.data_mib} MiB of data`].join(", ");
  return element("label", { className: "plan" },
    element("input", { type: "radio", name: "plan", value: plan.name, checked, defaultChecked: checked, required: true }),
    element("strong", {}, plan.name),
    element("span", { className: "price" }, `$${plan.awake_dollars} a month awake, $${plan.asleep_dollars} asleep`),
    element("span", {}, plan.description), element("span", {}, rest));
}

async function readCatalog() {
  catalog = await call("GET", "/api/catalog");
  at("plans").replaceChildren(...catalog.plans.map((plan, place) => planCard(plan, place === 0)));
  for (const place of [at("version"), at("ask-version-value")]) {
    place.replaceChildren(...catalog.versions.map((version) => element("option", { value: version }, version)));
  }
  at("version").value = catalog.version_default;
}

fleet.ontotals = ({ asleep }) => {
  if (!catalog) return;
  const dollars = (amount) => `$${amount.toLocaleString("en")}`;
  const costs = catalog.plans.map((plan) => plan.asleep_dollars);
  const [least, most] = [Math.min(...costs), Math.max(...costs)];
  const vm = catalog.vm_dollars;
  at("savings").textContent = (asleep === 0
    ? `Nobody sleeps at the moment. A customer on a dedicated VM costs ${dollars(vm)} a month, asleep or awake; ` +
      `asleep here, ${dollars(least)} to ${dollars(most)} for the data.`
    : `${asleep === 1 ? "One notebook sleeps" : `${asleep.toLocaleString("en")} notebooks sleep`}. On a dedicated VM each, that ` +
      `would be ${dollars(asleep * vm)} a month, asleep or awake; asleep here, ${dollars(asleep * least)} to ` +
      `${dollars(asleep * most)} for the data.`) + " The figures are illustrative.";
};

// ---- Signing up

let attempt = { text: "", key: "" };
at("signup").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(at("signup"));
  const wanted = { id: form.get("id"), tenant: form.get("company").trim(), plan: form.get("plan"), version: form.get("version") };
  // The same wish again has the same key, so that a lost answer never makes two notebooks.
  const text = JSON.stringify(wanted);
  if (attempt.text !== text) attempt = { text, key: crypto.randomUUID() };
  at("submit").disabled = true;
  say(at("signup-status"), "Signing up …");
  try {
    const operation = await call("POST", "/api/instances", wanted, { "idempotency-key": attempt.key });
    attempt = { text: "", key: "" };
    signedUp = { ...wanted, operation: operation.id };
    say(at("signup-status"), `${wanted.tenant} is on its way …`);
    at("signup").reset();
    at("version").value = catalog.version_default;
    named = false;
    fleet.touch();
    await welcome(wanted.id, operation.id);
  } catch (problem) {
    say(at("signup-status"), problem.message, "problem");
    if (problem.field === "id" || problem.status === 409) at("short").focus();
  } finally {
    at("submit").disabled = false;
  }
});

/** Shows the way to a notebook once its sign-up has ended. */
async function welcome(id, operation) {
  if (signedUp?.operation !== operation) return;
  const { state, failure } = await call("GET", `/api/operations/${operation}`);
  if (state === "pending" || signedUp?.operation !== operation) return;
  const { tenant } = signedUp;
  signedUp = null;
  if (state !== "done") {
    say(at("signup-status"), `${tenant} did not start: ${failure?.message ?? "see its details below"}`, "problem");
    return;
  }
  const instance = await call("GET", path(id));
  say(at("signup-status"), `${tenant} is ready. `);
  const href = web(instance.endpoint);
  if (href) at("signup-status").append(element("a", { href, target: "_blank", rel: "noopener noreferrer" }, "Open it"));
}

// ---- Asking things of instances

/** Asks for a reason and more; null when it was called off. */
function ask({ title, text, yes, danger, version, keep }) {
  at("ask-title").textContent = title;
  at("ask-text").textContent = text;
  at("ask-yes").textContent = yes;
  at("ask-yes").classList.toggle("danger", Boolean(danger));
  at("ask-version").hidden = version === undefined;
  if (version !== undefined) at("ask-version-value").value = version;
  at("ask-keep").hidden = !keep;
  at("ask-keep-value").checked = false;
  at("ask-reason").value = "";
  const dialog = at("ask");
  dialog.returnValue = "";
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      const reason = at("ask-reason").value.trim() || undefined;
      const said = { reason, version: at("ask-version-value").value, keep: at("ask-keep-value").checked };
      done(dialog.returnValue === "yes" ? said : null);
    }, { once: true });
    dialog.showModal();
  });
}

const DOES = {
  sleep: (id) => call("POST", path(id, "/sleep")),
  wake: (id) => call("POST", path(id, "/wake")),
  restart: (id) => call("POST", path(id, "/restart")),
  retry: (id) => call("POST", path(id, "/retry")),
  lift: (id, _, hold) => call("POST", path(id, "/lift"), { hold }),
  suspend: async (id, { tenant }) => {
    const said = await ask({ title: `Suspend ${tenant}?`, text: "Nobody can use the notebook until the hold “unpaid” is lifted. The data stays.", yes: "Suspend" });
    return said && call("POST", path(id, "/suspend"), { reason: said.reason });
  },
  upgrade: async (id, { tenant, version }) => {
    const newer = catalog.versions[catalog.versions.indexOf(version) + 1] ?? version;
    const said = await ask({ title: `Change the version of ${tenant}`, text: `It is at ${version} now. If the new version does not start, the old one goes on.`, yes: "Change", version: newer });
    return said && call("POST", path(id, "/upgrade"), { version: said.version, reason: said.reason });
  },
  delete: async (id, { tenant }) => {
    const said = await ask({ title: `Delete ${tenant}?`, text: "The notebook is taken down for good.", yes: "Delete", danger: true, keep: true });
    if (!said) return null;
    const query = new URLSearchParams(said.reason ? { reason: said.reason } : {});
    if (said.keep) query.set("data", "retain");
    return call("DELETE", path(id, `?${query}`));
  },
};

document.addEventListener("click", async ({ target }) => {
  const button = target.closest?.("button[data-do]");
  if (!button) return;
  const { id, hold } = button.dataset;
  const instance = fleet.get(id) ?? (panel.id === id ? panel.instance : null);
  if (!instance) return;
  if (button.dataset.do === "details") {
    fleet.choose(id);
    await panel.open(instance, button);
    return;
  }
  const place = button.closest("#panel") ? at("panel-message") : at("fleet-message");
  button.disabled = true;
  try {
    say(place, "");
    await DOES[button.dataset.do](id, instance, hold);
    fleet.touch(id);
  } catch (problem) {
    say(place, `${instance.tenant}: ${problem.message}`, "problem");
  } finally {
    button.disabled = false;
  }
});

function closePanel() {
  panel.close();
  fleet.choose(null);
}
at("panel-close").addEventListener("click", closePanel);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("ask").open) closePanel();
});
fleet.onread = (id, instance) => {
  if (panel.id === id) panel.update(instance);
};

// ---- Finding

let typing;
const show = () => fleet.show(label(at("search").value), at("phase").value);
at("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(show, 150);
});
at("phase").addEventListener("change", show);
at("next").addEventListener("click", () => fleet.next());
at("previous").addEventListener("click", () => fleet.previous());

// ---- What happens, as it happens

let source = null;
let retry;

function listen() {
  clearTimeout(retry);
  source?.close();
  source = new EventSource("/api/events");
  // Whatever happened before the stream began is read; whatever happens after it comes.
  source.addEventListener("ready", () => {
    live(true);
    fleet.touch();
    if (panel.id !== null) {
      fleet.touch(panel.id);
      panel.read();
    }
    if (!catalog) readCatalog().catch((problem) => say(at("signup-status"), problem.message, "problem"));
  });
  for (const kind of KINDS) source.addEventListener(kind, ({ data }) => happened(JSON.parse(data)));
  source.onerror = () => {
    live(false);
    // A browser comes back by itself, but not after an answer that was no stream.
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(listen, 2000);
  };
}

function live(yes) {
  at("live").dataset.live = yes ? "yes" : "no";
  at("live").textContent = yes ? "live" : "not connected, trying again";
}

function happened(event) {
  panel.add(event);
  if (event.kind === "accepted" && event.verb === "create") fleet.touch();
  if (event.instance) fleet.touch(event.instance);
  if (event.kind === "operation_ended" && event.operation === signedUp?.operation) {
    welcome(event.instance, event.operation).catch((problem) => say(at("signup-status"), problem.message, "problem"));
  }
}

// Browsers allow few connections to one host: a page that nobody looks at gives its own back.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(retry);
    source?.close();
  } else {
    listen();
  }
});
listen();
