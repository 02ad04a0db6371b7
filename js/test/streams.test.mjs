// The adapter from the bindings' streams to WHATWG byte streams, over an end in memory.
import assert from "node:assert/strict";
import { test } from "node:test";
import { duplex } from "../dist/streams.js";

/** The bindings' side of a stream: hands out `chunks`, records what is done to it. */
function end({ chunks = [], fault } = {}) {
  const log = [];
  return {
    log,
    async read(max) {
      log.push(["read", max]);
      if (fault) throw fault;
      const chunk = chunks.shift();
      if (chunk && chunk.length > max) chunks.unshift(chunk.subarray(max));
      return chunk?.subarray(0, max);
    },
    async write(bytes) {
      if (fault) throw fault;
      log.push(["write", bytes.byteLength]);
    },
    async finish() {
      log.push(["finish"]);
    },
    stop() {
      log.push(["stop"]);
    },
    reset() {
      log.push(["reset"]);
    },
  };
}

const bytes = (length) => Uint8Array.from({ length }, (_, index) => index);

test("nothing is read before somebody asks, and then once per request", async () => {
  const raw = end({ chunks: [bytes(3), bytes(2)] });
  const reader = duplex(raw).readable.getReader();
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(raw.log, []);
  assert.deepEqual((await reader.read()).value, bytes(3));
  assert.equal(raw.log.length, 1);
  assert.deepEqual((await reader.read()).value, bytes(2));
  assert.equal((await reader.read()).done, true);
});

test("a reader with its own buffer gets at most its size, and then the end", async () => {
  const raw = end({ chunks: [bytes(5)] });
  const reader = duplex(raw).readable.getReader({ mode: "byob" });
  const first = await reader.read(new Uint8Array(4));
  assert.deepEqual(first.value, bytes(5).subarray(0, 4));
  assert.equal((await reader.read(new Uint8Array(4))).value.length, 1);
  assert.equal((await reader.read(new Uint8Array(4))).done, true);
});

test("cancelling tells the peer to stop", async () => {
  const raw = end({ chunks: [bytes(1)] });
  await duplex(raw).readable.cancel();
  assert.deepEqual(raw.log, [["stop"]]);
});

test("a large chunk crosses in parts, and closing half-closes", async () => {
  const raw = end();
  const writer = duplex(raw).writable.getWriter();
  await writer.write(new Uint8Array(600 * 1024).buffer);
  await writer.close();
  assert.deepEqual(raw.log, [["write", 262144], ["write", 262144], ["write", 90112], ["finish"]]);
});

test("aborting resets, and what is no bytes is refused", async () => {
  const raw = end();
  await duplex(raw).writable.abort();
  assert.deepEqual(raw.log, [["reset"]]);
  await assert.rejects(duplex(end()).writable.getWriter().write("text"), { code: "invalid_config" });
});

test("a fault of the bindings arrives as a ThroughlineError with its code", async () => {
  const fault = { code: "stream_reset", message: "reset by the peer", attempts: [] };
  const { readable, writable } = duplex(end({ fault }));
  const expected = { name: "ThroughlineError", code: "stream_reset", message: "reset by the peer" };
  await assert.rejects(readable.getReader().read(), expected);
  await assert.rejects(writable.getWriter().write(bytes(1)), expected);
});
