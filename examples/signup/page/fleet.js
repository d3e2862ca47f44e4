// The fleet: a page of instances, kept up to date by what happens.

import { at, call, element, path, say, web } from "/api.js";

const PAGE = 50;
// Fewer than this many changes are looked up one by one; with more, the page is read again.
const SINGLE_MAX = 8;
const WORDS = {
  provisioning: "starting", running: "running", zero: "asleep", suspended: "suspended",
  destroying: "being removed", failed: "failed",
};

/** What can be asked of an instance as it is now: the main thing first. */
export function actions(instance) {
  if (instance.intent === "gone") return [];
  const list = [];
  if (instance.parked) list.push({ key: "retry", label: "Try again" });
  if (instance.holds.length > 0) {
    for (const hold of instance.holds) list.push({ key: "lift", hold, label: `Lift “${hold}”` });
  } else if (instance.intent === "running") {
    if (instance.phase === "running" && web(instance.endpoint)) list.push({ key: "open", label: "Open", href: web(instance.endpoint) });
    list.push({ key: "sleep", label: "Sleep" });
  } else {
    list.push({ key: "wake", label: "Wake" });
  }
  if (!instance.holds.includes("unpaid")) list.push({ key: "suspend", label: "Suspend", minor: true });
  list.push({ key: "upgrade", label: "Upgrade", minor: true });
  if (instance.intent === "running") list.push({ key: "restart", label: "Restart", minor: true });
  list.push({ key: "delete", label: "Delete", minor: true });
  return list;
}

/** Whether another version than the wanted one was seen ready last. */
export function changing(instance) {
  return Boolean(instance.applied_version) && instance.applied_version !== instance.version;
}

/** The state in a word, and as one of the colours. */
export function state(instance) {
  const moving = !instance.settled && !instance.parked;
  if (instance.parked) return { word: "needs attention", phase: "failed" };
  if (!instance.phase) return { word: "accepted", phase: "moving" };
  const aim = instance.intent === "gone" ? "destroying" : instance.intent;
  if (moving && instance.phase !== aim) {
    const words = { running: "starting", zero: "going to sleep", suspended: "being suspended", destroying: "being removed" };
    return { word: words[aim], phase: "moving" };
  }
  if (changing(instance) && instance.phase === "running") return { word: "updating", phase: "moving" };
  const phase = instance.phase;
  return { word: WORDS[phase] ?? phase, phase: ["provisioning", "destroying"].includes(phase) ? "moving" : phase };
}

/** Why it is as it is, when there is something to say. */
export function why(instance) {
  if (instance.holds.length > 0) return instance.holds.join(", ");
  if ((instance.parked || instance.phase === "failed") && instance.reason) return instance.reason.message;
  return "";
}

/** Brings buttons in line with actions. A button that stays is the same element, so that it keeps the focus. */
export function buttons(place, id, wanted) {
  const have = new Map([...place.children].map((child) => [child.dataset.key, child]));
  place.replaceChildren(...wanted.map((action) => {
    const key = action.key + (action.hold ?? "");
    const button = have.get(key) ?? element(action.href ? "a" : "button");
    button.dataset.key = key;
    button.dataset.do = action.key;
    button.dataset.id = id;
    if (action.hold) button.dataset.hold = action.hold;
    if (action.href) Object.assign(button, { href: action.href, target: "_blank", rel: "noopener noreferrer", className: "button" });
    if (button.textContent !== action.label) button.textContent = action.label;
    return button;
  }));
}

/** Keeps focus where it was while something is brought up to date. */
function keepingFocus(work) {
  const focused = document.activeElement;
  work();
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus();
}

export class Fleet {
  #rows = new Map();
  #items = new Map();
  #befores = []; // Where the pages before this one begin.
  #after = null;
  #last = null;
  #more = false;
  #dirty = new Set();
  #reload = false;
  #working = false;
  #prefix = "";
  #phase = "";
  /** The instance whose details are shown. */
  chosen = null;
  /** Called with each instance that was read; with null instead of it when it is gone. */
  onread = () => {};

  /** The instance of this id, as it was read last. */
  get(id) {
    return this.#items.get(id);
  }

  /** Shows those whose ids begin with this and that are in this phase, from the first page on. */
  show(prefix, phase) {
    [this.#prefix, this.#phase, this.#befores, this.#after] = [prefix, phase, [], null];
    this.touch();
  }

  next() {
    if (!this.#more || !this.#last) return;
    this.#befores.push(this.#after);
    this.#after = this.#last;
    this.touch();
  }

  previous() {
    if (this.#befores.length === 0) return;
    this.#after = this.#befores.pop();
    this.touch();
  }

  /** Something happened to this instance; without one, to the fleet. Reads what is needed, many changes at once. */
  touch(id) {
    if (id === undefined) this.#reload = true;
    else this.#dirty.add(id);
    if (this.#working) return;
    this.#working = true;
    setTimeout(() => this.#work(), 60);
  }

  async #work() {
    while (this.#reload || this.#dirty.size > 0) {
      const ids = [...this.#dirty].filter((id) => this.#rows.has(id) || id === this.chosen);
      // With a choice of phases, a change may also bring one in that is not shown yet.
      const whole = this.#reload || ids.length > SINGLE_MAX || this.#phase !== "";
      this.#dirty.clear();
      this.#reload = false;
      try {
        if (whole) await this.#readPage();
        else await Promise.all(ids.map((id) => this.#readOne(id)));
        if (whole && this.chosen && !this.#rows.has(this.chosen)) await this.#readOne(this.chosen);
        await this.#readTotals();
        say(at("fleet-message"), "");
      } catch (problem) {
        say(at("fleet-message"), problem.message, "problem");
        break; // What happens next, or coming back, reads again.
      }
      // However much happens, the service is asked a few times a second at most.
      await new Promise((done) => setTimeout(done, 250));
    }
    this.#working = false;
  }

  async #readPage() {
    const query = new URLSearchParams({ limit: PAGE });
    if (this.#after) query.set("after", this.#after);
    if (this.#prefix) query.set("prefix", this.#prefix);
    if (this.#phase) query.set("phase", this.#phase);
    const { items, more } = await call("GET", `/api/instances?${query}`);
    if (items.length === 0 && this.#befores.length > 0) return this.previous(); // The last of a page went away.
    this.#more = more;
    this.#last = items.at(-1)?.id ?? null;
    const shown = new Set(items.map((item) => item.id));
    for (const id of this.#rows.keys()) if (!shown.has(id)) this.#forget(id);
    keepingFocus(() => {
      const rows = items.map((item) => this.#row(item));
      const now = [...at("rows").children];
      if (rows.length !== now.length || rows.some((row, place) => row !== now[place])) at("rows").replaceChildren(...rows);
    });
    const before = this.#befores.length * PAGE;
    at("place").textContent = items.length > 0 ? `${before + 1} to ${before + items.length}` : "";
    at("previous").disabled = this.#befores.length === 0;
    at("next").disabled = !more;
    at("empty").hidden = items.length > 0;
    at("empty").textContent = this.#prefix || this.#phase ? "Nobody like that is here." : "Nobody has signed up yet.";
  }

  async #readOne(id) {
    try {
      const instance = await call("GET", path(id));
      keepingFocus(() => (this.#rows.has(id) ? this.#row(instance) : this.onread(id, instance)));
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      this.#rows.get(id)?.remove();
      this.#forget(id);
      this.onread(id, null);
      this.#reload = true;
    }
  }

  async #readTotals() {
    const totals = await call("GET", "/api/totals");
    for (const place of document.querySelectorAll("[data-total]")) {
      place.textContent = totals[place.dataset.total].toLocaleString("en");
    }
    this.ontotals?.(totals);
  }

  #forget(id) {
    this.#rows.delete(id);
    this.#items.delete(id);
  }

  #row(instance) {
    const { id } = instance;
    this.#items.set(id, instance);
    let row = this.#rows.get(id);
    if (!row) {
      row = element("tr", {},
        element("td", {}, element("span", { className: "company" }), element("span", { className: "id" })),
        element("td", { className: "plan-name" }), element("td", { className: "version" }),
        element("td", {}, element("span", { className: "state" }), element("span", { className: "why" })),
        element("td", {}, element("div", { className: "actions" })));
      row.dataset.id = id;
      this.#rows.set(id, row);
    }
    const { word, phase } = state(instance);
    const put = (selector, text) => {
      const place = row.querySelector(selector);
      if (place.textContent !== text) place.textContent = text;
    };
    row.dataset.phase = phase;
    row.classList.toggle("chosen", id === this.chosen);
    put(".company", instance.tenant);
    put(".id", id);
    put(".plan-name", instance.plan ?? "");
    put(".version", changing(instance) ? `${instance.applied_version} → ${instance.version}` : instance.version);
    row.querySelector(".version").toggleAttribute("data-changing", changing(instance));
    put(".state", word);
    put(".why", why(instance));
    const main = actions(instance).filter((action) => !action.minor);
    buttons(row.querySelector(".actions"), id, [...main, { key: "details", label: "Details" }]);
    this.onread(id, instance);
    return row;
  }

  /** Marks the row of the instance whose details are shown. */
  choose(id) {
    this.chosen = id;
    for (const [of, row] of this.#rows) row.classList.toggle("chosen", of === id);
  }
}
