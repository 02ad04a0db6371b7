// Pages on a relay that they reach by `/webrtc-direct` alone, without a name and a certificate.
import assert from "node:assert/strict";
import { test } from "node:test";
import { chromiumTest, launch, listen, open, serve } from "./harness.mjs";

const MIB = 1 << 20;
const limit = { timeout: 120_000 };

/** Starts a relay, a native peer that echoes, and `pages` pages. They stay on the relay. */
async function stage(t, pages, ...flags) {
  const relay = await serve(t);
  const [native, browser] = await Promise.all([listen(t, relay, "--echo"), launch(t, ...flags)]);
  const options = { relays: [relay.webrtcDirect], protocols: ["echo/1"], direct: false };
  const all = [];
  for (let i = 0; i < pages; i++) {
    const page = await open(t, browser, `${relay.http}/peer.html`);
    all.push({ page, ...(await page.evaluate((options) => peer.start(options), options)) });
  }
  return { relay, native, pages: all };
}

const reach = (page, ticket) => page.evaluate((ticket) => peer.connect(ticket), ticket);
const echoed = (page, size) => page.evaluate((size) => peer.echoed("echo/1", size), size);

test("10 MiB go from a page to a native peer and back over a `/webrtc-direct` relay", limit, async (t) => {
  const { native, pages: [{ page }] } = await stage(t, 1);
  const { path } = await reach(page, native.ticket);
  assert.equal(path.path, "relayed");
  for (const size of [8_100, 8_200, 70_000, 10 * MIB]) {
    const begun = performance.now();
    const { bytes, sent, received } = await echoed(page, size);
    assert.deepEqual([bytes, received], [size, sent]);
    t.diagnostic(`${size} bytes in ${Math.round(performance.now() - begun)} ms`);
  }
});

test("pages reach each other over it, and 10 MiB go back and forth on two of them at once", limit, async (t) => {
  const { native, pages: [one, other, third] } = await stage(t, 3);
  third.page.evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
  await Promise.all([reach(one.page, third.ticket), reach(other.page, native.ticket)]);
  const all = await Promise.all([echoed(one.page, 10 * MIB), echoed(other.page, 10 * MIB)]);
  for (const { bytes, sent, received } of all) assert.deepEqual([bytes, received], [10 * MIB, sent]);
});

test("streams end in order there, are reset, and come one after another", limit, async (t) => {
  const { native, pages: [{ page }] } = await stage(t, 1);
  await reach(page, native.ticket);
  const results = await page.evaluate(async () => {
    const results = [];
    for (let n = 0; n < 500; n++) {
      if (n % 5 === 4) {
        const { readable, writable } = await peer.held.connection.open("echo/1");
        await writable.abort(new Error("on purpose"));
        const { error } = await peer.outcome(() => peer.drain(readable));
        results.push(error?.code === "stream_reset");
      } else {
        const { sent, received } = await peer.echoed("echo/1", 100);
        results.push(sent === received);
      }
    }
    return results;
  });
  assert.equal(results.filter(Boolean).length, 500);
});

chromiumTest("a page that must not choose its ICE credentials dials version 2", limit, async (t) => {
  const { native, pages: [{ page }] } = await stage(t, 1, "--force-fieldtrials=WebRTC-NoSdpMangleUfrag/Enabled/");
  const munged = await page.evaluate(async () => {
    const connection = new RTCPeerConnection();
    connection.createDataChannel("");
    const { type, sdp } = await connection.createOffer();
    const changed = sdp.replace(/a=ice-ufrag:.*/, "a=ice-ufrag:libp2p+webrtc+v1/abcd");
    return peer.outcome(() => connection.setLocalDescription({ type, sdp: changed }));
  });
  assert.ok(munged.error, "this browser forbids it");
  await reach(page, native.ticket);
  const { bytes, sent, received } = await echoed(page, 10 * MIB);
  assert.deepEqual([bytes, received], [10 * MIB, sent]);
});
