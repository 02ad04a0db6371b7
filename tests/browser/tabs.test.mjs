// Tabs of one origin that are one peer, by `throughline/tabs`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { chromiumTest, connect, launch, listen, open, serve } from "./harness.mjs";

const MIB = 1 << 20;
const limit = { timeout: 120_000 };

/** Starts a relay and a page in a browser, which has not joined yet. */
async function stage(t, more = {}) {
  const relay = await serve(t);
  const page = await open(t, await launch(t), `${relay.http}/tab.html`, "tab");
  const options = { relays: [relay.relay], iceServers: relay.iceServers, ...more };
  return { relay, page, options };
}

/** Opens another tab beside a page. */
async function another(t, page) {
  const other = await page.context().newPage();
  other.on("pageerror", (error) => t.diagnostic(`tab: ${error.message}`));
  other.on("console", (message) => message.type() === "error" && t.diagnostic(`tab: ${message.text()}`));
  await other.goto(page.url());
  await other.waitForFunction(() => "tab" in window);
  return other;
}

/** Starts a relay and two tabs that have joined, the first one before the second. */
async function pair(t, more) {
  const { relay, page, options } = await stage(t, more);
  const a = await start(page, options);
  const other = await another(t, page);
  const b = await start(other, options);
  // Some browsers show all of their pages without a display, and others one.
  for (const tab of [page, other]) await look(tab, "visible");
  return { relay, options, tabs: [page, other], a, b };
}

const start = (page, options, kind) => page.evaluate(([options, kind]) => tab.start(options, kind), [options, kind]);
const dial = (page, native) => page.evaluate((ticket) => peer.connect(ticket), native.ticket);
const look = (page, state) => page.evaluate((state) => tab.look(state), state);
const direct = (page) => page.evaluate(() => peer.path("direct"));

/** Resolves when the relay holds so many reservations. Only its metrics show that, so they are asked again and again. */
async function reserved(relay, count) {
  for (;;) {
    const metrics = await (await fetch(`${relay.http}/metrics`)).text();
    if (Number(metrics.match(/^throughline_relay_reservations (\d+)$/m)[1]) === count) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test("two tabs are one peer with one reservation, and each moves 10 MiB at the same time", limit, async (t) => {
  const { relay, tabs, a, b } = await pair(t);
  assert.deepEqual(b, a);
  await reserved(relay, 1);
  const natives = await Promise.all(tabs.map(() => listen(t, relay, "--echo")));
  for (const [index, page] of tabs.entries()) {
    assert.equal((await dial(page, natives[index])).peerId, natives[index].peerId);
    await direct(page);
  }
  await reserved(relay, 3);
  const begun = performance.now();
  const moved = await Promise.all(tabs.map((page) => page.evaluate((size) => peer.echoed("echo/1", size), 10 * MIB)));
  t.diagnostic(`2 x 10 MiB there and back in ${Math.round(performance.now() - begun)} ms`);
  for (const { bytes, sent, received } of moved) assert.deepEqual([bytes, received], [10 * MIB, sent]);
  assert.notEqual(moved[0].sent, moved[1].sent);
  for (const page of tabs) {
    assert.deepEqual(await page.evaluate(() => peer.short("echo/1", 100, 10)), []);
    assert.equal((await page.evaluate(async () => peer.held.me.report())).connections, 2);
  }
  const { size, back, wrong, tooLong } = await tabs[1].evaluate(() => peer.ticks(100));
  assert.deepEqual([size, wrong, tooLong.error?.code], [1120, [], "limit_exceeded"]);
  assert.ok(back >= 90, `${back} of 100 came back`);
});

test("an incoming connection goes to one tab: one that the user sees, or else the oldest", limit, async (t) => {
  const { relay, tabs, a } = await pair(t);
  for (const page of tabs) page.evaluate(() => tab.serve()).catch(() => {}); // ends with the page
  const came = () => Promise.all(tabs.map((page) => page.evaluate(() => tab.came.length)));
  const visit = async () => {
    const native = await connect(t, relay, a.ticket, "--ping", "3");
    assert.equal(await native.exited, 0);
    return came();
  };
  assert.deepEqual(await visit(), [1, 0]);
  await look(tabs[0], "hidden");
  assert.deepEqual(await visit(), [1, 1]);
  await look(tabs[1], "hidden");
  assert.deepEqual(await visit(), [2, 1]);
  await tabs[0].close();
  const native = await connect(t, relay, a.ticket, "--ping", "3");
  assert.equal(await native.exited, 0);
  assert.equal(await tabs[1].evaluate(() => tab.came.length), 2);
});

test("a tab that closes takes its own connections, and the others' streams go on without its peer connections", limit, async (t) => {
  const { relay, tabs } = await pair(t);
  const [mine, yours] = await Promise.all(tabs.map(() => listen(t, relay, "--echo")));
  await dial(tabs[0], mine);
  await dial(tabs[1], yours);
  for (const page of tabs) await direct(page);
  // The first tab has made all of them.
  assert.ok((await tabs[0].evaluate(() => tab.states())).filter((state) => state === "connected").length >= 2);
  assert.deepEqual(await tabs[1].evaluate(() => tab.states()), []);
  assert.equal(await tabs[1].evaluate(() => tab.hold()), 1);
  const begun = performance.now();
  await tabs[0].close();
  const { code } = await mine.event("disconnected");
  t.diagnostic(`the peer of the closed tab knew after ${Math.round(performance.now() - begun)} ms`);
  assert.equal(code, "connection_closed");
  assert.equal(await tabs[1].evaluate(() => tab.say(2)), 2);
  await direct(tabs[1]);
  assert.equal(await tabs[1].evaluate(() => tab.say(3)), 3);
  assert.ok((await tabs[1].evaluate(() => tab.states())).includes("connected"));
  assert.equal((await tabs[1].evaluate(() => peer.held.me.report())).connections, 1);
});

/** Crashes the process of a tab. */
async function crash(page) {
  const crashed = page.waitForEvent("crash");
  page.goto("chrome://crash").catch(() => {}); // it never loads
  await crashed;
}

chromiumTest("a tab that crashes takes its own connections, or the worker, and who joins again goes on", limit, async (t) => {
  const { relay, tabs, options } = await pair(t);
  const [mine, yours] = await Promise.all(tabs.map(() => listen(t, relay, "--echo")));
  await dial(tabs[0], mine);
  await dial(tabs[1], yours);
  assert.equal(await tabs[0].evaluate(() => tab.hold()), 1);
  await crash(tabs[1]);
  assert.equal((await yours.event("disconnected")).code, "connection_closed");
  assert.equal(await tabs[0].evaluate(() => tab.say(2)), 2);
  await direct(tabs[0]);
  // Chromium has the worker in the process of the tab that has started it.
  const third = await another(t, tabs[0]);
  await start(third, options);
  await dial(third, mine);
  await crash(tabs[0]);
  assert.deepEqual(await third.evaluate(() => peer.held.connection.closed), { code: "connector_closed" });
  await start(third, options);
  await dial(third, mine);
  assert.equal(await third.evaluate(() => tab.hold()), 1);
});

test("two tabs with one peer have a connection each, and one ends without the other", limit, async (t) => {
  const { relay, tabs } = await pair(t);
  const native = await listen(t, relay, "--echo");
  for (const page of tabs) {
    await dial(page, native);
    assert.equal(await page.evaluate(() => tab.hold()), 1);
  }
  const ended = await tabs[0].evaluate(async () => {
    const reading = peer.outcome(() => tab.stream.reader.read());
    await peer.held.connection.close();
    return { closed: await peer.held.connection.closed, read: (await reading).error?.code };
  });
  assert.deepEqual(ended, { closed: { code: "connection_closed" }, read: "connection_closed" });
  assert.equal(await tabs[1].evaluate(() => tab.say(2)), 2);
  await dial(tabs[0], native);
  assert.equal(await tabs[0].evaluate(() => tab.hold()), 1);
  await tabs[0].evaluate(() => peer.held.me.close());
  assert.equal(await tabs[1].evaluate(() => tab.say(3)), 3);
  await tabs[1].evaluate(() => peer.held.connection.close());
  assert.equal((await native.event("disconnected")).code, "connection_closed");
});

test("reset codes and typed errors cross", limit, async (t) => {
  const { relay, tabs, options } = await pair(t, { connectTimeoutMs: 3000 });
  const page = await open(t, tabs[0].context().browser(), `${relay.http}/peer.html`);
  const { ticket } = await page.evaluate((options) => peer.start(options), options);
  page.evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
  const native = await listen(t, relay);
  await native.stop();
  const gone = native.ticket;
  for (const page of tabs) {
    await dial(page, { ticket });
    const { read, written } = await page.evaluate(() => peer.resetWith(0xffff_ffff));
    for (const { error } of [read, written]) assert.deepEqual([error?.code, error?.resetCode], ["stream_reset", 0xffff_ffff]);
    for (const [reason, code] of [[{ resetCode: 9 }, 9], ["no code", 0]]) {
      const { error } = await page.evaluate((reason) => peer.stopWith(reason), reason);
      assert.deepEqual([error?.code, error?.resetCode], ["stream_reset", code]);
    }
    const outcomes = await page.evaluate(async (gone) => {
      const { me, connection } = peer.held;
      return {
        refused: await peer.outcome(async () => peer.drain((await connection.open("nobody/1")).readable)),
        protocol: await peer.outcome(() => connection.open("")),
        ticket: await peer.outcome(() => me.connect("no ticket")),
        gone: await peer.outcome(() => me.connect(gone)),
        metrics: await peer.outcome(async () => me.metrics()),
      };
    }, gone);
    const codes = Object.values(outcomes).map(({ error }) => error?.code);
    assert.deepEqual(codes, ["protocol_refused", "invalid_protocol", "invalid_ticket", "unreachable", "unsupported"]);
    const { error } = outcomes.gone;
    assert.ok(error.name === "ThroughlineError" && error.message.length > 10, JSON.stringify(error));
    assert.ok(error.attempts.length > 0 && error.attempts.every(({ reason, endedMs }) => reason && endedMs >= 0), JSON.stringify(error));
  }
});

test("a tab that reads nothing stops its writer, and the other tab goes on", limit, async (t) => {
  const { relay, tabs } = await pair(t);
  const natives = await Promise.all(tabs.map(() => listen(t, relay, "--echo")));
  for (const [index, page] of tabs.entries()) {
    await dial(page, natives[index]);
    await direct(page);
  }
  const paused = tabs[0].evaluate(async () => {
    const { readable, writable } = await peer.held.connection.open("echo/1");
    const writer = writable.getWriter();
    const part = new Uint8Array(65_536);
    const most = 32 * 16 * part.length;
    let [taken, back] = [0, 0];
    const writing = (async () => {
      for (; taken < most; taken += part.length) await writer.write(part);
      await writer.close();
    })();
    // The writer has stalled when two samples half a second apart are equal. There is no event for that.
    let stalled;
    for (let before = -1; before !== taken; await new Promise((resolve) => setTimeout(resolve, 500))) before = stalled = taken;
    window.tab.stalled = stalled;
    await new Promise((resolve) => (window.tab.resume = resolve));
    for await (const bytes of readable) back += bytes.length;
    await writing;
    return { stalled, whole: back === most };
  });
  await tabs[0].waitForFunction(() => "resume" in tab);
  const { sent, received } = await tabs[1].evaluate((size) => peer.echoed("echo/1", size), MIB);
  assert.equal(received, sent);
  await tabs[0].evaluate(() => tab.resume());
  const { stalled, whole } = await paused;
  t.diagnostic(`the writer stalled after ${(stalled / MIB).toFixed(1)} MiB`);
  assert.ok(stalled < 16 * MIB, `${stalled} bytes were written to a paused reader`);
  assert.ok(whole);
});

test("the last tab that leaves closes the peer, and who joins again is another peer", limit, async (t) => {
  const { relay, options, tabs, a } = await pair(t);
  const native = await listen(t, relay, "--echo");
  await dial(tabs[0], native);
  await direct(tabs[0]);
  await tabs[1].evaluate(() => peer.held.me.close());
  await reserved(relay, 2);
  assert.equal(await tabs[0].evaluate(() => tab.hold()), 1);
  await tabs[0].evaluate(() => peer.held.me.close());
  assert.equal((await native.event("disconnected")).code, "connection_closed");
  assert.ok((await tabs[0].evaluate(() => tab.states())).every((state) => state === "closed"));
  await reserved(relay, 1);
  const again = await start(tabs[1], options);
  assert.notEqual(again.peerId, a.peerId);
  await dial(tabs[1], native);
  await direct(tabs[1]);
  assert.equal(await tabs[1].evaluate(() => tab.hold()), 1);
});

test("a dedicated worker serves its one tab, where there are no shared ones", limit, async (t) => {
  const { relay, page, options } = await stage(t);
  const native = await listen(t, relay, "--echo");
  await start(page, options, "Worker");
  await dial(page, native);
  await direct(page);
  const { sent, received } = await page.evaluate((size) => peer.echoed("echo/1", size), MIB);
  assert.equal(received, sent);
  await page.evaluate(() => peer.held.me.close());
  assert.equal((await native.event("disconnected")).code, "connection_closed");
});

test("what a worker cannot make, and a worker that is not there, are typed errors", limit, async (t) => {
  const { page, options } = await stage(t);
  const outcome = (options) => page.evaluate((options) => peer.outcome(() => tab.start(options)), options);
  const wrong = await outcome({ ...options, relayReservation: 1 });
  assert.deepEqual([wrong.error?.code, wrong.error?.message], ["invalid_config", 'unknown option "relayReservation": did you mean "relayReservations"?']);
  const unreachable = await outcome({ relays: [options.relays[0].replace(/tcp\/\d+/, "tcp/1")], relayTimeoutMs: 2000 });
  assert.equal(unreachable.error?.code, "no_relay");
  const others = await page.evaluate(async () => {
    const { share } = await import("/npm/dist/tabs.js");
    const module = { type: "module" };
    const outcomes = [
      await peer.outcome(() => tab.join(new SharedWorker("missing.js", module))),
      await peer.outcome(() => tab.join(new Worker("missing.js", module))),
      await peer.outcome(() => tab.join({})),
      await peer.outcome(async () => share()),
      await peer.outcome(() => tab.join(new SharedWorker("/npm/dist/casing.js", module), { signal: AbortSignal.timeout(100) })),
    ];
    return outcomes.map(({ error }) => error?.code);
  });
  // 23 is the code of a `TimeoutError`.
  assert.deepEqual(others, ["io", "io", "invalid_config", "unsupported_platform", 23]);
});

test("a tab makes its worker again if the first does not load or says nothing, as one whose process has just crashed", limit, async (t) => {
  const { page, options } = await stage(t);
  const outcome = (scripts) =>
    page.evaluate(async ([left, name]) => {
      const make = () => new SharedWorker(left.shift(), { type: "module", name });
      const { error } = await peer.outcome(() => tab.join(make));
      return { code: error?.code, left };
    }, [scripts, JSON.stringify(options)]);
  assert.deepEqual(await outcome(["missing.js", "shared.js"]), { code: undefined, left: [] });
  // A script that is no worker of ours stands for one that says nothing.
  assert.deepEqual(await outcome(["/npm/dist/casing.js", "missing.js", "shared.js"]), { code: undefined, left: [] });
  const missing = ["missing.js", "missing.js", "missing.js"];
  assert.deepEqual(await outcome([...missing, "shared.js"]), { code: "io", left: ["shared.js"] });
});
