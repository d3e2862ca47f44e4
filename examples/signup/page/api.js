// Talks to the JSON API, and builds elements whose texts are only ever texts.

/** What went wrong, in words for people. `field` names what to correct, where that is known. */
export class Problem extends Error {
  constructor(message, status, field) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

/** Sends a request and answers with its JSON. Throws a Problem. */
export async function call(method, path, body, headers = {}) {
  const request = { method, headers: { ...headers } };
  if (body !== undefined) {
    request.headers["content-type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    throw new Problem("The service cannot be reached at the moment.", 0);
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const field = answer.field ? ` (${answer.field})` : "";
  throw new Problem((answer.detail ?? `The service answered ${response.status}.`) + field, response.status, answer.field);
}

/** The path of an instance, and of what belongs to it. */
export const path = (id, rest = "") => `/api/instances/${encodeURIComponent(id)}${rest}`;

/** An element with properties and children; a string among the children becomes text. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The element of this id. */
export const at = (id) => document.getElementById(id);

/** Shows a message, or takes it away. */
export function say(place, text, kind = "news") {
  place.dataset.kind = kind;
  place.textContent = text;
}

/** A link's address, if it is one that a browser may open. */
export function web(address) {
  return /^https?:\/\//.test(address ?? "") ? address : null;
}
