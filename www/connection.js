// One connection on the page: its path as it changes, the chat, and the files.
import { el, find, ms, shortId, showFault } from "./dom.js";
import { Files } from "./files.js";
import { log } from "./log.js";
import { chatLine, chatLines, roundTrips, serveEcho } from "./protocols.js";
import { strategyName, Timeline } from "./timeline.js";

const labels = { direct: "direct", relayed: "relayed", turn: "relayed by TURN" };
const SPARK_POINTS = 60;

export class ConnectionView {
  #connection;
  #card = find("#connection-template").content.cloneNode(true).firstElementChild;
  #timeline = new Timeline(this.#part(".timeline"));
  #chat;
  #files;

  constructor(connection, title) {
    this.#connection = connection;
    this.#part("h2").textContent = `${title} ${shortId(connection.peerId)}`;
    this.#card.dataset.peer = connection.peerId;
    this.#part(".close").addEventListener("click", () => connection.close());
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
      else if (name === "lost") this.#showState("lost", "path lost, waiting", event.ms);
      else if (name === "closed") this.#showState("closed", "closed");
    }
    const { code } = await this.#connection.closed;
    this.#showState("closed", "closed");
    for (const control of this.#card.querySelectorAll("button:not(.transfers button), .tools input")) control.disabled = true;
    if (code !== "connection_closed") showFault(this.#part(".fault"), { code, message: "The connection has ended." });
  }

  #showPath({ path, strategy, local, remote, rttMs, ms: at, reason }) {
    this.#showState(path, labels[path] ?? path);
    this.#part(".strategy").textContent = `by ${strategyName(strategy)}`;
    if (rttMs) this.#part(".rtt").textContent = ms(rttMs);
    this.#part(".ends").textContent = remote ? `${local ? `${local}  ↔  ` : ""}${remote}` : "";
    this.#timeline.path(path, at, [labels[path], strategyName(strategy), reason].filter(Boolean).join(", "));
  }

  #showState(kind, label, at) {
    const badge = this.#part(".badge");
    badge.dataset.path = kind;
    badge.textContent = label;
    if (at !== undefined) this.#timeline.path(kind, at, label);
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
    const recent = [];
    try {
      for await (const rtt of roundTrips(await this.#connection.open("echo/1"))) {
        recent.push(rtt);
        if (recent.length > SPARK_POINTS) recent.shift();
        const most = Math.max(...recent);
        this.#part(".rtt").textContent = ms(rtt);
        const points = recent.map((value, i) => `${(i * 120) / (SPARK_POINTS - 1)},${23 - (22 * value) / most}`);
        this.#part(".spark polyline").setAttribute("points", points.join(" "));
      }
    } catch (error) {
      log("no round trips", { message: error.message }); // the peer need not serve echo/1
    }
  }
}
