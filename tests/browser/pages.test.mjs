// Two pages, each in its own browser context.
import assert from "node:assert/strict";
import { test } from "node:test";
import { launchTwo, open, serve } from "./harness.mjs";

const MIB = 1 << 20;
const limit = { timeout: 120_000 };

async function pair(t, options = {}) {
  const relay = await serve(t);
  const browsers = await launchTwo(t);
  const pages = await Promise.all(browsers.map((browser) => open(t, browser, `${relay.http}/peer.html`)));
  const config = { relays: [relay.relay], iceServers: relay.iceServers, ...options };
  const [a, b] = await Promise.all(pages.map((page) => page.evaluate((config) => peer.start(config), config)));
  return { relay, pages, a, b };
}

test("two pages connect directly and echo 10 MiB", limit, async (t) => {
  const { pages, b } = await pair(t);
  pages[1].evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
  await pages[0].evaluate((ticket) => peer.connect(ticket), b.ticket);
  await pages[0].evaluate(() => peer.path("direct"));
  const { sent, received } = await pages[0].evaluate((size) => peer.echoed("echo/1", size), 10 * MIB);
  assert.equal(received, sent);
});

test("a page sends its addresses with its offer, and closes the connection that it did not need", limit, async (t) => {
  const { pages, b } = await pair(t);
  // Firefox gathers nothing before it makes a description.
  const gathers = await pages[0].evaluate(() => {
    const made = new RTCPeerConnection({ iceCandidatePoolSize: 1 });
    made.close();
    return made.getConfiguration().iceCandidatePoolSize === 1;
  });
  const isSpare = (made) => made.signalingState !== "closed" && made.getConfiguration().iceCandidatePoolSize === 1;
  if (gathers) await pages[0].waitForFunction(`peer.connections.some(${isSpare})`);
  pages[1].evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
  await pages[0].evaluate((ticket) => peer.connect(ticket), b.ticket);
  await pages[0].evaluate(() => peer.path("direct"));
  const offers = await pages[1].evaluate(() => peer.descriptions);
  assert.deepEqual(offers.map((sdp) => sdp.includes(" typ srflx")), [gathers]);
  await pages[0].evaluate(() => peer.held.me.close());
  await pages[0].waitForFunction(() => peer.connections.every((made) => made.signalingState === "closed"));
});

test("datagrams go from page to page and back", limit, async (t) => {
  const { pages, b } = await pair(t);
  pages[1].evaluate(() => peer.serveDatagrams()).catch(() => {}); // ends with the page
  await pages[0].evaluate((ticket) => peer.connect(ticket), b.ticket);
  await pages[0].evaluate(() => peer.path("direct"));
  const { size, back, wrong } = await pages[0].evaluate(() => peer.ticks(100));
  assert.deepEqual([size, wrong], [1120, []]);
  assert.ok(back >= 90, `${back} of 100 came back`);
  const refused = await pages[0].evaluate(() => peer.outcome(async () => peer.held.connection.sendDatagram("text")));
  assert.equal(refused.error?.code, "invalid_config");
});

test("two pages that dial each other at once end up with one connection each", limit, async (t) => {
  const { pages, a, b } = await pair(t);
  for (const page of pages) page.evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
  const dial = (page, ticket) => page.evaluate((ticket) => peer.connect(ticket), ticket);
  await Promise.all([dial(pages[0], b.ticket), dial(pages[1], a.ticket)]);
  // Each page serves on its connection too, because the other page's streams may come there.
  for (const page of pages) page.evaluate(() => peer.echoStreams(peer.held.connection)).catch(() => {});
  for (const page of pages) {
    await page.evaluate(() => peer.path("direct"));
    const { sent, received } = await page.evaluate(() => peer.echoed("echo/1", 100_000));
    assert.equal(received, sent);
    assert.equal(await page.evaluate(async () => (await peer.held.me.report()).connections), 1);
  }
});

test("reset codes go from page to page, over a data channel and over the relay", limit, async (t) => {
  for (const direct of [true, false]) {
    const { pages, b } = await pair(t, { direct });
    pages[1].evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
    await pages[0].evaluate((ticket) => peer.connect(ticket), b.ticket);
    if (direct) await pages[0].evaluate(() => peer.path("direct"));
    const { read, written } = await pages[0].evaluate(() => peer.resetWith(0xffff_ffff));
    for (const { error } of [read, written]) assert.deepEqual([error?.code, error?.resetCode], ["stream_reset", 0xffff_ffff]);
    // The pipe that serves the echo passes the code on.
    for (const [reason, code] of [[{ resetCode: 9 }, 9], ["no code", 0]]) {
      const { error } = await pages[0].evaluate((reason) => peer.stopWith(reason), reason);
      assert.deepEqual([error?.code, error?.resetCode], ["stream_reset", code]);
    }
    const refused = await pages[0].evaluate(async () => peer.outcome(async () => peer.drain((await peer.held.connection.open("nobody/1")).readable)));
    assert.equal(refused.error?.code, "protocol_refused");
  }
});

test("with `direct: false` a page stays on the relay", limit, async (t) => {
  const { pages, b } = await pair(t, { direct: false });
  pages[1].evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
  await pages[0].evaluate((ticket) => peer.connect(ticket), b.ticket);
  const { sent, received } = await pages[0].evaluate((size) => peer.echoed("echo/1", size), MIB);
  assert.equal(received, sent);
  assert.equal(await pages[0].evaluate(() => peer.held.connection.path.path), "relayed");
});

test("a reader that pauses stops the writer, and 100 MiB arrive whole", { timeout: 300_000 }, async (t) => {
  const { pages, b } = await pair(t);
  const total = 100 * MIB;
  const receiving = pages[1].evaluate(async (total) => {
    for await (const connection of peer.held.me.incoming()) {
      for await (const { readable } of connection.incomingStreams()) {
        await new Promise((resolve) => (peer.resume = resolve));
        let [bytes, faults] = [0, 0];
        for await (const part of readable) {
          for (let i = 0; i < part.length; i += 4096) if (part[i] !== ((bytes + i) >>> 12) % 251) faults += (bytes + i) % 4096 === 0;
          bytes += part.length;
        }
        return { bytes, faults, memory: performance.memory?.usedJSHeapSize };
      }
    }
  }, total);
  await pages[0].evaluate((ticket) => peer.connect(ticket), b.ticket);
  await pages[0].evaluate(() => peer.path("direct"));
  await pages[0].evaluate(async (total) => {
    const { writable } = await peer.held.connection.open("bulk/1");
    const writer = writable.getWriter();
    peer.taken = 0;
    peer.writing = (async () => {
      const part = new Uint8Array(65_536);
      for (let at = 0; at < total; at += part.length) {
        for (let i = 0; i < part.length; i += 4096) part[i] = ((at + i) >>> 12) % 251;
        await writer.write(part);
        peer.taken = at + part.length;
      }
      await writer.close();
    })();
  }, total);
  // The writer has stalled when two samples a second apart are equal. There is no event for that.
  const stalled = await pages[0].evaluate(async () => {
    for (let before = -1; before !== peer.taken; ) {
      before = peer.taken;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    return peer.taken;
  });
  t.diagnostic(`the writer stalled after ${(stalled / MIB).toFixed(1)} MiB`);
  assert.ok(stalled < 16 * MIB, `the writer wrote ${stalled} bytes to a paused reader`);
  await pages[1].evaluate(() => peer.resume());
  const received = await receiving;
  await pages[0].evaluate(() => peer.writing);
  assert.deepEqual([received.bytes, received.faults], [total, 0]);
});
