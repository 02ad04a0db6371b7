// The log of events, for the page and for a file. It is bounded, and the oldest lines go first.
import { el, find } from "./dom.js";

const MOST = 500;
const started = performance.now();
const entries = [];

export function log(event, detail = {}) {
  const at = Math.round(performance.now() - started) / 1000;
  entries.push({ at, event, ...detail });
  if (entries.length > MOST) entries.shift();
  const list = find("#log");
  const said = Object.entries(detail).filter(([, value]) => value !== undefined && value !== null);
  const text = said.map(([key, value]) => `${key}=${typeof value === "object" ? JSON.stringify(value) : value}`).join(" ");
  list.append(el("li", {}, el("time", {}, at.toFixed(3)), el("span", {}, `${event} ${text}`)));
  if (list.children.length > MOST) list.firstChild.remove();
  list.scrollTop = list.scrollHeight;
}

export function save(bytes, name) {
  const url = URL.createObjectURL(bytes);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export const saveLog = () => {
  const lines = entries.map((entry) => `${JSON.stringify(entry)}\n`);
  save(new Blob(lines, { type: "application/x-ndjson" }), "throughline-log.ndjson");
};
