// Shows how a connection came about: one bar of paths, and one thin bar for each attempt, on one axis.
import { el, ms } from "./dom.js";

const names = { circuit_relay: "relay circuit", stun: "hole punch", upnp: "port mapping", turn: "TURN", birthday: "birthday", direct: "direct" };

export const strategyName = (strategy) => names[strategy] ?? strategy;

export class Timeline {
  #element;
  #paths = [];
  #attempts = [];

  constructor(element) {
    this.#element = element;
  }

  /** Adds the path from `at` milliseconds on: `direct`, `turn`, `relayed`, `lost` or `closed`. */
  path(kind, at, title) {
    this.#paths.push({ kind, at, title });
    this.#draw();
  }

  attempt(attempt) {
    this.#attempts.push(attempt);
    this.#draw();
  }

  #draw() {
    const last = Math.max(...this.#paths.map(({ at }) => at), ...this.#attempts.map(({ endedMs }) => endedMs), 1);
    const end = last * 1.25; // the present path goes on
    const bar = (kind, from, to, title) => {
      const element = el("span", { className: "bar", title, data: { kind } });
      element.style.left = `${(from / end) * 100}%`;
      element.style.right = `${100 - (to / end) * 100}%`;
      return element;
    };
    const row = (name, when, bars, whole = false) => {
      const track = el("span", { className: "track" }, ...bars);
      const item = el("div", { className: whole ? "whole" : "" }, el("span", { className: "name" }, name), track, el("span", { className: "when" }, when));
      item.setAttribute("role", "listitem");
      return item;
    };
    const paths = this.#paths
      .filter(({ kind }) => kind !== "closed")
      .map((path) => {
        const next = this.#paths[this.#paths.indexOf(path) + 1]?.at ?? end;
        return bar(path.kind, path.at, next, path.title);
      });
    const latest = this.#paths.at(-1);
    this.#element.replaceChildren(
      ...(paths.length ? [row("path", `${latest.kind} at ${ms(latest.at)}`, paths, true)] : []),
      ...this.#attempts.map((attempt) => {
        const { strategy, outcome, startedMs, endedMs, reason } = attempt;
        const title = `${outcome}${reason ? `: ${reason}` : ""}`;
        return row(strategyName(strategy), `${outcome} ${ms(endedMs)}`, [bar(outcome, startedMs, endedMs, title)]);
      }),
    );
  }
}
