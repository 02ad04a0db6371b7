// The few functions of a view library that the page needs.
import { strategyName } from "./names.js";

export const find = (selector, root = document) => root.querySelector(selector);

/** Makes an element with properties (`data-*` under `data`) and children. */
export function el(tag, properties = {}, ...children) {
  const { data = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

export function copyButtons(root) {
  for (const button of root.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const label = button.textContent;
      await navigator.clipboard.writeText(find(`#${button.dataset.copy}`).textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = label), 1200);
    });
  }
}

export const shortId = (peerId) => `${peerId.slice(0, 4)}…${peerId.slice(-6)}`;

export function ms(value) {
  if (value === undefined || value === null) return "";
  return value < 10 ? `${value.toFixed(1)} ms` : value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

/** A time for people, from seconds. */
export function duration(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 60 ? `${whole} s` : whole < 3600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  const power = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), units.length - 1);
  return `${(bytes / 1024 ** power).toFixed(power && bytes < 100 * 1024 ** power ? 1 : 0)} ${units[power]}`;
}

/** Shows what went wrong in one sentence, what to do, and in a list that opens why each attempt failed. It gets the focus. */
export function showFault(element, error) {
  const attempts = (error.attempts ?? []).filter(({ outcome }) => outcome === "failed");
  const line = (a) => `${strategyName(a.strategy)}, after ${ms(a.endedMs - a.startedMs)}${a.reason ? `: ${a.reason}` : ""}`;
  element.replaceChildren(
    el("p", {}, el("strong", {}, error.code ? error.message : String(error)), ...(error.code ? [" ", el("code", {}, error.code)] : [])),
    ...(hints[error.code] ? [el("p", {}, hints[error.code])] : []),
    ...(attempts.length
      ? [el("details", {}, el("summary", {}, `${attempts.length} failed ${attempts.length === 1 ? "attempt" : "attempts"}`), el("ul", {}, ...attempts.map((a) => el("li", {}, line(a)))))]
      : []),
    el("button", { type: "button", className: "quiet", onclick: () => hideFault(element) }, "Dismiss"),
  );
  element.hidden = false;
  element.scrollIntoView({ block: "nearest" });
  element.focus({ preventScroll: true });
}

export function hideFault(element) {
  element.hidden = true;
  element.replaceChildren();
}

const hints = {
  invalid_ticket: "Ask the peer for a fresh ticket and paste all of it.",
  no_relay: "Check that the relay runs, and its address under “Relays and ICE servers”.",
  unreachable: "The peer or its relay may be gone. Ask the peer for a fresh ticket.",
  connection_lost: "Every path was lost, and none came back in time. Connect again.",
  connection_closed: "The peer or this page closed the connection.",
  unsupported_platform: "Open this page in a current browser, over https or from localhost.",
};
