// What went wrong, beside what the visitor did: one sentence, what to do, and why each way failed.
import { el, ms } from "./dom.js";
import { strategyName } from "./names.js";

/**
 * Shows `error` in `element`, which gets the focus, and gives it back. `hint` says what to do, in the place of the
 * usual words. `again` does once more what has failed.
 */
export function showFault(element, error, { hint = hints[error.code], again } = {}) {
  const ways = failedWays(error.attempts ?? []);
  const before = document.activeElement;
  const button = (text, className, work) => {
    const onclick = () => {
      hideFault(element);
      before.focus();
      work?.();
    };
    return el("button", { type: "button", className, onclick }, text);
  };
  element.replaceChildren(
    el("p", {}, el("strong", {}, error.message ?? String(error)), ...(error.code ? [" ", el("code", {}, error.code)] : [])),
    ...(hint ? [el("p", {}, hint)] : []),
    ...(ways.length ? [el("details", {}, el("summary", {}, "What was tried"), el("ul", {}, ...ways.map((way) => el("li", {}, way))))] : []),
    again ? button("Try again", "plain", again) : button("Dismiss", "quiet"),
  );
  element.hidden = false;
  element.scrollIntoView({ block: "nearest" });
  element.focus({ preventScroll: true });
}

/** Says of each way why it failed. A way that was tried several times has one line, with why the last try failed. */
function failedWays(attempts) {
  const failed = attempts.filter(({ outcome }) => outcome === "failed");
  return [...Map.groupBy(failed, ({ strategy }) => strategy)].map(([strategy, tries]) => {
    const { endedMs, reason } = tries.at(-1);
    const often = tries.length > 1 ? `, ${tries.length} tries` : "";
    return `${strategyName(strategy)}${often}, after ${ms(endedMs - tries[0].startedMs)}${reason ? `: ${reason}` : ""}`;
  });
}

export function hideFault(element) {
  element.hidden = true;
  element.replaceChildren();
}

const hints = {
  invalid_ticket: "Ask the peer for a fresh ticket and paste all of it.",
  no_relay: "Check that the relay runs, and its address under “Relays and ICE servers”.",
  unreachable: "The peer or its relay may be gone. Try again, or ask the peer for a fresh ticket.",
  connection_lost: "Every path was lost, and none came back in time. Connect again.",
  connection_closed: "The peer or this page closed the connection.",
  unsupported_platform: "Open this page in a current browser, over https or from localhost.",
  limit_exceeded: "Close what is not needed, or try again later.",
  access_denied: "The relay does not admit this page. Its operator can, or another relay.",
  quota_exceeded: "The relay has carried as much as it may for this page. Try again later, or use another relay.",
};
