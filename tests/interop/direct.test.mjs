// js-libp2p from npm, in Chromium, on our relay by `/webrtc-direct` alone.
import assert from "node:assert/strict";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { launch, listen, open, root, serve, temporary } from "../browser/harness.mjs";
import { bundle } from "./bundle.mjs";

const MIB = 1 << 20;
const limit = { timeout: 180_000 };

/** Starts our relay, a native peer that echoes, and a page with a reservation over `/webrtc-direct`. */
async function stage(t) {
  const site = temporary(t);
  await bundle(site);
  for (const file of ["peer.html", "peer.js"]) copyFileSync(`${root}tests/browser/site/${file}`, join(site, file));
  const [relay, browser] = await Promise.all([serve(t, site), launch(t)]);
  const native = await listen(t, relay, "--echo");
  const page = await open(t, browser, `${relay.http}/libp2p.html`, "node");
  await page.evaluate((relay) => node.start({ relay }), relay.webrtcDirect);
  assert.deepEqual(await page.evaluate((id) => node.paths(id).map((path) => path.includes("/webrtc-direct")), relay.peerId), [true]);
  return { relay, browser, native, page, circuit: `${relay.webrtcDirect}/p2p-circuit/p2p/${native.peerId}` };
}

test("js-libp2p pings our relay over `/webrtc-direct`, each time on a new stream", limit, async (t) => {
  const { page, relay } = await stage(t);
  const begun = performance.now();
  await page.evaluate((address) => node.pings(address, 600), relay.webrtcDirect);
  t.diagnostic(`600 pings in ${Math.round(performance.now() - begun)} ms`);
  assert.equal((await page.evaluate((id) => node.paths(id), relay.peerId)).length, 1);
});

test("js-libp2p resets streams to our relay, and others go on", limit, async (t) => {
  const { page, relay } = await stage(t);
  for (let i = 0; i < 100; i++) await page.evaluate((address) => node.reset(address, "/ipfs/ping/1.0.0", 1000), relay.webrtcDirect);
  await page.evaluate((address) => node.pings(address, 10), relay.webrtcDirect);
});

test("js-libp2p sends 10 MiB through a circuit over `/webrtc-direct`, and gets them back", limit, async (t) => {
  const { page, circuit } = await stage(t);
  for (const size of [8_100, 8_200, 10 * MIB]) {
    const { bytes, sent, received } = await page.evaluate(([address, size]) => node.echoed(address, "/echo/1", size), [circuit, size]);
    assert.deepEqual([bytes, received], [size, sent]);
  }
});
