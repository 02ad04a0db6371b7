// The API in a worker, with the peer connections of the page by `throughline/bridge`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, launch, listen, open, serve } from "./harness.mjs";

const MIB = 1 << 20;
const limit = { timeout: 120_000 };
const kinds = ["dedicated", "shared"];

/** Starts a relay, a native peer that echoes, and a page with a worker that has a peer. */
async function stage(t, kind, late) {
  const relay = await serve(t);
  const [native, browser] = await Promise.all([listen(t, relay, "--echo"), launch(t)]);
  const page = await host(t, browser, relay, kind, late);
  const options = { relays: [relay.relay], iceServers: relay.iceServers };
  const own = await run(page, (options) => peer.start(options), options);
  return { relay, native, browser, page, options, own };
}

async function host(t, browser, relay, kind, late) {
  const page = await open(t, browser, `${relay.http}/host.html`, "host");
  await page.evaluate(([kind, late]) => host.start(kind, late), [kind, late]);
  return page;
}

/** Evaluates a function in the worker of a page. */
const run = (page, work, argument) => page.evaluate(([source, argument]) => host.run(source, argument), [String(work), argument]);

async function direct(page, native) {
  const connected = await run(page, (ticket) => peer.connect(ticket), native.ticket);
  assert.equal(connected.peerId, native.peerId);
  return run(page, () => peer.path("direct"));
}

for (const kind of kinds) {
  test(`a ${kind} worker connects directly to a native peer: 10 MiB, short streams, datagrams`, limit, async (t) => {
    const { native, page } = await stage(t, kind);
    const { strategy, ms } = await direct(page, native);
    t.diagnostic(`direct by ${strategy} after ${Math.round(ms)} ms`);
    const begun = performance.now();
    const { bytes, sent, received } = await run(page, (size) => peer.echoed("echo/1", size), 10 * MIB);
    assert.deepEqual([bytes, received], [10 * MIB, sent]);
    t.diagnostic(`10 MiB there and back in ${Math.round(performance.now() - begun)} ms`);
    assert.deepEqual(await run(page, () => peer.short("echo/1", 500, 10)), []);
    const refused = await run(page, () => peer.outcome(async () => peer.drain((await peer.held.connection.open("nobody/1")).readable)));
    assert.equal(refused.error?.code, "protocol_refused");
    const { size, back, wrong } = await run(page, () => peer.ticks(100));
    assert.deepEqual([size, wrong], [1120, []]);
    assert.ok(back >= 90, `${back} of 100 came back`);
    await run(page, () => peer.held.me.close());
    await page.waitForFunction(() => host.states().every((state) => state === "closed"));
  });

  test(`a native peer connects directly to a ${kind} worker that attached before the page served`, limit, async (t) => {
    const { relay, own, page } = await stage(t, kind, true);
    run(page, () => peer.serveEcho()).catch(() => {}); // ends with the page
    const native = await connect(t, relay, own.ticket, "--ping", "3", "--wait-direct", "20");
    await native.event("path", ({ path }) => path === "direct");
    assert.equal(await native.exited, 0);
  });

  test(`a paused reader in a ${kind} worker stops the writer, and a paused peer stops the worker`, limit, async (t) => {
    const { native, page } = await stage(t, kind);
    await direct(page, native);
    // Nothing is read, so the echo stops, and then the writer.
    const { stalled, whole } = await run(page, async () => {
      const { readable, writable } = await peer.held.connection.open("echo/1");
      const writer = writable.getWriter();
      const part = new Uint8Array(65_536);
      let [taken, back] = [0, 0];
      const writing = (async () => {
        for (; taken < 32 * part.length * 16; taken += part.length) await writer.write(part);
        await writer.close();
      })();
      // The writer has stalled when two samples half a second apart are equal. There is no event for that.
      let stalled;
      for (let before = -1; before !== taken; await new Promise((resolve) => setTimeout(resolve, 500))) before = stalled = taken;
      for await (const bytes of readable) back += bytes.length;
      await writing;
      return { stalled, whole: back === taken };
    });
    assert.ok(stalled < 16 * MIB, `${stalled} bytes were written to a paused reader`);
    assert.ok(whole);
  });
}

for (const kind of kinds) {
  test(`a data channel between two connections of a ${kind} worker: order, back-pressure and bounds`, limit, async (t) => {
    const { page } = await stage(t, kind);
    const found = await run(page, async () => {
      const within = (what, wait) => Promise.race([wait, new Promise((_, reject) => setTimeout(() => reject(new Error(`no ${what}`)), 20_000))]);
      const happens = (target, type) => within(type, new Promise((resolve) => target.addEventListener(type, resolve, { once: true })));
      const [a, b] = [new RTCPeerConnection(), new RTCPeerConnection()];
      for (const [from, to] of [[a, b], [b, a]]) {
        from.addEventListener("icecandidate", ({ candidate }) => candidate && to.addIceCandidate(candidate));
      }
      const channel = a.createDataChannel("numbers");
      channel.bufferedAmountLowThreshold = 65_536;
      const numbers = [];
      let whole;
      const arrived = new Promise((resolve) => (whole = resolve));
      b.addEventListener("datachannel", ({ channel }) => {
        channel.binaryType = "arraybuffer";
        channel.addEventListener("message", ({ data }) => numbers.push(new Uint32Array(data)[0]) === 512 && whole());
      });
      const opened = happens(channel, "open");
      const offer = await a.createOffer();
      await a.setLocalDescription(offer);
      await b.setRemoteDescription(offer);
      const answer = await b.createAnswer();
      await b.setLocalDescription(answer);
      await a.setRemoteDescription(answer);
      await opened;
      const part = new Uint32Array(4096);
      let most = 0;
      for (part[0] = 0; part[0] < 512; part[0]++) {
        while (channel.bufferedAmount >= 262_144) await happens(channel, "bufferedamountlow");
        channel.send(new Uint8Array(part.buffer));
        most = Math.max(most, channel.bufferedAmount);
      }
      await within(`more than ${numbers.length} messages`, arrived);
      const inOrder = numbers.every((number, at) => number === at);
      const states = [a.connectionState, b.connectionState, a.localDescription.type];
      const kinds = new Set([...(await a.getStats()).values()].map(({ type }) => type));
      const refused = await a.setRemoteDescription({ type: "answer", sdp: "v=1" }).catch((error) => error);
      const idle = new RTCPeerConnection();
      for (let made = 0; made < 512; made++) idle.createDataChannel("");
      const full = await peer.outcome(async () => idle.createDataChannel(""));
      idle.close();
      const late = await peer.outcome(async () => idle.createDataChannel(""));
      // A writer that does not wait loses the channel, and not the page.
      const flooded = await peer.outcome(async () => {
        const closed = happens(channel, "close");
        for (let sent = 0; sent < 1024 && channel.readyState === "open"; sent++) {
          channel.send(new Uint8Array(262_144));
          if (sent % 64 === 63) await new Promise((resolve) => setTimeout(resolve));
        }
        await closed;
      });
      const after = channel.readyState;
      a.close();
      b.close();
      return {
        inOrder, most, states, kinds: [...kinds].sort(), flooded, after,
        refused: refused instanceof DOMException, full: full.error?.name, late: late.error?.name,
      };
    });
    assert.ok(found.inOrder);
    assert.ok(found.most <= 262_144 + 16_384, `${found.most} bytes were buffered`);
    assert.deepEqual(found.states, ["connected", "connected", "offer"]);
    assert.ok(found.kinds.includes("candidate-pair") && found.kinds.includes("local-candidate"), found.kinds.join());
    assert.ok(found.refused);
    assert.deepEqual([found.full, found.late], ["OperationError", "InvalidStateError"]);
    assert.ok(found.flooded.error?.name === "OperationError" || found.after === "closed", JSON.stringify(found.flooded));
  });
}

test("a bridge that the page closes ends its connections as ICE does, and another one takes over", limit, async (t) => {
  const { native, page } = await stage(t, "dedicated");
  await direct(page, native);
  run(page, () => {
    peer.held.paths = [];
    (async () => {
      for await (const event of peer.held.connection.paths()) peer.held.paths.push(event.path);
    })();
  });
  await page.evaluate(() => host.close());
  assert.ok((await page.evaluate(() => host.states())).every((state) => state === "closed"));
  await run(page, () => peer.path("relayed"));
  const over = await run(page, () => peer.echoed("echo/1", 100_000));
  assert.equal(over.received, over.sent);
  await page.evaluate(() => host.again());
  await run(page, () => peer.path("direct"));
  const { sent, received } = await run(page, (size) => peer.echoed("echo/1", size), MIB);
  assert.equal(received, sent);
});

test("a worker that is terminated leaves no connection on its page", limit, async (t) => {
  const { native, page } = await stage(t, "dedicated");
  await direct(page, native);
  assert.ok((await page.evaluate(() => host.states())).includes("connected"));
  await page.evaluate(() => host.terminate());
  await page.evaluate(() => host.closed());
  assert.ok((await page.evaluate(() => host.states())).every((state) => state === "closed"));
});

test("a page of a shared worker closes: the peer stays, and its paths come back by another page", limit, async (t) => {
  const { native, page } = await stage(t, "shared");
  await direct(page, native);
  const other = await page.context().newPage();
  await other.goto(page.url());
  await other.waitForFunction(() => "host" in window);
  await other.evaluate(() => host.start("shared"));
  assert.deepEqual(await other.evaluate(() => host.states()), []);
  // A stream outlives the page that carried it.
  await run(other, async () => {
    const { readable, writable } = await peer.held.connection.open("echo/1");
    peer.held.stream = { reader: readable.getReader(), writer: writable.getWriter() };
    await peer.held.stream.writer.write(new Uint8Array([1]));
    await peer.held.stream.reader.read();
  });
  await page.close();
  await run(other, () => peer.path("relayed"));
  const value = await run(other, async () => {
    await peer.held.stream.writer.write(new Uint8Array([2]));
    return [...(await peer.held.stream.reader.read()).value];
  });
  assert.deepEqual(value, [2]);
  await run(other, () => peer.path("direct"));
  assert.ok((await other.evaluate(() => host.states())).includes("connected"));
});

test("a page says what is missing, and a worker does", limit, async (t) => {
  const relay = await serve(t);
  const page = await open(t, await launch(t), `${relay.http}/host.html`, "host");
  const codes = await page.evaluate(async () => {
    const { attach, serve } = await import("/npm/dist/bridge.js");
    const code = async (work) => {
      try {
        await work();
      } catch (error) {
        return error.code;
      }
    };
    const source = `import { attach } from "${location.origin}/npm/dist/bridge.js";
      attach({ signal: AbortSignal.abort() }).catch(({ name }) => postMessage(name));`;
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
    const aborted = await new Promise((resolve) => (worker.onmessage = ({ data }) => resolve(data)));
    return [await code(() => attach()), await code(() => serve()), aborted];
  });
  assert.deepEqual(codes, ["unsupported_platform", "invalid_config", "AbortError"]);
});

test("the page draws its frames during 50 Mbit/s in the worker, half of them in each direction", limit, async (t) => {
  const { native, page, options } = await stage(t, "dedicated");
  await direct(page, native);
  const [ms, mbit] = [4_000, 25];
  const measured = async (load) => {
    const [frames, { rate, missing }] = await Promise.all([page.evaluate((ms) => host.frames(ms), ms), load]);
    assert.equal(missing, 0);
    return { ...frames, mbit: rate };
  };
  // How many frames are late without any load depends on the machine, and on what else it does at that moment.
  const share = ({ late, rate }) => (late * 1000) / (rate * ms);
  const rounds = [];
  for (let round = 0; round < 3; round++) {
    const idle = await page.evaluate((ms) => host.frames(ms), ms);
    const inWorker = await measured(run(page, ([ms, mbit]) => peer.load("echo/1", mbit, ms), [ms, mbit]));
    rounds.push({ idle, inWorker, more: share(inWorker) - share(idle) });
  }
  const { idle, inWorker, more } = rounds.toSorted((a, b) => a.more - b.more)[0];
  await run(page, () => peer.held.me.close());
  await page.evaluate(async ([options, ticket]) => {
    await import("./peer.js");
    await peer.start(options);
    await peer.connect(ticket);
    await peer.path("direct");
  }, [options, native.ticket]);
  const onPage = await measured(page.evaluate(([ms, mbit]) => peer.load("echo/1", mbit, ms), [ms, mbit]));
  for (const [where, { rate, late, longest, mbit }] of Object.entries({ idle, inWorker, onPage })) {
    const load = mbit ? `${mbit.toFixed(1)} Mbit/s each way, ` : "";
    t.diagnostic(`${where}: ${load}${rate.toFixed(1)} frames a second, ${late} over 33 ms, the longest ${Math.round(longest)} ms`);
  }
  assert.ok(more <= 0.05, `in each round more frames were late than without a load, at least ${more * 100} % of all`);
});
