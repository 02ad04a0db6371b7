// Tests the adapter from the bindings' streams to WHATWG byte streams, over an end in memory.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ThroughlineError } from "../dist/errors.js";
import { duplex } from "../dist/streams.js";

/** Makes the bindings' side of a stream, which hands out `chunks` and records what is done to it. */
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
    stop(code) {
      log.push(["stop", code]);
    },
    reset(code) {
      log.push(["reset", code]);
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
  assert.deepEqual(raw.log, [["stop", 0]]);
});

test("the reason of an abort or a cancellation is a code where it has one, and never an error", async () => {
  const reasons = [
    [7, 7],
    [{ resetCode: 8 }, 8],
    [new ThroughlineError("stream_reset", "cut", { resetCode: 9 }), 9],
    [0xffff_ffff, 0xffff_ffff],
    ...[2 ** 32, -1, 1.5, NaN, "7", 7n, null, undefined, new Error("why"), { resetCode: "7" }, { resetCode: -1 }, Symbol("7"), () => 7].map(
      (reason) => [reason, 0],
    ),
  ];
  for (const [reason, code] of reasons) {
    const raw = end({ chunks: [bytes(1)] });
    const { readable, writable } = duplex(raw);
    await readable.cancel(reason);
    await writable.abort(reason);
    assert.deepEqual(raw.log, [["stop", code], ["reset", code]], String(reason?.toString?.() ?? reason));
  }
});

test("a pipe hands the code of a reset on", async () => {
  const fault = { code: "stream_reset", message: "reset by the peer", attempts: [], resetCode: 5 };
  const to = end();
  await assert.rejects(duplex(end({ fault })).readable.pipeTo(duplex(to).writable), { resetCode: 5 });
  assert.deepEqual(to.log, [["reset", 5]]);
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
  assert.deepEqual(raw.log, [["reset", 0]]);
  const transferred = new Uint8Array(4);
  structuredClone(transferred, { transfer: [transferred.buffer] });
  for (const chunk of ["text", 5, null, undefined, {}, [1], Symbol("x"), () => {}, transferred.buffer]) {
    const raw = end();
    await assert.rejects(duplex(raw).writable.getWriter().write(chunk), { code: "invalid_config", message: /^chunk: / });
    assert.deepEqual(raw.log, []);
  }
});

test("a fault of the bindings arrives as a ThroughlineError with its code", async () => {
  const fault = { code: "stream_reset", message: "reset by the peer", attempts: [], resetCode: 3 };
  const { readable, writable } = duplex(end({ fault }));
  const expected = { name: "ThroughlineError", code: "stream_reset", message: "reset by the peer", resetCode: 3 };
  await assert.rejects(readable.getReader().read(), expected);
  await assert.rejects(writable.getWriter().write(bytes(1)), expected);
});
