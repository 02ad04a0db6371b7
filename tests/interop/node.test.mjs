// js-libp2p in Node.js, whose WebRTC is libdatachannel, with our native and our wasm peer over our relay.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { after, test } from "node:test";
import { cleanup } from "node-datachannel";
import { WebSocket } from "ws";
import { STREAMS, connect, listen, serve } from "../browser/harness.mjs";
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

test("js-libp2p in Node.js dials our native peer", limit, async (t) => {
  const relay = await serve(t);
  const [node, native] = [await stock(t), await listen(t, relay, "--echo")];
  const address = webrtc(relay, native.peerId);
  const { bytes, sent, received } = await node.echoed(address, "/echo/1", 10 * MIB);
  assert.deepEqual([bytes, received], [10 * MIB, sent]);
  assert.ok(node.paths(native.peerId).some((path) => path.includes("/webrtc")));

  await t.test("short streams one after another", limit, async () => {
    assert.deepEqual(await node.short(address, "/echo/1", 300, 1), []);
  });
  await t.test("short streams, ten at a time", { timeout: 120_000 + STREAMS * 20 }, async (t) => {
    const ms = await timed(async () => assert.deepEqual(await node.short(address, "/echo/1", STREAMS, 10), []));
    t.diagnostic(`${STREAMS} streams in ${Math.round(ms)} ms`);
  });
  await t.test("the connection closes at once", limit, async () => {
    for (const connection of node.connections(native.peerId)) {
      const ms = await timed(() => connection.close());
      assert.ok(ms < 500, `${connection.remoteAddr}: ${ms} ms`);
    }
  });
});

test("a close right after a connect does not disturb the next connect", limit, async (t) => {
  const relay = await serve(t);
  const [node, native] = [await stock(t), await listen(t, relay, "--echo")];
  const [failed, unended] = [[], []];
  for (let i = 0; i < 100; i++) {
    await node.dial(webrtc(relay, native.peerId)).catch((error) => failed.push(`${i}: ${error.name}: ${error.message}`));
    for (const connection of node.connections(native.peerId)) {
      // The `close` of js-libp2p waits in vain for a stream that its own ping or identify aborts meanwhile,
      // in 5 of 6,800 closes. Between two js-libp2p peers, 1 of 37 closes failed so.
      await connection.close().catch((error) => {
        assert.equal(error.name, "TimeoutError");
        unended.push(i);
        connection.abort(error);
      });
    }
  }
  assert.deepEqual(failed, []);
  assert.ok(unended.length <= 1, `closes that did not end: ${unended}`);
});

/** A TCP port that is free now. */
async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** The ways to a native peer without data channels: how the peer is started, and its address. */
const ways = {
  "a circuit": async (t, relay) => {
    const native = await listen(t, relay, "--echo");
    return { native, address: circuit(relay, native.peerId) };
  },
  TCP: async (t, relay) => {
    const bind = `/ip4/127.0.0.1/tcp/${await freePort()}`;
    const native = await listen(t, relay, "--echo", "--bind", bind);
    return { native, address: `${bind}/p2p/${native.peerId}` };
  },
  WebSocket: async (t, relay) => {
    const bind = `/ip4/127.0.0.1/tcp/${await freePort()}/ws`;
    const native = await listen(t, relay, "--echo", "--bind", bind);
    return { native, address: `${bind}/p2p/${native.peerId}` };
  },
};

for (const [way, start] of Object.entries(ways)) {
  // js-libp2p sends frames as long as the window that it was granted.
  test(`bulk data comes back over ${way}`, limit, async (t) => {
    const relay = await serve(t);
    const [node, { address }] = [await stock(t), await start(t, relay)];
    const { bytes, sent, received } = await node.echoed(address, "/echo/1", 60 * MIB);
    assert.deepEqual([bytes, received], [60 * MIB, sent]);
  });

  test(`900 streams at a time over ${way}`, limit, async (t) => {
    const relay = await serve(t);
    const [node, { address }] = [await stock(t), await start(t, relay)];
    const streams = await Promise.all(Array.from({ length: 900 }, () => node.byte(address, "/echo/1")));
    assert.equal(streams.length, 900);
    await node.byte(address, "/echo/1");
  });
}

test("a native peer refuses the stream above the limit, and the connection goes on", limit, async (t) => {
  const relay = await serve(t);
  const bind = `/ip4/127.0.0.1/tcp/${await freePort()}`;
  const [node, native] = [await stock(t), await listen(t, relay, "--echo", "--bind", bind, "--set", "max_streams=50")];
  const address = `${bind}/p2p/${native.peerId}`;
  const streams = await Promise.all(Array.from({ length: 50 }, () => node.byte(address, "/echo/1")));
  const refused = await timed(() => assert.rejects(before(node.byte(address, "/echo/1"), 5000), /reset|closed/i));
  assert.ok(refused < 1000, `${refused} ms`);
  await streams[0].close();
  await everything(streams[0]);
  while (!(await node.byte(address, "/echo/1").catch(() => undefined)));
});

test("a protocol that a native peer does not serve is refused", limit, async (t) => {
  const relay = await serve(t);
  const [node, native] = [await stock(t), await listen(t, relay, "--echo")];
  await assert.rejects(node.open(webrtc(relay, native.peerId), "/nothing/1"), { name: "UnsupportedProtocolError" });
});

test("a hundred js-libp2p peers in Node.js dial one native peer", limit, async (t) => {
  const relay = await serve(t);
  const native = await listen(t, relay, "--echo");
  const failed = [];
  for (let i = 0; i < 100; i++) {
    const node = await create();
    await node.byte(webrtc(relay, native.peerId), "/echo/1").catch((error) => failed.push(`${i}: ${error.name}: ${error.message}`));
    await node.libp2p.stop();
  }
  assert.deepEqual(failed, []);
});
