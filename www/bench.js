// `bench/1`: how many bytes a path carries in a time. The program speaks it, too.
import { Reader } from "./protocols.js";

const UPLOAD = 0;
const DOWNLOAD = 1;
const CHUNK = 64 * 1024;
const MOST_MS = 60_000;

const rate = (bytes, start) => (bytes * 8) / 1000 / (performance.now() - start);

/** Measures for `time` milliseconds, and resolves to megabits a second. */
export async function bench({ readable, writable }, direction, time) {
  const reader = new Reader(readable);
  const writer = writable.getWriter();
  const start = performance.now();
  if (direction === "upload") {
    const chunk = new Uint8Array(CHUNK);
    await writer.write(new Uint8Array([UPLOAD]));
    while (performance.now() - start < time) await writer.write(chunk);
    await writer.close();
    const counted = new DataView((await reader.exactly(8)).buffer).getBigUint64(0);
    return rate(Number(counted), start);
  }
  const request = new DataView(new ArrayBuffer(5));
  request.setUint8(0, DOWNLOAD);
  request.setUint32(1, time);
  await writer.write(new Uint8Array(request.buffer));
  await writer.close();
  return rate(await reader.count(), start);
}

/** Takes part in the measurement of a peer. */
export async function serveBench({ readable, writable }) {
  const reader = new Reader(readable);
  const writer = writable.getWriter();
  const [direction] = await reader.exactly(1);
  if (direction === UPLOAD) {
    const counted = new DataView(new ArrayBuffer(8));
    counted.setBigUint64(0, BigInt(await reader.count()));
    await writer.write(new Uint8Array(counted.buffer));
  } else {
    const time = new DataView((await reader.exactly(4)).buffer).getUint32(0);
    if (direction !== DOWNLOAD || time > MOST_MS) throw new Error("bench: this is no measurement");
    const chunk = new Uint8Array(CHUNK);
    const start = performance.now();
    while (performance.now() - start < time) await writer.write(chunk);
  }
  await writer.close();
}
