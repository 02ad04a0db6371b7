// The demo page's protocols with both ends in memory: hashes, refusals, and streams that end early.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";
import { chatLine, chatLines, receiveFile, sendFile } from "../../www/protocols.js";
import { hex, Sha256 } from "../../www/sha256.js";

/** Makes the two ends of a stream. */
function pair() {
  const [there, back] = [new TransformStream(), new TransformStream()];
  return [
    { writable: there.writable, readable: back.readable },
    { writable: back.writable, readable: there.readable },
  ];
}

const file = (name, bytes) => Object.assign(new Blob([bytes]), { name });
const nothing = () => {};
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** Encodes a `file/1` stream that opens with this header and these contents. */
function opening(header, ...contents) {
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(text.length);
  return Buffer.concat([length, text, ...contents]);
}

async function write(end, bytes) {
  const writer = end.writable.getWriter();
  await writer.write(bytes);
  await writer.close();
}

/** Sends `bytes` to a receiver. Returns its answer and its error. */
async function refusal(bytes) {
  const [opener, receiver] = pair();
  write(opener, bytes).catch(nothing); // the receiver may stop reading
  const [receiving, answer] = await Promise.allSettled([receiveFile(receiver, nothing, nothing), new Response(opener.readable).arrayBuffer()]);
  return { error: receiving.reason, answer: JSON.parse(Buffer.from(answer.value).subarray(4).toString()) };
}

test("SHA-256 agrees with OpenSSL around every block boundary, for any split into parts", () => {
  for (const length of [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1000, 100_001]) {
    const bytes = randomBytes(length);
    const cut = Math.floor(length / 3);
    const digest = new Sha256().update(bytes.subarray(0, cut)).update(bytes.subarray(cut)).digest();
    assert.equal(hex(digest), sha256(bytes), `${length} bytes`);
  }
});

test("a file arrives whole, with one hash at both ends, even when it is empty", async () => {
  for (const length of [0, 1, 300_000]) {
    const [opener, receiver] = pair();
    const bytes = randomBytes(length);
    const headers = [];
    const [sent, received] = await Promise.all([
      sendFile(opener, file("a.bin", bytes), nothing),
      receiveFile(receiver, (header) => headers.push(header), nothing),
    ]);
    assert.deepEqual(headers, [{ name: "a.bin", size: length }]);
    assert.equal(sent, sha256(bytes));
    assert.equal(received.sha256, sent);
    assert.deepEqual(Buffer.from(await received.blob.arrayBuffer()), bytes);
  }
});

test("a receiver refuses bad files and says why", async () => {
  const wrong = Buffer.alloc(32);
  for (const [bytes, code] of [
    [opening({ name: "../a", size: 1 }), "bad_name"],
    [opening({ name: ".hidden", size: 1 }), "bad_name"],
    [opening({ name: "a\u0000b", size: 1 }), "bad_name"],
    [opening({ name: "a", size: -1 }), "bad_header"],
    [opening({ name: "a" }), "bad_header"],
    [opening({ name: "a", size: 2 ** 40 }), "too_large"],
    [opening({ name: "a", size: 1 }, Buffer.from("x"), wrong), "hash_mismatch"],
  ]) {
    const { error, answer } = await refusal(bytes);
    assert.deepEqual([answer.ok, answer.code, error.code], [false, code, code]);
  }
});

test("a sender reports a refusal, and a hash that differs, with their codes", async () => {
  for (const [answer, code] of [
    [{ ok: false, code: "disk", message: "no space left" }, "disk"],
    [{ ok: true, sha256: "00" }, "hash_mismatch"],
  ]) {
    const [opener, receiver] = pair();
    receiver.readable.pipeTo(new WritableStream());
    write(receiver, opening(answer));
    await assert.rejects(sendFile(opener, file("a", "text"), nothing), { code });
  }
});

test("a file that ends early is an error, not a short file", async () => {
  const [opener, receiver] = pair();
  const receiving = receiveFile(receiver, nothing, nothing);
  await Promise.all([assert.rejects(receiving, /ended early/), write(opener, opening({ name: "a", size: 10 }, Buffer.from("12345")))]);
});

test("chat lines survive any split of the bytes, also within a character", async () => {
  const bytes = Buffer.concat([chatLine("grüß dich"), chatLine("two\nlines")]);
  const readable = ReadableStream.from(Array.from(bytes, (byte) => Uint8Array.of(byte)));
  const lines = [];
  for await (const line of chatLines(readable)) lines.push(line);
  assert.deepEqual(lines, ["grüß dich", "two lines"]);
});
