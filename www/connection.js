// One connection on the page: its path as it changes, the chat, and the files.
import { bench, serveBench } from "./bench.js";
import { el, find, ms, shortId } from "./dom.js";
import { showFault } from "./fault.js";
import { Files } from "./files.js";
import { History } from "./history.js";
import { log } from "./log.js";
import { pathNames, strategyName } from "./names.js";
import { paint } from "./person.js";
import { chatLine, chatLines, roundTrips, serveEcho } from "./protocols.js";
import { Timeline } from "./timeline.js";

/** How long a measurement of the throughput takes. */
const BENCH_MS = 3000;

export class ConnectionView {
  #connection;
  #card = find("#connection-template").content.cloneNode(true).firstElementChild;
  #timeline = new Timeline(this.#part(".timeline"));
  #history = new History(this.#part(".history"));
  #chat;
  #files;
  #tell;

  /** `tell` is called when the path is another one. */
  constructor(connection, title, tell) {
    this.#connection = connection;
    this.#tell = tell;
    this.rename(title);
    this.#card.dataset.peer = connection.peerId;
    this.#part(".close").addEventListener("click", () => connection.close());
    this.#part(".dismiss").addEventListener("click", () => this.#dismiss());
    for (const button of this.#card.querySelectorAll("[data-direction]")) {
      button.addEventListener("click", () => this.#bench(button.dataset.direction));
    }
    this.#files = new Files(this.#part(".files"), () => connection.open("file/1"));
    this.#part(".chat form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#say(this.#part(".chat input"));
    });
    find("#connections").prepend(this.#card);
    this.#watchPaths();
    this.#serve();
    this.#measure();
  }

  #part(selector) {
    return find(selector, this.#card);
  }

  /** The kind of the path now, `lost` or `closed`. */
  get path() {
    return this.#part(".badge").dataset.path;
  }

  rename(title) {
    this.#part("h2").textContent = title;
    paint(this.#part(".face"), this.#connection.peerId, title);
  }

  /** Says whether the peer has left the room. Its connection may go on, or wait for a path in vain. */
  showLeft(left) {
    this.#part(".left").hidden = !left;
  }

  /** Brings the card before the eyes and the keyboard of the visitor. */
  reveal() {
    this.#card.scrollIntoView({ block: "start" });
    this.#part("h2").focus({ preventScroll: true });
  }

  async #watchPaths() {
    const events = this.#connection.paths(); // subscribe first, so that no event is missed
    const path = this.#connection.path;
    if (path) this.#showPath({ ...path, ms: 0 });
    for (const attempt of this.#connection.attempts) this.#timeline.attempt(attempt);
    for await (const event of events) {
      const { event: name, ...detail } = event;
      log(name, { peer: shortId(this.#connection.peerId), ...detail });
      if (name === "path") this.#showPath(event);
      else if (name === "attempt") this.#timeline.attempt(event);
      else if (name === "lost") this.#showState("lost", event.ms);
      else if (name === "closed") this.#showState("closed");
    }
    const { code } = await this.#connection.closed;
    this.#showState("closed");
    for (const control of this.#card.querySelectorAll("button:not(.transfers button, .fault button, .dismiss), .tools input")) control.disabled = true;
    this.#part(".close").hidden = true;
    this.#part(".dismiss").hidden = false;
    if (code !== "connection_closed") showFault(this.#part(".fault"), { code, message: "The connection has ended." });
  }

  #showPath({ path, strategy, local, remote, rttMs, ms: at }) {
    this.#showState(path, at);
    // A strategy of the same name says nothing more.
    this.#part(".strategy").textContent = path === strategy || path === "relayed" ? "" : `by ${strategyName(strategy)}`;
    if (rttMs) this.#part(".rtt").textContent = ms(rttMs);
    this.#part(".ends").textContent = remote ? `${local ? `${local}  ↔  ` : ""}${remote}` : "";
  }

  #showState(kind, at) {
    const badge = this.#part(".badge");
    if (badge.dataset.path !== kind) {
      badge.dataset.path = kind;
      badge.textContent = pathNames[kind];
      this.#tell();
    }
    if (at !== undefined) this.#timeline.path(kind, at);
  }

  #dismiss() {
    const next = this.#card.nextElementSibling ?? this.#card.previousElementSibling;
    this.#card.remove();
    (next ? find("h2", next) : find("#people-title")).focus();
  }

  async #bench(direction) {
    const buttons = this.#card.querySelectorAll("[data-direction]");
    const result = this.#part(".speed .result");
    for (const button of buttons) button.disabled = true;
    result.textContent = "Measuring";
    try {
      const rate = await bench(await this.#connection.open("bench/1"), direction, BENCH_MS);
      const path = this.#connection.path?.path;
      result.textContent = `${direction === "upload" ? "Sent" : "Received"} ${rate.toFixed(1)} Mbit/s${path ? `, ${pathNames[path]}` : ""}`;
    } catch (error) {
      result.textContent = "";
      showFault(this.#part(".fault"), error);
    } finally {
      const closed = this.path === "closed";
      for (const button of buttons) button.disabled = closed;
      // The button has lost the focus, and who cannot see the result hears it so.
      if (document.activeElement === document.body) result.focus();
    }
  }

  async #serve() {
    for await (const stream of this.#connection.incomingStreams()) {
      log("stream", { protocol: stream.protocol });
      this.#answer(stream).catch((error) => log("stream failed", { protocol: stream.protocol, message: error.message }));
    }
  }

  async #answer(stream) {
    switch (stream.protocol) {
      case "echo/1":
        return serveEcho(stream);
      case "bench/1":
        return serveBench(stream);
      case "file/1":
        return this.#files.receive(stream);
      case "chat/1":
        this.#chat ??= stream.writable.getWriter();
        return this.#hear(stream.readable);
      default:
        return stream.refuse();
    }
  }

  async #say(input) {
    const text = input.value.trim();
    if (!text) return;
    input.value = "";
    try {
      if (!this.#chat) {
        const { readable, writable } = await this.#connection.open("chat/1");
        this.#chat = writable.getWriter();
        this.#hear(readable).catch((error) => log("chat ended", { message: error.message }));
      }
      this.#line("us", text);
      await this.#chat.write(chatLine(text));
    } catch (error) {
      this.#chat = undefined;
      showFault(this.#part(".fault"), error);
    }
  }

  async #hear(readable) {
    for await (const line of chatLines(readable)) this.#line("peer", line);
  }

  #line(from, text) {
    const lines = this.#part(".lines");
    lines.append(el("li", { data: { from } }, text));
    lines.scrollTop = lines.scrollHeight;
  }

  async #measure() {
    try {
      for await (const rtt of roundTrips(await this.#connection.open("echo/1"))) {
        this.#part(".rtt").textContent = ms(rtt);
        this.#history.add(rtt, this.#connection.path?.path);
      }
    } catch (error) {
      log("no round trips", { message: error.message }); // the peer need not serve echo/1
    }
  }
}
