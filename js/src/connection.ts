/// <reference lib="esnext.disposable" preserve="true" />
import { cancellable, type AbortOptions } from "./abort.js";
import { camelCased } from "./casing.js";
import { bytes, count, signalOf, text } from "./check.js";
import type { Attempt, Path, PathEvent } from "./events.js";
import { toError, type ErrorCode } from "./errors.js";
import { iterate } from "./iterate.js";
import type { RawConnection } from "../pkg/throughline.js";
import { duplex, type DuplexStream, type IncomingStream } from "./streams.js";

/** At most this many bytes of a datagram are copied to the bindings, which refuse a datagram of this length. */
const MOST_COPIED = 65_536;

/** Why a connection ended. */
export interface CloseInfo {
  /** `connection_closed` if either side closed it, and `connection_lost` if no path came back in time. */
  readonly code: ErrorCode;
}

/**
 * A connection to one peer. It outlives its paths: the first often is a relay circuit, then comes a
 * direct path, and perhaps the circuit again. Streams between peers of this library move along.
 */
export class Connection {
  readonly #raw: RawConnection;
  /** The id of the peer at the other end. Every path is authenticated against it. */
  readonly peerId: string;
  /** Resolves when the connection is closed. It never rejects. */
  readonly closed: Promise<CloseInfo>;

  /** @internal */
  constructor(raw: RawConnection) {
    this.#raw = raw;
    this.peerId = raw.peerId();
    this.closed = raw.closed().then((code) => ({ code: code as ErrorCode }));
  }

  /** The path in use, or `undefined` while there is no path. */
  get path(): Path | undefined {
    return camelCased(this.#raw.path()) as Path | undefined;
  }

  /** The attempts that have ended so far, in the order of their ends. */
  get attempts(): readonly Attempt[] {
    return camelCased(this.#raw.attempts()) as Attempt[];
  }

  /**
   * Waits until the path in use is direct, and resolves to it.
   *
   * Rejects with `timeout` if that takes longer than `timeoutMs` (at most twelve days). The error's `attempts`
   * say why: they are those that have failed, and those that have had no answer yet. Rejects with
   * `connection_closed` or `connection_lost` if the connection ends.
   */
  async waitDirect(timeoutMs: number, options: AbortOptions = {}): Promise<Path> {
    const valid = count("timeoutMs", timeoutMs);
    const path = await cancellable(signalOf(options), (signal) => this.#raw.waitDirect(valid, signal));
    return camelCased(path) as Path;
  }

  /**
   * Iterates over every change of path and every attempt, from the call until the connection is closed.
   * Several callers may listen. A caller that is too slow gets a `lagged` event.
   */
  paths(): AsyncIterableIterator<PathEvent> {
    const events = this.#raw.pathEvents();
    return iterate(async () => camelCased(await events.next()) as PathEvent | undefined);
  }

  /**
   * Opens a stream for `protocol`, which is a name of 1 to 256 bytes that both applications agree on.
   *
   * Rejects with `invalid_protocol`, `protocol_refused`, `limit_exceeded`, `connection_closed` or
   * `connection_lost`. The call does not wait for a peer of this library. If such a peer refuses the
   * protocol, the stream fails with `protocol_refused` later.
   */
  async open(protocol: string, options: AbortOptions = {}): Promise<DuplexStream> {
    const valid = text("protocol", protocol, "invalid_protocol");
    return duplex(await cancellable(signalOf(options), (signal) => this.#raw.open(valid, signal)));
  }

  /**
   * Iterates over the streams that the peer opens, until the connection is closed. Iterators share one queue, and one
   * that is returned leaves to the others what it waited for.
   */
  incomingStreams(): AsyncIterableIterator<IncomingStream> {
    return iterate(async (signal) => {
      const raw = await this.#raw.acceptStream(signal);
      return raw && { protocol: raw.protocol(), early: raw.isEarly(), refuse: () => raw.refuse(), ...duplex(raw) };
    });
  }

  /**
   * The most bytes of a datagram that the path in use carries. It is at least 1120, so a datagram of that size
   * fits on every path. It is `undefined` while there is no path, and if the peer takes no datagrams. The events
   * `path` and `datagram_size` tell of changes.
   */
  get maxDatagramSize(): number | undefined {
    return this.path?.maxDatagramSize;
  }

  /**
   * Sends a datagram over the path in use. It waits for nothing: neither for the network, nor for streams.
   *
   * A datagram may be lost, and datagrams may arrive in another order. None arrives twice. Over a circuit they
   * wait for what the relay has lost. While more are sent than the path takes, or while there is no path, up to
   * 256 wait. Then each new one takes the place of the oldest.
   *
   * Throws `unsupported` if the peer is a stock libp2p peer, `limit_exceeded` beyond `maxDatagramSize`,
   * `connection_closed` or `connection_lost`. A stock peer is known as such one round trip after the first path,
   * and datagrams that were sent before are dropped.
   */
  sendDatagram(datagram: ArrayBuffer | ArrayBufferView): void {
    const valid = bytes(datagram, "datagram");
    try {
      // The bindings copy what they get, and no path carries this much.
      this.#raw.sendDatagram(valid.subarray(0, MOST_COPIED));
    } catch (error) {
      throw toError(error);
    }
  }

  /**
   * Iterates over the datagrams of the peer, from any path, until the connection is closed. Iterators share one
   * queue of 256 datagrams. When it is full, each new one takes the place of the oldest.
   */
  datagrams(): AsyncIterableIterator<Uint8Array> {
    return iterate((signal) => this.#raw.receiveDatagram(signal));
  }

  /**
   * Closes the connection and tells the peer. A second call has no effect. Close writables first, because
   * unsent bytes are lost.
   */
  async close(): Promise<void> {
    await this.#raw.close();
  }

  /** Closes it at the end of an `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
