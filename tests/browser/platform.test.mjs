// Tests places without WebRTC, and wrong input. Both give typed errors that say what to do.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { test } from "node:test";
import { chromiumTest, launch, open, serve } from "./harness.mjs";

const limit = { timeout: 60_000 };

test("a worker without a bridge is told of it", limit, async (t) => {
  const relay = await serve(t);
  const page = await open(t, await launch(t), `${relay.http}/peer.html`);
  const error = await page.evaluate(async () => {
    const source = `import { Connector } from "${location.origin}/npm/dist/index.js";
      Connector.create().catch(({ code, message }) => postMessage({ code, message }));`;
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
    return new Promise((resolve) => (worker.onmessage = ({ data }) => resolve(data)));
  });
  assert.equal(error.code, "unsupported_platform");
  assert.match(error.message, /throughline\/bridge/);
});

chromiumTest("an insecure page is told to use https", limit, async (t) => {
  const relay = await serve(t);
  const { port } = new URL(relay.http);
  const browser = await launch(t, "--host-resolver-rules=MAP insecure.test 127.0.0.1");
  const page = await open(t, browser, `http://insecure.test:${port}/peer.html`);
  const { error } = await page.evaluate(() => peer.outcome(() => peer.start({})));
  assert.equal(error.code, "unsupported_platform");
  assert.match(error.message, /https/);
});

test("wrong input is a ThroughlineError that names the field", limit, async (t) => {
  const relay = await serve(t);
  const page = await open(t, await launch(t), `${relay.http}/peer.html`);
  const create = (options) => page.evaluate((options) => peer.outcome(() => peer.start(options)), options);
  for (const [options, code, named] of [
    [{ relayss: "x" }, "invalid_config", /relay/],
    [{ relays: [relay.relay], connectTimeoutMs: 1 }, "invalid_config", /connect_?timeout/i],
    [{ relays: ["not an address"] }, "invalid_address", /relays/],
    [{ identity: "%%" }, "invalid_identity", /identity/],
    [{ iceServers: [{ urls: "http://x" }] }, "invalid_config", /iceServers/],
  ]) {
    const { error } = await create(options);
    assert.deepEqual([error?.name, error?.code, error?.isError], ["ThroughlineError", code, true], JSON.stringify(options));
    assert.match(error.message, named);
  }

  await page.evaluate((options) => peer.start(options), { relays: [relay.relay] });
  const { error } = await page.evaluate(() => peer.outcome(() => peer.connect("tl1!!")));
  assert.equal(error.code, "invalid_ticket");
});

test("an unreachable relay is named, and an abort is quick", limit, async (t) => {
  const relay = await serve(t);
  const page = await open(t, await launch(t), `${relay.http}/peer.html`);
  const nobody = `/ip4/127.0.0.1/tcp/9/ws/p2p/${relay.peerId}`;
  const { error } = await page.evaluate((options) => peer.outcome(() => peer.start(options)), { relays: [nobody], relayTimeoutMs: 3000 });
  assert.equal(error.code, "no_relay");

  const silent = createServer().listen(0, "127.0.0.1");
  await once(silent, "listening");
  t.after(() => silent.close());
  const mute = `/ip4/127.0.0.1/tcp/${silent.address().port}/ws/p2p/${relay.peerId}`;
  // A signal may come from another window.
  for (const another of [false, true]) {
    const dialled = once(silent, "connection");
    await page.evaluate(
      ([relays, another]) => {
        const { contentWindow } = document.body.appendChild(document.createElement("iframe"));
        const { AbortController } = another ? contentWindow : window;
        peer.held.controller = new AbortController();
        // Nothing but the abort ends it within this test.
        peer.held.creating = peer.Connector.create({ relays, relayTimeoutMs: 600_000, signal: peer.held.controller.signal });
        peer.held.creating.catch(() => {});
      },
      [[mute], another],
    );
    const [socket] = await dialled;
    t.after(() => socket.destroy());
    const { error } = await page.evaluate(() => {
      peer.held.controller.abort(new Error("changed my mind"));
      return peer.outcome(() => peer.held.creating);
    });
    assert.equal(error.message, "changed my mind");
  }
});

test("overlapping calls do not disturb each other, and closing ends everything", limit, async (t) => {
  const relay = await serve(t);
  const page = await open(t, await launch(t), `${relay.http}/peer.html`);
  await page.evaluate((options) => peer.start(options), { relays: [relay.relay] });
  const ends = await page.evaluate(async () => {
    const { me } = peer.held;
    const waiting = [me.incoming().next(), me.incoming().next()];
    await Promise.all([me.report(), me.report(), me.close(), me.close()].map((work) => peer.outcome(() => work)));
    const late = await peer.outcome(() => me.connect(me.ticket));
    return { done: (await Promise.all(waiting)).map(({ done }) => done), late: late.error.code };
  });
  assert.deepEqual(ends, { done: [true, true], late: "connector_closed" });
});
