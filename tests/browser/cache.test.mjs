// Tests a page that its user leaves, for good or to come back to.
import assert from "node:assert/strict";
import { test } from "node:test";
import { launch, launchWithout, listen, open, serve } from "./harness.mjs";

const limit = { timeout: 120_000 };

/** Connects from a page, leaves the page, and comes back. Resolves with the page. */
async function leaveAndComeBack(t, relay, native, options) {
  const browser = await launchWithout(t, ["--disable-back-forward-cache"]);
  const page = await open(t, browser, `${relay.http}/peer.html`);
  await page.evaluate((options) => peer.start(options), { relays: [relay.relay], iceServers: relay.iceServers, ...options });
  await page.evaluate((ticket) => peer.connect(ticket), native.ticket);
  if (options.direct) await page.evaluate(() => peer.path("direct"));
  await page.evaluate(() => (window.left = true));
  await page.goto(`${relay.http}/health`);
  // A page from the cache is not loaded again, so it is there when the navigation is committed.
  await page.goBack({ waitUntil: "commit" });
  return page;
}

test("a page that comes back from the back/forward cache has its connection and its streams back", limit, async (t) => {
  const relay = await serve(t);
  const native = await listen(t, relay, "--echo");
  const page = await leaveAndComeBack(t, relay, native, { direct: false });
  assert.equal(await page.evaluate(() => window.left), true, "the page was kept");
  const start = Date.now();
  const { sent, received } = await page.evaluate(() => peer.echoed("echo/1", 100_000));
  assert.equal(received, sent);
  t.diagnostic(`100 kB were echoed ${Date.now() - start} ms after the page was back`);
});

test("a page with a direct path is not kept, and the browser says why", limit, async (t) => {
  const relay = await serve(t);
  const native = await listen(t, relay, "--echo");
  const page = await leaveAndComeBack(t, relay, native, { direct: true });
  await page.waitForFunction(() => "peer" in window);
  assert.equal(await page.evaluate(() => window.left), undefined, "the page was loaded again");
  const [navigation] = await page.evaluate(() => JSON.parse(JSON.stringify(performance.getEntriesByType("navigation"))));
  const reasons = new Set(navigation.notRestoredReasons.reasons.map(({ reason }) => reason));
  assert.deepEqual([...reasons], ["rtc"]);
});

for (const direct of [true, false]) {
  const path = direct ? "a direct path" : "a circuit";
  test(`a page that its user leaves for good says goodbye over ${path}`, limit, async (t) => {
    const relay = await serve(t);
    const native = await listen(t, relay, "--echo");
    const page = await open(t, await launch(t), `${relay.http}/peer.html`);
    await page.evaluate((options) => peer.start(options), { relays: [relay.relay], iceServers: relay.iceServers, direct });
    await page.evaluate((ticket) => peer.connect(ticket), native.ticket);
    if (direct) await page.evaluate(() => peer.path("direct"));
    const start = Date.now();
    await page.goto(`${relay.http}/health`);
    const { code } = await native.event("disconnected");
    assert.equal(code, "connection_closed");
    const took = Date.now() - start;
    t.diagnostic(`the peer knew after ${took} ms`);
    // Without the goodbye, the peer notices after its timeouts only, of 10 s and more.
    assert.ok(took < 3000, `${took} ms`);
  });
}
