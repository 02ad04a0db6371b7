// A tab that shares its peer with others. The tests drive it through `peer`, as any page, and through `tab`.
import { join } from "/npm/dist/tabs.js";
import "./peer.js";

/** The states of the peer connections that this tab has made. */
const connections = [];
globalThis.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(configuration) {
    super(configuration);
    connections.push(this);
  }
};

/** Joins the worker of these options, which is another one for other options. */
async function start(options, kind = "SharedWorker") {
  peer.held.me = await join(() => new globalThis[kind]("shared.js", { type: "module", name: JSON.stringify(options) }));
  const { peerId, ticket } = peer.held.me;
  return { peerId, ticket };
}

/** Serves `echo/1` on what comes to this tab, and keeps who came in `tab.came`. */
async function serve() {
  window.tab.came = [];
  for await (const connection of peer.held.me.incoming()) {
    window.tab.came.push(connection.peerId);
    peer.echoStreams(connection);
  }
}

/** Makes this tab one that the user sees, or does not see. */
function look(state) {
  Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}

/** Opens a stream that the tab keeps. */
async function hold() {
  const { readable, writable } = await peer.held.connection.open("echo/1");
  window.tab.stream = { reader: readable.getReader(), writer: writable.getWriter() };
  return say(1);
}

/** Sends a byte over the stream that the tab keeps, and resolves to the byte that comes back. */
async function say(byte) {
  await window.tab.stream.writer.write(new Uint8Array([byte]));
  return (await window.tab.stream.reader.read()).value[0];
}

window.tab = { start, serve, look, hold, say, join, states: () => connections.map(({ connectionState }) => connectionState) };
