// The side panel: one instance, what can be asked of it, and what happened to it.

import { at, call, element, path, say, web } from "/api.js";
import { actions, buttons, state, why } from "/fleet.js";

const SHOWN_MAX = 300;
const PAGES_MAX = 50;

export class Panel {
  /** The instance that is shown. */
  id = null;
  /** Its last known state. */
  instance = null;
  #positions = new Set();
  #opener = null;

  async open(instance, opener) {
    this.id = instance.id;
    this.#opener = opener;
    this.#positions.clear();
    at("log").replaceChildren();
    say(at("panel-message"), "");
    at("panel").hidden = false;
    document.body.classList.add("with-panel");
    this.update(instance);
    at("panel-title").focus();
    await this.read();
  }

  close() {
    if (this.id === null) return;
    this.id = this.instance = null;
    at("panel").hidden = true;
    document.body.classList.remove("with-panel");
    if (this.#opener?.isConnected) this.#opener.focus();
    else at("fleet").focus();
  }

  /** Shows the instance as it is now; without one, that it is gone. */
  update(instance) {
    if (instance === null) {
      say(at("panel-message"), "This notebook is gone.");
      at("panel-actions").replaceChildren();
      return;
    }
    this.instance = instance;
    at("panel-title").textContent = instance.tenant;
    const { word, phase } = state(instance);
    const shown = element("span", { className: "state" }, word);
    shown.dataset.phase = phase;
    const href = web(instance.endpoint);
    const facts = [
      ["State", shown], ["Why", why(instance)], ["Short name", instance.id],
      ["Address", href ? element("a", { href, target: "_blank", rel: "noopener noreferrer" }, href) : ""],
      ["Plan", instance.plan ?? ""], ["Version", instance.version], ["Lives in", instance.cell],
      ["Since", when(instance.created_at)],
    ].filter(([, value]) => value !== "");
    // Facts are replaced whole: only a link among them could have the focus, and links do not change under one's hands.
    const text = facts.map(([name, value]) => name + (value.textContent ?? value)).join("\n");
    if (at("facts").dataset.text !== text) {
      at("facts").dataset.text = text;
      at("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    }
    buttons(at("panel-actions"), instance.id, actions(instance));
  }

  /** Reads what happened so far. */
  async read() {
    const { id } = this;
    let events = [];
    try {
      for (let after = 0, more = true, pages = 0; more && pages < PAGES_MAX; pages += 1) {
        const page = await call("GET", path(id, `/events?after=${after}&limit=500`));
        events = [...events, ...page.items].slice(-SHOWN_MAX);
        more = page.more;
        after = page.items.at(-1)?.position ?? after;
      }
    } catch (problem) {
      if (this.id === id) say(at("panel-message"), problem.message, "problem");
      return;
    }
    if (this.id === id) for (const event of events) this.add(event);
  }

  /** Shows one more event, the newest on top. */
  add(event) {
    if (event.instance !== this.id || this.#positions.has(event.position)) return;
    this.#positions.add(event.position);
    const by = [event.actor ? `by ${event.actor}` : null, event.reason ? element("q", {}, event.reason) : null];
    const said = by.filter((part) => part !== null).flatMap((part, place) => (place > 0 ? [": ", part] : [part]));
    const item = element("li", {},
      element("time", { dateTime: event.at }, when(event.at)),
      event.text,
      said.length > 0 ? element("span", { className: "by" }, ...said) : null);
    item.dataset.position = event.position;
    const log = at("log");
    // Reading and following overlap, so an event may come late.
    const older = [...log.children].find((other) => Number(other.dataset.position) < event.position);
    log.insertBefore(item, older ?? null);
    if (log.children.length > SHOWN_MAX) log.lastElementChild.remove();
  }
}

function when(text) {
  const time = new Date(text);
  return Number.isNaN(time.valueOf()) ? text : time.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}
