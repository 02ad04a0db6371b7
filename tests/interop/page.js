// A stock js-libp2p node in a page, which the tests drive through `window.node`.
import { circuitRelayTransport } from "@libp2p/circuit-relay-v2";
import { identify } from "@libp2p/identify";
import { noise } from "@libp2p/noise";
import { ping } from "@libp2p/ping";
import { webRTC, webRTCDirect } from "@libp2p/webrtc";
import { webSockets } from "@libp2p/websockets";
import { yamux } from "@libp2p/yamux";
import { multiaddr } from "@multiformats/multiaddr";
import { createLibp2p } from "libp2p";
import { receiveFile } from "../../www/protocols.js";
import { hex, Sha256 } from "../../www/sha256.js";

let libp2p;
const onPurpose = new Error("reset on purpose");
const events = new EventTarget();
const happened = (name) => new Promise((resolve) => events.addEventListener(name, ({ detail }) => resolve(detail), { once: true }));
const happen = (name, detail) => events.dispatchEvent(new CustomEvent(name, { detail }));

/** Starts the node. With `relay`, it resolves after a reservation there. Returns the id and the dialable addresses. */
async function start({ relay, iceServers = [] }) {
  libp2p = await createLibp2p({
    addresses: { listen: relay ? [`${relay}/p2p-circuit`, "/webrtc"] : [] },
    transports: [webSockets(), webRTC({ rtcConfiguration: { iceServers } }), webRTCDirect(), circuitRelayTransport()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    // Without enough CPU, Chromium loses a whole window at once and needs some ten seconds to recover,
    // and pings wait for that. js-libp2p would give the connection up after 5 s.
    connectionMonitor: { abortConnectionOnPingFailure: false },
    services: { identify: identify(), ping: ping() },
  });
  const handle = (protocol, serve) => libp2p.handle(protocol, (stream) => serve(roomy(stream)).catch((error) => console.error(protocol, String(error))));
  await handle("/echo/1", echo);
  await handle("/file/1", file);
  await handle("/reset/1", async (stream) => stream.abort(onPurpose));
  await handle("/count/1", count);
  while (relay && !addresses().length) await new Promise((resolve) => libp2p.addEventListener("self:peer:update", resolve, { once: true }));
  return { peerId: libp2p.peerId.toString(), addresses: addresses() };
}

const addresses = () => libp2p.getMultiaddrs().map(String).filter((address) => address.includes("/p2p-circuit/webrtc"));

async function send(stream, bytes) {
  if (!stream.send(bytes)) await stream.onDrain();
}

/**
 * js-libp2p cannot slow a WebRTC peer down. It resets a stream whose reader is 4 MiB behind, which
 * happens on a busy machine. The tests do not test that limit.
 */
const roomy = (stream) => Object.assign(stream, { maxReadBufferLength: 64 << 20 });

/** Sends bytes back as they come, and closes after the other side has closed. */
async function echo(stream) {
  for await (const bytes of stream) await send(stream, bytes);
  await stream.close({ signal: AbortSignal.timeout(60_000) });
}

async function file(stream) {
  const parts = stream[Symbol.asyncIterator]();
  const readable = new ReadableStream({
    async pull(controller) {
      const { value, done } = await parts.next();
      if (done) controller.close();
      else controller.enqueue(value.subarray());
    },
  });
  const writable = new WritableStream({ write: (bytes) => send(stream, bytes), close: () => stream.close({ signal: AbortSignal.timeout(60_000) }) });
  const { blob, sha256 } = await receiveFile({ readable, writable }, () => {}, () => {});
  happen("file", { size: blob.size, sha256 });
}

/** Reads to the other side's half-close, and answers only then. This shows that a half-close closes one direction. */
async function count(stream) {
  let bytes = 0;
  for await (const part of stream) bytes += part.byteLength;
  await send(stream, new TextEncoder().encode(String(bytes)));
  await stream.close({ signal: AbortSignal.timeout(60_000) });
}

const open = async (address, protocol) =>
  roomy(await libp2p.dialProtocol(multiaddr(address), protocol, { signal: AbortSignal.timeout(20_000) }));

const dial = async (address) => void (await libp2p.dial(multiaddr(address), { signal: AbortSignal.timeout(20_000) }));

/** Returns the remote multiaddresses of the connections to `peerId`. */
const paths = (peerId) => libp2p.getConnections().filter((c) => c.remotePeer.toString() === peerId).map((c) => c.remoteAddr.toString());

/** Sends `size` random bytes, half-closes, and reads the answer. */
async function echoed(address, protocol, size) {
  const stream = await open(address, protocol);
  const [sent, received] = [new Sha256(), new Sha256()];
  let bytes = 0;
  const reading = (async () => {
    for await (const part of stream) {
      received.update(part.subarray());
      bytes += part.byteLength;
    }
  })();
  for (let left = size; left > 0; ) {
    const part = crypto.getRandomValues(new Uint8Array(Math.min(left, 32 * 1024)));
    left -= part.length;
    sent.update(part);
    await send(stream, part);
  }
  // The peer acknowledges the end when it has read everything, and some of Chromium's transfers are slow.
  await stream.close({ signal: AbortSignal.timeout(100_000) });
  await reading;
  return { bytes, sent: hex(sent.digest()), received: hex(received.digest()) };
}

/** Sends a byte and waits until it comes back. */
async function byte(address, protocol) {
  const stream = await open(address, protocol);
  await send(stream, new Uint8Array(1));
  await stream[Symbol.asyncIterator]().next();
}

/** Pings `count` times, each on a stream of its own. */
async function pings(address, count) {
  for (let i = 0; i < count; i++) await libp2p.services.ping.ping(multiaddr(address), { signal: AbortSignal.timeout(20_000) });
}

/** Opens a stream, sends a little, and resets it. */
async function reset(address, protocol, size = 1000) {
  const stream = await open(address, protocol);
  await send(stream, new Uint8Array(size));
  stream.abort(onPurpose);
}

window.node = { start, dial, paths, echoed, byte, reset, pings, happened, open: async (address, protocol) => void (await open(address, protocol)) };
