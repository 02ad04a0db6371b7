// The application protocols of the demo. They are those of the `throughline` program.
import { hex, Sha256 } from "./sha256.js";

const MAX_HEADER = 4096;
const MAX_LINE = 16 * 1024;
const MAX_FILE = 2 ** 30; // a received file is kept in memory until it is saved
const encoder = new TextEncoder();

/** Reads exact numbers of bytes from a byte stream. */
export class Reader {
  #reader;
  #buffer = new Uint8Array();

  constructor(readable) {
    this.#reader = readable.getReader();
  }

  /** Reads at most `most` bytes as they come, or undefined at the end. */
  async some(most) {
    if (!this.#buffer.length) {
      const { value, done } = await this.#reader.read();
      if (done) return undefined;
      this.#buffer = value;
    }
    const part = this.#buffer.subarray(0, most);
    this.#buffer = this.#buffer.subarray(part.length);
    return part;
  }

  async exactly(length) {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; ) {
      const part = await this.some(length - at);
      if (!part) throw new Error("the stream ended early");
      bytes.set(part, at);
      at += part.length;
    }
    return bytes;
  }

  /** Reads to the end, and resolves to how many bytes there were. */
  async count() {
    let total = 0;
    for (let part; (part = await this.some(Infinity)); ) total += part.length;
    return total;
  }

  /** Reads a big-endian length and that many bytes of JSON. */
  async json() {
    const length = new DataView((await this.exactly(4)).buffer).getUint32(0);
    if (length > MAX_HEADER) throw new Error(`a header of ${length} bytes is too long`);
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(await this.exactly(length)));
  }

  cancel(reason) {
    return this.#reader.cancel(reason);
  }
}

function framed(value) {
  const text = encoder.encode(JSON.stringify(value));
  const bytes = new Uint8Array(4 + text.length);
  new DataView(bytes.buffer).setUint32(0, text.length);
  bytes.set(text, 4);
  return bytes;
}

/** `echo/1`: every byte comes back. */
export async function serveEcho({ readable, writable }) {
  await readable.pipeTo(writable);
}

/** Measures round-trip times over one `echo/1` stream, once a second, until the stream ends. */
export async function* roundTrips({ readable, writable }) {
  const reader = new Reader(readable);
  const writer = writable.getWriter();
  for (;;) {
    const start = performance.now();
    await writer.write(new Uint8Array(8));
    await reader.exactly(8);
    yield performance.now() - start;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/** `chat/1`: UTF-8 lines, in both directions. */
export async function* chatLines(readable) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of readable) {
    text += decoder.decode(bytes, { stream: true });
    const lines = text.split("\n");
    text = lines.pop();
    if (text.length > MAX_LINE) throw new Error("a line is too long");
    yield* lines;
  }
}

export const chatLine = (text) => encoder.encode(`${text.replaceAll("\n", " ")}\n`);

/** Sends `file` by `file/1`, until `signal` ends it. Resolves to the hash that both ends computed. */
export async function sendFile({ readable, writable }, file, onProgress, signal = new AbortController().signal) {
  const reader = new Reader(readable);
  const writer = writable.getWriter();
  const stop = () => writer.abort(signal.reason).catch(() => {});
  signal.addEventListener("abort", stop, { once: true });
  // A refusal may come at any time. Then it is reported instead of the write that fails.
  const answer = reader.json();
  answer.catch(() => {});
  const hash = new Sha256();
  try {
    await writer.write(framed({ name: file.name, size: file.size }));
    let sent = 0;
    for await (const bytes of file.stream()) {
      signal.throwIfAborted();
      hash.update(bytes);
      await writer.write(bytes);
      onProgress((sent += bytes.length));
    }
    const digest = hash.digest();
    await writer.write(digest);
    await writer.close();
    const same = accepted(await answer, hex(digest));
    // The receiver's close fails if this side stops reading before the end of the stream.
    await reader.some(1).catch(() => {});
    return same;
  } catch (error) {
    signal.throwIfAborted();
    return accepted(await Promise.race([answer, Promise.reject(error)]), undefined);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

function accepted({ ok, sha256, code, message }, ours) {
  if (!ok) throw Object.assign(new Error(message ?? "the peer refused the file"), { code });
  if (sha256 !== ours) throw Object.assign(new Error("the peer computed another hash"), { code: "hash_mismatch" });
  return sha256;
}

/** Receives a file by `file/1`, until `signal` ends it. Resolves to its bytes as a Blob and its hash. */
export async function receiveFile({ readable, writable }, onHeader, onProgress, signal = new AbortController().signal) {
  const reader = new Reader(readable);
  const writer = writable.getWriter();
  const answer = async (value) => {
    await writer.write(framed(value));
    // A sender that has the answer may close the connection at once.
    await writer.close().catch(() => {});
  };
  const refuse = async (code, message) => {
    await answer({ ok: false, code, message });
    await reader.cancel();
    throw Object.assign(new Error(message), { code });
  };

  const { name, size } = await reader.json();
  if (typeof name !== "string" || !Number.isSafeInteger(size) || size < 0) {
    return refuse("bad_header", "the header has no name or no size");
  }
  if (!/^[^./\\\p{Cc}][^/\\\p{Cc}]{0,254}$/u.test(name)) return refuse("bad_name", "the name is not a plain file name");
  if (size > MAX_FILE) return refuse("too_large", "this page takes files up to 1 GiB");
  onHeader({ name, size });

  const hash = new Sha256();
  const parts = [];
  for (let received = 0; received < size; ) {
    if (signal.aborted) return refuse("cancelled", "the receiver has cancelled");
    const part = await reader.some(size - received);
    if (!part) throw new Error("the stream ended early");
    hash.update(part);
    parts.push(part);
    onProgress((received += part.length));
  }
  const sha256 = hex(hash.digest());
  if (hex(await reader.exactly(32)) !== sha256) return refuse("hash_mismatch", "the bytes that arrived have another hash");
  await answer({ ok: true, sha256 });
  return { blob: new Blob(parts), sha256 };
}
