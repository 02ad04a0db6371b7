// js-libp2p in Node.js, whose WebRTC is libdatachannel, with our native and our wasm peer over our relay.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { after, test } from "node:test";
import { cleanup } from "node-datachannel";
import { WebSocket } from "ws";
import { STREAMS, connect, launch, listen, open, serve } from "../browser/harness.mjs";
import { ticket } from "./ticket.mjs";

// js-libp2p uses these of Node.js 22.
globalThis.WebSocket ??= WebSocket;
Promise.withResolvers ??= function () {
  let parts;
  const promise = new this((resolve, reject) => (parts = { resolve, reject }));
  return { promise, ...parts };
};
const { before, create, everything } = await import("./peer.js");
const { tcp } = await import("@libp2p/tcp");

// Its threads would keep the process alive.
after(() => cleanup());

const MIB = 1 << 20;
const limit = { timeout: 120_000 };

const webrtc = ({ relay }, peerId) => `${relay}/p2p-circuit/webrtc/p2p/${peerId}`;
const circuit = ({ relay }, peerId) => `${relay}/p2p-circuit/p2p/${peerId}`;

/** Starts a js-libp2p peer, in this process. */
async function stock(t, options = {}) {
  const node = await create({ ...options, transports: [tcp()] });
  t.after(() => node.libp2p.stop());
  return node;
}

const timed = async (act) => {
  const start = performance.now();
  await act();
  return performance.now() - start;
};

test("our native peer is direct to js-libp2p in Node.js", limit, async (t) => {
  const relay = await serve(t);
  const node = await stock(t, relay);
  const native = await connect(t, relay, ticket(relay.relay, node.peerId), "--wait-direct", "20");
  await native.event("path", ({ path }) => path === "direct");
  await native.event("first_byte");
  assert.equal(await native.exited, 0);
});
