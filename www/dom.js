// The little that the page needs of a view library.

export const find = (selector, root = document) => root.querySelector(selector);

/** An element with properties, `data-*` under `data`, and children. */
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

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  const power = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), units.length - 1);
  return `${(bytes / 1024 ** power).toFixed(power && bytes < 100 * 1024 ** power ? 1 : 0)} ${units[power]}`;
}

/** What went wrong, why each attempt lost, and what to do. */
export function showFault(element, error) {
  const attempts = error.attempts ?? [];
  element.replaceChildren(
    el("strong", {}, error.code ? `${error.message}` : String(error)),
    ...(error.code ? [" ", el("code", {}, error.code)] : []),
    ...(hints[error.code] ? [el("p", {}, hints[error.code])] : []),
    ...(attempts.length
      ? [el("ul", {}, ...attempts.map((a) => el("li", {}, `${a.strategy} ${a.outcome} after ${ms(a.endedMs - a.startedMs)}${a.reason ? `: ${a.reason}` : ""}`)))]
      : []),
  );
  element.hidden = false;
}

const hints = {
  invalid_ticket: "Ask the peer for a fresh ticket and paste all of it.",
  no_relay: "Is the relay running? Its address stands under “Relays and ICE servers”.",
  unreachable: "The peer may be gone, or its relay may be. Ask it for a fresh ticket.",
  connection_lost: "Every path was lost and none came back in time.",
  connection_closed: "The peer, or this page, closed the connection.",
  unsupported_platform: "Open this page in a current browser, over https or from localhost.",
};
