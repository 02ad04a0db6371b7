// A stock js-libp2p peer, for a page and for Node.js.
import { circuitRelayTransport } from "@libp2p/circuit-relay-v2";
import { identify } from "@libp2p/identify";
import { noise } from "@libp2p/noise";
import { ping } from "@libp2p/ping";
import { webRTC } from "@libp2p/webrtc";
import { webSockets } from "@libp2p/websockets";
import { yamux } from "@libp2p/yamux";
import { multiaddr } from "@multiformats/multiaddr";
import { createLibp2p } from "libp2p";

/** The longest read buffer of a stream, and how many streams a protocol may have: more than any test uses. */
const [ROOM, STREAMS] = [64 << 20, 4096];
const onPurpose = new Error("reset on purpose");
const hex = (bytes) => [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * Starts a peer. With `relay`, it resolves after a reservation there. `protocols` are functions of a
 * stream, besides those of this file. `transports` are added to those of a page.
 */
export async function create({ relay, iceServers = [], protocols = {}, transports = [] } = {}) {
  const libp2p = await createLibp2p({
    addresses: { listen: relay ? [`${relay}/p2p-circuit`, "/webrtc"] : [] },
    transports: [webSockets(), webRTC({ rtcConfiguration: { iceServers } }), circuitRelayTransport(), ...transports],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    // Without enough CPU, Chromium loses a whole window at once and needs some ten seconds to recover,
    // and pings wait for that. js-libp2p would give the connection up after 5 s.
    connectionMonitor: { abortConnectionOnPingFailure: false },
    services: { identify: identify(), ping: ping() },
  });
  const streams = { maxInboundStreams: STREAMS, maxOutboundStreams: STREAMS, runOnLimitedConnection: true };
  for (const [protocol, serve] of Object.entries({ "/echo/1": echo, "/count/1": count, "/reset/1": aborted, ...protocols })) {
    await libp2p.handle(protocol, (stream) => serve(roomy(stream)).catch((error) => console.error(protocol, String(error))), streams);
  }
  const addresses = () => libp2p.getMultiaddrs().map(String).filter((address) => address.includes("/p2p-circuit/webrtc"));
  while (relay && !addresses().length) await new Promise((resolve) => libp2p.addEventListener("self:peer:update", resolve, { once: true }));

  const within = (ms = 20_000) => ({ signal: AbortSignal.timeout(ms) });
  const open = async (address, protocol) => roomy(await libp2p.dialProtocol(multiaddr(address), protocol, { ...within(), ...streams }));
  const connections = (peerId) => libp2p.getConnections().filter((connection) => connection.remotePeer.toString() === peerId);

  /** Sends `size` random bytes, half-closes, and reads the answer. */
  async function echoed(address, protocol, size) {
    const stream = await open(address, protocol);
    const reading = everything(stream);
    const sent = [];
    for (let left = size; left > 0; left -= sent.at(-1).length) {
      sent.push(crypto.getRandomValues(new Uint8Array(Math.min(left, 32 * 1024))));
      await send(stream, sent.at(-1));
    }
    // The peer acknowledges the end when it has read everything, and some of Chromium's transfers are slow.
    await stream.close(within(100_000));
    const received = await reading;
    return { bytes: received.length, sent: await sha256(joined(sent)), received: await sha256(received) };
  }

  /** Makes `count` streams, `width` at a time, of which each carries a few bytes there and back. Returns how many failed. */
  async function short(address, protocol, count, width, deadline = 10_000) {
    const failed = [];
    const data = new Uint8Array(100);
    const one = async () => {
      const stream = roomy(await libp2p.dialProtocol(multiaddr(address), protocol, { ...within(deadline), ...streams }));
      const reading = everything(stream);
      await send(stream, data);
      await stream.close(within(deadline));
      const { length } = await before(reading, deadline);
      if (length !== data.length) throw new Error(`${length} bytes came back`);
    };
    let left = count;
    const worker = async () => {
      while (left > 0 && failed.length < width) {
        const number = count - left--;
        await one().catch((error) => failed.push(`${number}: ${error.name}: ${error.message}`));
      }
    };
    await Promise.all(Array.from({ length: width }, worker));
    return failed;
  }

  return {
    libp2p,
    peerId: libp2p.peerId.toString(),
    addresses: addresses(),
    open,
    echoed,
    short,
    /** Dials, and forgets the connection. */
    dial: async (address, ms) => void (await libp2p.dial(multiaddr(address), within(ms))),
    /** Returns the remote multiaddresses of the connections to `peerId`. */
    paths: (peerId) => connections(peerId).map((connection) => connection.remoteAddr.toString()),
    connections,
    /** Sends a byte and waits until it comes back. */
    async byte(address, protocol) {
      const stream = await open(address, protocol);
      await send(stream, new Uint8Array(1));
      await stream[Symbol.asyncIterator]().next();
      return stream;
    },
    /** Pings `count` times, each on a stream of its own. */
    async pings(address, count) {
      for (let i = 0; i < count; i++) await libp2p.services.ping.ping(multiaddr(address), within());
    },
    /** Opens a stream, sends a little, and resets it. */
    async reset(address, protocol, size = 1000) {
      const stream = await open(address, protocol);
      await send(stream, new Uint8Array(size));
      stream.abort(onPurpose);
    },
  };
}

export async function send(stream, bytes) {
  if (!stream.send(bytes)) await stream.onDrain();
}

/**
 * js-libp2p cannot slow a WebRTC peer down. It resets a stream whose reader is 4 MiB behind, which
 * happens on a busy machine. The tests do not test that limit.
 */
const roomy = (stream) => Object.assign(stream, { maxReadBufferLength: ROOM });

/** Sends bytes back as they come, and closes after the other side has closed. */
async function echo(stream) {
  for await (const bytes of stream) await send(stream, bytes);
  await stream.close({ signal: AbortSignal.timeout(60_000) });
}

/** Reads to the other side's half-close, and answers only then. This shows that a half-close closes one direction. */
async function count(stream) {
  const { length } = await everything(stream);
  await send(stream, new TextEncoder().encode(String(length)));
  await stream.close({ signal: AbortSignal.timeout(60_000) });
}

const aborted = async (stream) => stream.abort(onPurpose);

/** Returns what the other side sends until it closes. */
export async function everything(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part.subarray());
  return joined(parts);
}

function joined(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (bytes.set(part, at), at + part.length), 0);
  return bytes;
}

const sha256 = async (bytes) => hex(await crypto.subtle.digest("SHA-256", bytes));

/** Resolves as `promise` does, if that is soon enough. */
export function before(promise, ms) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`nothing for ${ms} ms`)), ms)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
