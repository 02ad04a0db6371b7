// A page or a worker with one peer, which the tests drive through `peer`. Handles that tests keep between
// calls are in `held`, because only plain data leaves the page.
import { Connector } from "/npm/dist/index.js";

export const held = {};

/** The data channels for datagrams, and who opened each. */
const lanes = [];

/** All peer connections of the page, and what the peers described to them. */
const connections = [];
const descriptions = [];

globalThis.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(configuration) {
    super(configuration);
    connections.push(this);
    this.addEventListener("datachannel", ({ channel }) => note("peer", channel));
  }

  setRemoteDescription(description) {
    descriptions.push(description.sdp);
    return super.setRemoteDescription(description);
  }

  createDataChannel(label, options) {
    const channel = super.createDataChannel(label, options);
    note("own", channel);
    return channel;
  }
};

function note(opener, { label, ordered, maxRetransmits }) {
  if (label === "datagrams") lanes.push({ opener, ordered, maxRetransmits });
}

async function start(options) {
  held.me = await Connector.create(options);
  return { peerId: held.me.peerId, ticket: held.me.ticket };
}

/** Keeps what happens in a room or a mesh in `held.seen`, as plain data with bytes as text. */
async function watch(happens) {
  held.seen = [];
  for await (const { type, id, from, data } of happens) {
    held.seen.push({ type, id: id ?? from, text: data && new TextDecoder().decode(data) });
  }
}

async function enter(name, options) {
  held.room = await held.me.join(name, options);
  watch(held.room);
}

async function mesh(name, options) {
  const { Mesh } = await import("/npm/dist/mesh.js");
  held.mesh = await Mesh.join(held.me, name, options);
  watch(held.mesh);
}

/** Serves `echo/1` on every incoming connection, and keeps the last connection. */
async function serveEcho() {
  for await (const connection of held.me.incoming()) {
    held.connection = connection;
    echoStreams(connection);
  }
}

async function echoStreams(connection) {
  for await (const stream of connection.incomingStreams()) {
    if (stream.protocol === "echo/1") stream.readable.pipeTo(stream.writable).catch(() => {});
    else if (stream.protocol === "cut/1") cut(stream);
    else if (stream.protocol === "bench/1") count(stream);
    else stream.refuse();
  }
}

/** Sends every datagram back on every incoming connection, and keeps the last connection. */
async function serveDatagrams() {
  for await (const connection of held.me.incoming()) {
    held.connection = connection;
    echoStreams(connection);
    echoDatagrams(connection);
  }
}

async function echoDatagrams(connection) {
  for await (const datagram of connection.datagrams()) connection.sendDatagram(datagram);
}

/** Sends `count` datagrams of the greatest size, one every 10 ms. Returns how many came back, and what was wrong. */
async function ticks(count, connection = held.connection) {
  const back = new Map();
  const wrong = [];
  const size = connection.maxDatagramSize;
  const reads = (async () => {
    for await (const datagram of connection.datagrams()) {
      const number = new DataView(datagram.buffer, datagram.byteOffset).getUint32(0);
      if (back.has(number)) wrong.push(`${number} came twice`);
      if (datagram.length !== size) wrong.push(`${number} has ${datagram.length} bytes`);
      back.set(number, true);
      if (back.size === count) return;
    }
  })();
  for (let number = 0; number < count; number++) {
    const datagram = new Uint8Array(size);
    new DataView(datagram.buffer).setUint32(0, number);
    connection.sendDatagram(datagram);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await Promise.race([reads, new Promise((resolve) => setTimeout(resolve, 2000))]);
  const tooLong = await outcome(async () => connection.sendDatagram(new Uint8Array(size + 1)));
  return { size, back: back.size, wrong, tooLong, lanes };
}

async function connect(ticket) {
  const start = performance.now();
  held.connection = await held.me.connect(ticket);
  return { peerId: held.connection.peerId, path: held.connection.path, ms: performance.now() - start };
}

/** Resolves with the path in use when it is of this kind. */
async function path(kind) {
  const events = held.connection.paths();
  if (held.connection.path?.path === kind) return held.connection.path;
  for await (const event of events) if (event.event === "path" && event.path === kind) return event;
  const { code } = await held.connection.closed;
  throw new Error(`the connection closed before it was ${kind}: ${code}`);
}

/** Takes an upload of `throughline connect --bench`: answers with the number of bytes after the first one. */
async function count({ readable, writable }) {
  const answer = new DataView(new ArrayBuffer(8));
  answer.setBigUint64(0, BigInt((await drain(readable)) - 1));
  const writer = writable.getWriter();
  await writer.write(answer);
  await writer.close();
}

/** Reads a number of four bytes and resets the stream with it. */
async function cut({ readable, writable }) {
  const { value } = await readable.getReader({ mode: "byob" }).read(new Uint8Array(4));
  await writable.abort(new DataView(value.buffer).getUint32(0));
}

/** Makes the other end reset a stream with this code. Returns the outcomes of reading and writing. */
async function resetWith(code, connection = held.connection) {
  const { readable, writable } = await connection.open("cut/1");
  const writer = writable.getWriter();
  const number = new DataView(new ArrayBuffer(4));
  number.setUint32(0, code);
  await writer.write(number);
  return { read: await outcome(() => drain(readable)), written: await outcome(() => writer.write(number)) };
}

/** Stops reading an echo for this reason. Returns the outcome of further writing. */
async function stopWith(reason, connection = held.connection) {
  const { readable, writable } = await connection.open("echo/1");
  const writer = writable.getWriter();
  await readable.cancel(reason);
  return outcome(async () => {
    for (;;) await writer.write(new Uint8Array(65_536));
  });
}

/** Sends `size` random bytes, half-closes, and hashes both the sent and the returned bytes. */
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

/** Sends `mbit` megabits a second to an echo for `ms`. Returns how many a second have come back, and how many bytes are missing. */
async function load(protocol, mbit, ms, connection = held.connection) {
  const { readable, writable } = await connection.open(protocol);
  const writer = writable.getWriter();
  const coming = drain(readable);
  const part = new Uint8Array(32_768);
  const start = performance.now();
  const elapsed = () => performance.now() - start;
  let sent = 0;
  while (elapsed() < ms) {
    for (const due = elapsed() * mbit * 125; sent < due; sent += part.length) await writer.write(part);
    await new Promise((resolve) => setTimeout(resolve, 4));
  }
  await writer.close();
  const back = await coming;
  return { rate: (back * 8) / 1000 / elapsed(), missing: sent - back };
}

/** Opens a stream, and waits until a byte has come back. */
async function byte(protocol, connection = held.connection) {
  const { readable, writable } = await connection.open(protocol);
  const writer = writable.getWriter();
  await writer.write(new Uint8Array(1));
  const reader = readable.getReader();
  await reader.read();
  return { reader, writer };
}

/** Opens `count` streams at once, and keeps them in `held`. */
async function hold(protocol, count) {
  held.streams = await Promise.all(Array.from({ length: count }, () => byte(protocol)));
}

/** Makes `count` streams, `width` at a time, of which each carries a few bytes there and back. Returns what went wrong. */
async function short(protocol, count, width, connection = held.connection) {
  const failed = [];
  const one = async () => {
    const { reader, writer } = await byte(protocol, connection);
    await writer.close();
    while (!(await reader.read()).done);
  };
  let left = count;
  const worker = async () => {
    while (left > 0 && failed.length < width) {
      const number = count - left--;
      const late = new Promise((_, reject) => setTimeout(() => reject(new Error("nothing for 10 s")), 10_000));
      await Promise.race([one(), late]).catch((error) => failed.push(`${number}: ${error.message}`));
    }
  };
  await Promise.all(Array.from({ length: width }, worker));
  return failed;
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

/** Returns the outcome of a promise as plain data. Tests compare codes, which `evaluate` would turn into text. */
async function outcome(work) {
  try {
    return { value: await work() };
  } catch (error) {
    const { name, code, message, attempts, resetCode, retryAfterMs } = error;
    return { error: { name, code, message, attempts, resetCode, retryAfterMs, isError: error instanceof Error } };
  }
}

globalThis.peer = { held, lanes, connections, descriptions, start, enter, mesh, serveEcho, serveDatagrams, echoStreams, ticks, connect, path, echoed, load, resetWith, stopWith, hold, short, drain, outcome, Connector };
