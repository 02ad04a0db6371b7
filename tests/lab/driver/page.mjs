// The functions that run inside the page. Each is sent there as text, so it may use only its argument,
// the page's globals and the npm package.

/** Starts a peer that echoes, and resolves with its ticket. */
export async function listen({ options }) {
  const { Connector } = await import("/npm/dist/index.js");
  const me = (globalThis.me = await Connector.create(options));
  const echo = async (connection) => {
    for await (const stream of connection.incomingStreams()) {
      stream.readable.pipeTo(stream.writable).catch(() => {});
    }
  };
  (async () => {
    for await (const connection of me.incoming()) echo(connection).catch((error) => console.warn(error));
  })().catch((error) => console.warn(error));
  return { ticket: me.ticket, peerId: me.peerId };
}

/**
 * Connects after a rest, echoes a byte without waiting for a path, waits for a direct path and echoes another byte. Resolves
 * with the events in order.
 */
export async function connect({ options, ticket, waitDirectMs, restMs }) {
  const { Connector } = await import("/npm/dist/index.js");
  const events = [];
  const me = (globalThis.me = await Connector.create(options));
  await new Promise((resolve) => setTimeout(resolve, restMs));
  const start = performance.now();
  const ms = () => performance.now() - start;
  const deadline = start + waitDirectMs;
  const within = (promise, limit) =>
    Promise.race([promise, new Promise((_, reject) => setTimeout(() => reject(new Error("timeout")), limit))]);
  try {
    const { stream } = await me.open(ticket, "echo/1");
    const writer = stream.writable.getWriter();
    const reader = stream.readable.getReader();
    const echo = async (byte) => {
      await writer.write(new Uint8Array([byte]));
      const { value } = await within(reader.read(), 10_000);
      if (value?.[0] !== byte) throw new Error(`the echo of ${byte} is ${value}`);
    };
    const early = echo(1).then(() => events.push({ event: "first_byte", ms: ms() }));
    const connection = await me.connect(ticket);
    events.push({ event: "connected", ...connection.path, ms: ms() });
    const paths = connection.paths();
    if (connection.path?.path === "direct") {
      events.push({ event: "path", ...connection.path, ms: ms() });
    } else {
      while (performance.now() < deadline) {
        const next = await within(paths.next(), deadline - performance.now()).catch(() => ({ done: true }));
        if (next.done) break;
        events.push(next.value);
        if (next.value.event === "path" && next.value.path === "direct") break;
      }
    }
    await early;
    // The stream has moved to the direct path and lost nothing.
    await echo(2);
    events.push({ event: "final", ...connection.path, ms: ms() });
    await writer.close();
  } catch (error) {
    events.push({ event: "error", code: error.code ?? error.name, message: String(error.message ?? error) });
  }
  return { events };
}

/** Connects, and echoes eight bytes every 200 ms for as long as the page lives. Reports what happens, as the program does. */
export async function converse({ options, ticket }) {
  const { Connector } = await import("/npm/dist/index.js");
  const me = (globalThis.me = await Connector.create(options));
  const start = performance.now();
  try {
    const connection = await me.connect(ticket);
    report({ event: "path", ...connection.path, ms: performance.now() - start });
    const follow = async () => {
      for await (const event of connection.paths()) report(event);
    };
    follow().catch((error) => console.warn(error));
    const stream = await connection.open("echo/1");
    const writer = stream.writable.getWriter();
    const reader = stream.readable.getReader();
    for (;;) {
      const sent = performance.now();
      await writer.write(new Uint8Array(8));
      for (let left = 8; left > 0; ) {
        const { value, done } = await reader.read();
        if (done) throw new Error("the echo has ended");
        left -= value.length;
      }
      report({ event: "pong", path: connection.path?.path, rtt_ms: performance.now() - sent });
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  } catch (error) {
    report({ event: "error", code: error.code ?? error.name, message: String(error.message ?? error) });
  }
}

/** Connects, waits for a direct path, and sends a file of `bytes` bytes. Resolves with both ends' hashes. */
export async function send({ options, ticket, waitDirectMs, bytes }) {
  const { Connector } = await import("/npm/dist/index.js");
  const me = (globalThis.me = await Connector.create(options));
  const start = performance.now();
  const connection = await me.connect(ticket);
  const connectedMs = performance.now() - start;
  const first = connection.path;
  const until = start + waitDirectMs;
  const paths = connection.paths();
  while (connection.path?.path !== "direct" && performance.now() < until) {
    const timer = new Promise((resolve) => setTimeout(resolve, until - performance.now(), { done: true }));
    if ((await Promise.race([paths.next(), timer])).done) break;
  }
  const directMs = performance.now() - start;

  // The pattern shows any shifted or repeated block.
  const data = new Uint8Array(bytes);
  const words = new Uint32Array(data.buffer, 0, bytes >> 2);
  for (let i = 0, x = 0x9e3779b9; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  const hex = (hash) => Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const framed = (object) => {
    const text = new TextEncoder().encode(JSON.stringify(object));
    const frame = new Uint8Array(4 + text.length);
    new DataView(frame.buffer).setUint32(0, text.length);
    frame.set(text, 4);
    return frame;
  };
  const stream = await connection.open("file/1");
  const writer = stream.writable.getWriter();
  const sent = performance.now();
  await writer.write(framed({ name: "lab.bin", size: bytes }));
  for (let at = 0; at < bytes; at += 256 * 1024) await writer.write(data.subarray(at, at + 256 * 1024));
  await writer.write(digest);
  await writer.close();
  const answer = new Uint8Array(await new Response(stream.readable).arrayBuffer());
  const seconds = (performance.now() - sent) / 1000;
  const receipt = JSON.parse(new TextDecoder().decode(answer.subarray(4)));
  return { first, connectedMs, directMs, path: connection.path, sha256: hex(digest), receipt, seconds };
}

/** Closes the page's peer. */
export async function close() {
  await globalThis.me?.close();
  globalThis.me = undefined;
}
