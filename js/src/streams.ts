import { ThroughlineError, toError } from "./errors.js";
import type { RawStream } from "../pkg/throughline.js";

/** A byte stream to the peer, with back-pressure both ways. */
export interface DuplexStream {
  /**
   * What the peer writes, as a byte stream: nothing is read ahead of its reader, so a slow reader
   * stops the peer. Ends when the peer closes its side; errors with `stream_reset` when it resets.
   * Cancelling tells the peer to stop.
   */
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>;
  /**
   * What the peer reads. A write resolves when the bytes were taken, which they are only while the
   * peer keeps up. Closing half-closes; aborting resets the stream in both directions.
   */
  readonly writable: WritableStream<BufferSource>;
}

/** A stream that the peer opened. */
export interface IncomingStream extends DuplexStream {
  /** The name the peer opened it with. */
  readonly protocol: string;
}

/** A read asks for this much at most: a few WebRTC messages. */
const READ_BYTES = 64 * 1024;
/** A write is cut to this, since WebAssembly memory that once grew is never given back. */
const WRITE_BYTES = 256 * 1024;

export function duplex(raw: RawStream): DuplexStream {
  return { readable: readableOf(raw), writable: writableOf(raw) };
}

function readableOf(raw: RawStream): ReadableStream<Uint8Array<ArrayBuffer>> {
  const source: UnderlyingByteSource = {
    type: "bytes",
    async pull(controller) {
      const view = controller.byobRequest?.view;
      let bytes;
      try {
        bytes = await raw.read(Math.min(view?.byteLength ?? READ_BYTES, READ_BYTES));
      } catch (error) {
        throw toError(error);
      }
      if (bytes === undefined) {
        controller.close();
        // The stream closes for a reader that brought its own buffer only once that is returned.
        controller.byobRequest?.respond(0);
      } else if (view) {
        new Uint8Array(view.buffer, view.byteOffset, bytes.byteLength).set(bytes);
        controller.byobRequest?.respond(bytes.byteLength);
      } else {
        controller.enqueue(bytes as Uint8Array<ArrayBuffer>);
      }
    },
    cancel() {
      raw.stop();
    },
  };
  return new ReadableStream(source, { highWaterMark: 0 });
}

function writableOf(raw: RawStream): WritableStream<BufferSource> {
  return new WritableStream<BufferSource>({
    async write(chunk) {
      const bytes = toBytes(chunk);
      try {
        for (let at = 0; at < bytes.byteLength; at += WRITE_BYTES) {
          await raw.write(bytes.subarray(at, at + WRITE_BYTES));
        }
      } catch (error) {
        throw toError(error);
      }
    },
    async close() {
      try {
        await raw.finish();
      } catch (error) {
        throw toError(error);
      }
    },
    abort() {
      raw.reset(0);
    },
  });
}

function toBytes(chunk: BufferSource): Uint8Array {
  if (chunk instanceof Uint8Array) return chunk;
  if (ArrayBuffer.isView(chunk)) return new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  if (chunk instanceof ArrayBuffer) return new Uint8Array(chunk);
  throw new ThroughlineError("invalid_config", "a stream takes an ArrayBuffer or a view of one; encode text first");
}
