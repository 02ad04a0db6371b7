// js-libp2p from npm, in Chromium, with our native and our wasm peer over our relay. The tests cover
// `/webrtc` in both roles, streams in both directions, half-close, reset, and 10 MiB with equal hashes.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { copyFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { STREAMS, connect, launch, listen, open, root, serve, temporary } from "../browser/harness.mjs";
import { bundle } from "./bundle.mjs";
import { ticket } from "./ticket.mjs";

const MIB = 1 << 20;
const limit = { timeout: 120_000 };

/** Starts our relay, a browser, and a js-libp2p page. */
async function stage(t) {
  const site = temporary(t);
  await bundle(site);
  for (const file of ["peer.html", "peer.js"]) copyFileSync(`${root}tests/browser/site/${file}`, join(site, file));
  const [relay, browser] = await Promise.all([serve(t, site), launch(t)]);
  const page = await open(t, browser, `${relay.http}/libp2p.html`, "node");
  const { peerId, addresses } = await page.evaluate((options) => node.start(options), { relay: relay.relay, iceServers: relay.iceServers });
  const address = addresses.find((address) => address.startsWith(relay.relay));
  return { relay, browser, page, peerId, address, ticket: ticket(relay.relay, peerId) };
}

/** Starts a page with our wasm peer. */
async function ours(t, { relay, browser }) {
  const page = await open(t, browser, `${relay.http}/peer.html`);
  const options = { relays: [relay.relay], iceServers: relay.iceServers, protocols: ["echo/1", "count/1", "reset/1"] };
  return { page, ...(await page.evaluate((options) => peer.start(options), options)) };
}

const webrtc = (relay, peerId) => `${relay}/p2p-circuit/webrtc/p2p/${peerId}`;

/** js-libp2p dials `address`, echoes, resets, and echoes again, all over `/webrtc`. */
async function exercise(page, address, peerId) {
  await page.evaluate((address) => node.echoed(address, "/echo/1", 1000), address);
  assert.ok((await page.evaluate((peerId) => node.paths(peerId), peerId)).some((path) => path.includes("/webrtc")));

  const { bytes, sent, received } = await page.evaluate(([address, size]) => node.echoed(address, "/echo/1", size), [address, 10 * MIB]);
  assert.deepEqual([bytes, received], [10 * MIB, sent]);

  // A browser uses the id of a channel again as soon as it may.
  for (let i = 0; i < 100; i++) await page.evaluate((address) => node.reset(address, "/echo/1"), address);
  const after = await page.evaluate((address) => node.echoed(address, "/echo/1", 50_000), address);
  assert.equal(after.received, after.sent);
}

test("js-libp2p dials our native peer", limit, async (t) => {
  const theirs = await stage(t);
  const native = await listen(t, theirs.relay, "--echo");
  await exercise(theirs.page, webrtc(theirs.relay.relay, native.peerId), native.peerId);
});

test("no short stream of js-libp2p to our native peer is lost, ten at a time", { timeout: 120_000 + STREAMS * 20 }, async (t) => {
  const theirs = await stage(t);
  const native = await listen(t, theirs.relay, "--echo");
  const address = webrtc(theirs.relay.relay, native.peerId);
  assert.deepEqual(await theirs.page.evaluate(([address, count]) => node.short(address, "/echo/1", count, 10), [address, STREAMS]), []);
});

test("js-libp2p dials twenty native peers, each as soon as it is ready", limit, async (t) => {
  const theirs = await stage(t);
  for (let i = 0; i < 20; i++) {
    const native = await listen(t, theirs.relay, "--echo");
    await theirs.page.evaluate((address) => node.echoed(address, "/echo/1", 1000), webrtc(theirs.relay.relay, native.peerId));
    await native.stop();
  }
});

test("our native peer dials js-libp2p and sends it a file", limit, async (t) => {
  const theirs = await stage(t);
  const bytes = randomBytes(10 * MIB);
  const path = join(temporary(t), "data.bin");
  writeFileSync(path, bytes);
  const arrived = theirs.page.evaluate(() => node.happened("file"));
  const native = await connect(t, theirs.relay, theirs.ticket, "--wait-direct", "20", "--send", path);
  const direct = await native.event("path", ({ path }) => path === "direct");
  t.diagnostic(`direct after ${Math.round(direct.ms)} ms`);
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  assert.equal((await native.event("sent")).sha256, sha256);
  assert.deepEqual(await arrived, { size: bytes.length, sha256 });
  assert.equal(await native.exited, 0);
});

test("js-libp2p dials our wasm peer", limit, async (t) => {
  const theirs = await stage(t);
  const wasm = await ours(t, theirs);
  wasm.page.evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
  await exercise(theirs.page, webrtc(theirs.relay.relay, wasm.peerId), wasm.peerId);
});

test("our wasm peer dials js-libp2p", limit, async (t) => {
  const theirs = await stage(t);
  const { page } = await ours(t, theirs);
  const connected = await page.evaluate((ticket) => peer.connect(ticket), theirs.ticket);
  assert.equal(connected.peerId, theirs.peerId);
  await page.evaluate(() => peer.path("direct"));

  await t.test("an answer comes after a half-close", async () => {
    const answer = await page.evaluate(async () => {
      const { readable, writable } = await peer.held.connection.open("count/1");
      const writer = writable.getWriter();
      await writer.write(new Uint8Array(5000));
      await writer.close();
      return new Response(readable).text();
    });
    assert.equal(answer, "5000");
  });

  await t.test("their reset is our stream_reset, and the connection goes on", async () => {
    const { error } = await page.evaluate(() =>
      peer.outcome(async () => {
        const { readable } = await peer.held.connection.open("reset/1");
        return peer.drain(readable);
      }),
    );
    assert.equal(error?.code, "stream_reset");
    const again = await page.evaluate(() => peer.echoed("echo/1", 50_000));
    assert.equal(again.received, again.sent);
  });

  await t.test("a protocol they do not serve is protocol_refused", async () => {
    const { error } = await page.evaluate(() => peer.outcome(() => peer.held.connection.open("nothing/1")));
    assert.equal(error?.code, "protocol_refused");
  });

  await t.test("they take no datagrams, and none reaches them as a channel", async () => {
    const { error } = await page.evaluate(() => peer.outcome(async () => peer.held.connection.sendDatagram(new Uint8Array(1))));
    assert.equal(error?.code, "unsupported");
    assert.deepEqual(await page.evaluate(() => [peer.held.connection.maxDatagramSize, peer.lanes]), [undefined, []]);
  });

  await t.test("10 MiB come back whole", async () => {
    const { bytes, sent, received } = await page.evaluate((size) => peer.echoed("echo/1", size), 10 * MIB);
    assert.deepEqual([bytes, received], [10 * MIB, sent]);
  });
});
