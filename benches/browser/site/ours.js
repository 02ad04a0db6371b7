// Measures throughput and round trips through the package's API, with the program's `bench/1` and `echo/1`, as
// `window.ours`. `window.peer` starts and connects the peers.
import "./peer.js";

const UPLOAD = 0;
const DOWNLOAD = 1;
const CHUNK = new Uint8Array(65_536).fill(0x5a);

/** Serves both protocols on every incoming connection. */
async function serve() {
  for await (const connection of peer.held.me.incoming()) serveStreams(connection).catch((error) => console.error(String(error)));
}

async function serveStreams(connection) {
  for await (const { protocol, readable, writable } of connection.incomingStreams()) {
    const served = protocol === "echo/1" ? readable.pipeTo(writable) : answer(readable, writable);
    served.catch((error) => console.error(protocol, String(error)));
  }
}

async function answer(readable, writable) {
  const reader = readable.getReader();
  const writer = writable.getWriter();
  let { value: head } = await reader.read();
  if (head[0] === UPLOAD) {
    const count = new DataView(new ArrayBuffer(8));
    count.setBigUint64(0, BigInt(head.length - 1 + (await drain(reader))));
    await writer.write(count);
  } else {
    while (head.length < 5) head = new Uint8Array([...head, ...(await reader.read()).value]);
    await fill(writer, new DataView(head.buffer, head.byteOffset).getUint32(1));
  }
  await writer.close();
}

async function drain(reader) {
  let bytes = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return bytes;
    bytes += value.length;
  }
}

async function fill(writer, ms) {
  for (const start = performance.now(); performance.now() - start < ms; ) await writer.write(CHUNK);
}

const mbit = (bytes, start) => (bytes * 8) / 1000 / (performance.now() - start);

/** Sends for `ms`, and waits until the peer has counted everything. Returns Mbit/s. */
async function upload(ms) {
  const { readable, writable } = await peer.held.connection.open("bench/1");
  const writer = writable.getWriter();
  const start = performance.now();
  await writer.write(new Uint8Array([UPLOAD]));
  await fill(writer, ms);
  await writer.close();
  const count = await new Response(readable).arrayBuffer();
  return mbit(Number(new DataView(count).getBigUint64(0)), start);
}

/** Lets the peer send for `ms`, and reads to the end. Returns Mbit/s. */
async function download(ms) {
  const { readable, writable } = await peer.held.connection.open("bench/1");
  const request = new DataView(new ArrayBuffer(5));
  request.setUint8(0, DOWNLOAD);
  request.setUint32(1, ms);
  const writer = writable.getWriter();
  const start = performance.now();
  await writer.write(request);
  await writer.close();
  return mbit(await drain(readable.getReader()), start);
}

/** Returns the mean of several round trips of `size` bytes in ms. A page's clock is too coarse for a single one. */
async function roundTrip(times, size) {
  const { readable, writable } = await peer.held.connection.open("echo/1");
  const [reader, writer] = [readable.getReader(), writable.getWriter()];
  const once = async () => {
    const writing = writer.write(new Uint8Array(size));
    for (let left = size; left > 0; ) left -= (await reader.read()).value.length;
    await writing;
  };
  await once();
  const start = performance.now();
  for (let i = 0; i < times; i++) await once();
  const ms = (performance.now() - start) / times;
  await writer.close();
  return ms;
}

window.ours = { serve, upload, download, roundTrip };
