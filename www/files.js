// One row for each file in each direction: its progress, its speed, and whether both ends computed the same
// SHA-256.
import { duration, el, find, size } from "./dom.js";
import { save } from "./log.js";
import { receiveFile, sendFile } from "./protocols.js";

export class Files {
  #list;
  #open;
  /** The files that wait for their turn, so that they do not share the path. */
  #turn = Promise.resolve();

  /** `open` opens a `file/1` stream to the peer. */
  constructor(section, open) {
    this.#list = find(".transfers", section);
    this.#open = open;
    const drop = find(".drop", section);
    const input = find("input", drop);
    input.addEventListener("change", () => {
      for (const file of input.files) this.send(file);
      input.value = "";
    });
    for (const type of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(type, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", type === "dragover");
        if (type === "drop") for (const file of event.dataTransfer.files) this.send(file);
      });
    }
  }

  send(file) {
    const row = new Row(this.#list, "↑");
    row.begin(file.name, file.size);
    this.#turn = this.#turn.then(() =>
      row.settle(async (signal) => {
        row.begin(file.name, file.size);
        const sha256 = await sendFile(await this.#open(), file, (sent) => row.progress(sent), signal);
        return `SHA-256 equal at both ends: ${sha256}`;
      }),
    );
  }

  async receive(stream) {
    const row = new Row(this.#list, "↓");
    await row.settle(async (signal) => {
      let file;
      const begin = (header) => row.begin((file = header).name, file.size);
      const { blob, sha256 } = await receiveFile(stream, begin, (received) => row.progress(received), signal);
      row.offer(blob, file.name);
      return `SHA-256 equal at both ends: ${sha256}`;
    });
  }
}

class Row {
  #name = el("span", { className: "name" });
  #rate = el("span", { className: "rate" });
  #bar = el("progress", { max: 1, value: 0 });
  #verdict = el("div", { className: "verdict" });
  #item;
  #arrow;
  #total = 0;
  #start = performance.now();
  #cancelling = new AbortController();
  #cancel = el("button", { type: "button", className: "quiet", onclick: () => this.#cancelling.abort() }, "Cancel");

  constructor(list, arrow) {
    this.#arrow = arrow;
    this.#bar.setAttribute("aria-label", "Progress");
    this.#item = el("li", { data: { state: "running" } }, el("div", { className: "what" }, this.#name, this.#rate, this.#cancel), this.#bar, this.#verdict);
    list.append(this.#item);
  }

  begin(name, total) {
    this.#total = total;
    this.#start = performance.now();
    this.#name.textContent = `${this.#arrow} ${name}`;
    this.progress(0);
  }

  progress(bytes) {
    const seconds = (performance.now() - this.#start) / 1000;
    this.#bar.value = this.#total ? bytes / this.#total : 1;
    const known = seconds > 0.05 && bytes > 0;
    const speed = known ? `, ${size(bytes / seconds)}/s` : "";
    const left = known && bytes < this.#total ? `, ${duration(((this.#total - bytes) * seconds) / bytes)} left` : "";
    this.#rate.textContent = `${size(bytes)} of ${size(this.#total)}${speed}${left}`;
  }

  offer(blob, name) {
    this.#name.append(" ", el("button", { type: "button", className: "quiet", onclick: () => save(blob, name) }, "Save"));
  }

  async settle(work) {
    const { signal } = this.#cancelling;
    try {
      signal.throwIfAborted();
      this.#verdict.textContent = await work(signal);
      this.#item.dataset.state = "done";
    } catch (error) {
      this.#verdict.textContent = signal.aborted ? "cancelled" : `failed: ${error.message ?? error}`;
      this.#item.dataset.state = "failed";
    }
    this.#cancel.remove();
  }
}
