import { bytes as bytesOf, resetCode } from "./check.js";
import { toError } from "./errors.js";
import type { RawStream } from "../pkg/throughline.js";

/** A byte stream to the peer, with back-pressure in both directions. */
export interface DuplexStream {
  /**
   * The bytes that the peer writes. Nothing is read before its reader asks, so a slow reader stops the
   * peer. It ends when the peer closes its side. If the peer resets the stream, it errors with
   * `stream_reset`, and `error.resetCode` is the reason that the peer gave.
   *
   * `cancel(reason)` tells the peer to stop, and the peer's writes fail with `stream_reset`. The reason is
   * `{ resetCode }` or an integer from 0 to 4,294,967,295. Everything else counts as 0.
   */
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>;
  /**
   * The bytes that the peer reads. A write resolves when its bytes are taken, which happens only while the
   * peer keeps up. Closing it ends only this direction.
   *
   * `abort(reason)` resets the stream in both directions. The peer gets the code of the reason, as with
   * `cancel`. A stock libp2p peer gets no code.
   */
  readonly writable: WritableStream<BufferSource>;
}

/** A stream that the peer opened. */
export interface IncomingStream extends DuplexStream {
  /** The protocol for which the peer opened the stream. */
  readonly protocol: string;
  /**
   * Whether the peer opened the stream by `Connector.open`, with early data. What came before this peer's first
   * answer has no forward secrecy.
   */
  readonly early: boolean;
  /** Tells the peer that nobody serves this protocol here. The peer's reads and writes fail with `protocol_refused`. */
  refuse(): void;
}

/** The most bytes that one read asks for: a few WebRTC messages. */
const READ_BYTES = 64 * 1024;
/** The length to which a write is cut, because WebAssembly memory never shrinks after it has grown. */
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
        // For a reader that brought its own buffer, the stream closes only when that buffer is returned.
        controller.byobRequest?.respond(0);
      } else if (view) {
        new Uint8Array(view.buffer, view.byteOffset, bytes.byteLength).set(bytes);
        controller.byobRequest?.respond(bytes.byteLength);
      } else {
        controller.enqueue(bytes as Uint8Array<ArrayBuffer>);
      }
    },
    cancel(reason) {
      raw.stop(resetCode(reason));
    },
  };
  return new ReadableStream(source, { highWaterMark: 0 });
}

function writableOf(raw: RawStream): WritableStream<BufferSource> {
  return new WritableStream<BufferSource>({
    start({ signal }) {
      // The stream is reset at once. A method `abort` would wait for a write that the peer does not take.
      signal.addEventListener("abort", () => raw.reset(resetCode(signal.reason)));
    },
    async write(chunk) {
      const bytes = bytesOf(chunk);
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
  });
}
