import { cancellable, type AbortOptions } from "./abort.js";
import { camelCased } from "./casing.js";
import type { Attempt, Path, PathEvent } from "./events.js";
import type { ErrorCode } from "./errors.js";
import { iterate } from "./iterate.js";
import type { RawConnection } from "../pkg/throughline.js";
import { duplex, type DuplexStream, type IncomingStream } from "./streams.js";

/** Why a connection ended. */
export interface CloseInfo {
  /** `connection_closed` if either side closed it, `connection_lost` if no path came back in time. */
  readonly code: ErrorCode;
}

/**
 * A connection to one peer. It outlives its paths: a relay circuit at first, then a direct path,
 * perhaps the circuit again; streams between peers of this library move along.
 */
export class Connection {
  readonly #raw: RawConnection;
  /** The peer at the other end, authenticated on every path. */
  readonly peerId: string;
  /** Resolves, and never rejects, when the connection is closed. */
  readonly closed: Promise<CloseInfo>;

  /** @internal */
  constructor(raw: RawConnection) {
    this.#raw = raw;
    this.peerId = raw.peerId();
    this.closed = raw.closed().then((code) => ({ code: code as ErrorCode }));
  }

  /** The path in use, `undefined` while there is none. */
  get path(): Path | undefined {
    return camelCased(this.#raw.path()) as Path | undefined;
  }

  /** What was tried so far, in the order it ended. */
  get attempts(): readonly Attempt[] {
    return camelCased(this.#raw.attempts()) as Attempt[];
  }

  /**
   * Every change of path and every attempt from the call on, until the connection is closed. Several
   * callers may listen; one that is too slow is told so by a `lagged` event.
   */
  paths(): AsyncIterableIterator<PathEvent> {
    const events = this.#raw.pathEvents();
    return iterate(async () => camelCased(await events.next()) as PathEvent | undefined);
  }

  /**
   * Opens a stream for `protocol`, a name of 1 to 256 bytes that both applications agree on.
   *
   * Rejects with `invalid_protocol`, `protocol_refused`, `limit_exceeded`, `connection_closed` or
   * `connection_lost`.
   */
  async open(protocol: string, options: AbortOptions = {}): Promise<DuplexStream> {
    return duplex(await cancellable(options.signal, (signal) => this.#raw.open(protocol, signal)));
  }

  /** The streams that the peer opens, until the connection is closed. Iterators share one queue. */
  incomingStreams(): AsyncIterableIterator<IncomingStream> {
    return iterate(async () => {
      const raw = await this.#raw.acceptStream();
      return raw && { protocol: raw.protocol(), ...duplex(raw) };
    });
  }

  /** Closes the connection and tells the peer. Idempotent. Close writables first: the rest is lost. */
  async close(): Promise<void> {
    await this.#raw.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
