// A page that holds one peer, driven by the tests through `window.peer`. Handles that tests keep
// between calls are in `held`, since only plain data leaves the page.
import { Connector } from "/npm/dist/index.js";

export const held = {};

async function start(options) {
  held.me = await Connector.create(options);
  return { peerId: held.me.peerId, ticket: held.me.ticket };
}

/** Serves `echo/1` on every connection that comes in, and keeps the last. */
async function serveEcho() {
  for await (const connection of held.me.incoming()) {
    held.connection = connection;
    echoStreams(connection);
  }
}

async function echoStreams(connection) {
  for await (const { protocol, readable, writable } of connection.incomingStreams()) {
    if (protocol === "echo/1") readable.pipeTo(writable).catch(() => {});
    else writable.abort();
  }
}

async function connect(ticket) {
  const start = performance.now();
  held.connection = await held.me.connect(ticket);
  return { peerId: held.connection.peerId, path: held.connection.path, ms: performance.now() - start };
}

/** Resolves once the path in use is of this kind, with it. */
async function path(kind) {
  const events = held.connection.paths();
  if (held.connection.path?.path === kind) return held.connection.path;
  for await (const event of events) if (event.event === "path" && event.path === kind) return event;
  throw new Error(`the connection closed before it was ${kind}`);
}

/** Sends `size` random bytes, half-closes, and hashes both what went and what came back. */
async function echoed(protocol, size, connection = held.connection) {
  const { readable, writable } = await connection.open(protocol);
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 65_536) crypto.getRandomValues(bytes.subarray(at, at + 65_536));
  const sending = (async () => {
    const writer = writable.getWriter();
    await writer.write(bytes);
    await writer.close();
  })();
  const back = new Uint8Array(await new Response(readable).arrayBuffer());
  await sending;
  return { bytes: back.length, sent: await sha256(bytes), received: await sha256(back) };
}

/** Reads to the end. `Response` would turn the stream's error into one of its own. */
async function drain(readable) {
  let length = 0;
  for await (const bytes of readable) length += bytes.length;
  return length;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** What a promise came to: tests compare codes, which `evaluate` would flatten to text. */
async function outcome(work) {
  try {
    return { value: await work() };
  } catch (error) {
    const { name, code, message, attempts } = error;
    return { error: { name, code, message, attempts, isError: error instanceof Error } };
  }
}

window.peer = { held, start, serveEcho, echoStreams, connect, path, echoed, drain, outcome, Connector };
