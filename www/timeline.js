// Shows how a connection came about: one bar of paths, and one row of thin bars for each way, on one axis.
import { el, ms } from "./dom.js";
import { strategyName } from "./names.js";

export class Timeline {
  #element;
  #paths = [];
  #attempts = [];

  constructor(element) {
    this.#element = element;
  }

  /** Adds the path from `at` milliseconds on: `direct`, `turn`, `relayed`, `lost` or `closed`. */
  path(kind, at) {
    // A path may follow another one of its kind.
    if (this.#paths.at(-1)?.kind === kind) return;
    this.#paths.push({ kind, at });
    this.#draw();
  }

  attempt(attempt) {
    this.#attempts.push(attempt);
    this.#draw();
  }

  #draw() {
    const last = Math.max(...this.#paths.map(({ at }) => at), ...this.#attempts.map(({ endedMs }) => endedMs), 1);
    const end = last * 1.25; // the present path goes on
    const bar = (kind, from, to) => {
      const element = el("span", { className: "bar", data: { kind } });
      element.style.left = `${(from / end) * 100}%`;
      element.style.right = `${100 - (to / end) * 100}%`;
      return element;
    };
    const row = (name, when, bars, { whole = false, reason } = {}) => {
      const track = el("span", { className: "track" }, ...bars);
      const item = el("div", { className: whole ? "whole" : "" }, el("span", { className: "name" }, name), track, el("span", { className: "when" }, when));
      if (reason) item.append(el("span", { className: "reason" }, reason));
      item.setAttribute("role", "listitem");
      return item;
    };
    const paths = this.#paths
      .filter(({ kind }) => kind !== "closed")
      .map((path) => {
        const next = this.#paths[this.#paths.indexOf(path) + 1]?.at ?? end;
        return bar(path.kind, path.at, next);
      });
    const latest = this.#paths.at(-1);
    this.#element.replaceChildren(
      ...(paths.length ? [row("path", `${latest.kind} at ${ms(latest.at)}`, paths, { whole: true })] : []),
      // A way that was tried several times has one row.
      ...[...Map.groupBy(this.#attempts, ({ strategy }) => strategy)].map(([strategy, tries]) => {
        const { outcome, endedMs } = tries.findLast(({ outcome }) => outcome !== "cancelled") ?? tries.at(-1);
        const failed = outcome === "failed" ? tries.findLast((attempt) => attempt.outcome === "failed") : undefined;
        const bars = tries.map((attempt) => bar(attempt.outcome, attempt.startedMs, attempt.endedMs));
        return row(strategyName(strategy), `${outcome} ${ms(endedMs)}`, bars, { reason: failed?.reason });
      }),
    );
  }
}
