// One attempt to connect, shown beside what was clicked: how long it takes, how to cancel it, and why it failed.
import { el } from "./dom.js";
import { hideFault, showFault } from "./fault.js";
import { log } from "./log.js";

export class Attempt {
  #seconds = el("span");
  #waiting = el("div", { className: "row waiting", hidden: true }, this.#seconds, el("button", { type: "button", className: "quiet", onclick: () => this.#aborting?.abort() }, "Cancel"));
  #fault = el("div", { className: "fault", tabIndex: -1, hidden: true });
  #aborting;

  constructor(place) {
    place.append(this.#waiting, this.#fault);
  }

  /**
   * Resolves to the connection that `connect` makes until its signal aborts, or to undefined. An attempt that is
   * under way is cancelled. If the visitor cancels, `clicked` gets the focus.
   */
  async run(clicked, connect) {
    this.#aborting?.abort();
    const aborting = (this.#aborting = new AbortController());
    hideFault(this.#fault);
    const start = performance.now();
    const say = () => (this.#seconds.textContent = `Connecting, ${Math.round((performance.now() - start) / 1000)} s`);
    say();
    const clock = setInterval(say, 1000);
    this.#waiting.hidden = false;
    try {
      return await connect(aborting.signal);
    } catch (error) {
      if (this.#aborting !== aborting) return undefined;
      if (aborting.signal.aborted) {
        clicked?.focus();
        return undefined;
      }
      log("error", { code: error.code, message: error.message, attempts: error.attempts });
      showFault(this.#fault, error);
    } finally {
      clearInterval(clock);
      if (this.#aborting === aborting) this.#waiting.hidden = true;
    }
  }
}
