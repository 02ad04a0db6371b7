import { generateIdentity as generate, RawConnector } from "../pkg/throughline.js";
import { cancellable, type AbortOptions } from "./abort.js";
import { camelCased } from "./casing.js";
import { toRawConfig, type CreateOptions } from "./config.js";
import { Connection } from "./connection.js";
import { toError } from "./errors.js";
import type { Report } from "./events.js";
import { iterate } from "./iterate.js";
import { load, type WasmSource } from "./load.js";
import { assertSupported } from "./platform.js";
import type { DuplexStream } from "./streams.js";

/** One peer: an identity, its reservations on relays, and its connections. */
export class Connector {
  readonly #raw: RawConnector;
  /** Who this peer is. */
  readonly peerId: string;

  private constructor(raw: RawConnector) {
    this.#raw = raw;
    this.peerId = raw.peerId();
  }

  /**
   * Starts a peer. With `relays`, resolves once the first of them holds a reservation, so that
   * `ticket` is complete.
   *
   * Rejects with `unsupported_platform`, `invalid_config`, `invalid_address`, `invalid_identity`,
   * `no_relay`, or `io` where the WebAssembly cannot be loaded.
   */
  static async create(options: CreateOptions = {}): Promise<Connector> {
    assertSupported();
    options.signal?.throwIfAborted();
    const config = toRawConfig(options);
    await load(options.wasm);
    return cancellable(
      options.signal,
      async (signal) => new Connector(await RawConnector.create(config, options.identity, signal)),
    );
  }

  /** How to reach this peer as of now. Ask anew after the network changed. */
  get ticket(): string {
    return this.#raw.ticket();
  }

  /**
   * Connects to the peer that `ticket` names and resolves on the first authenticated path, usually a
   * relay circuit; a better one is sought in the background and reported by `paths`.
   *
   * Rejects with `invalid_ticket`, `unreachable` (with every attempt), `wrong_peer`,
   * `limit_exceeded` or `connector_closed`.
   */
  async connect(ticket: string, options: AbortOptions = {}): Promise<Connection> {
    return new Connection(await cancellable(options.signal, (signal) => this.#raw.connect(ticket, signal)));
  }

  /**
   * Connects to the peer that `ticket` names and opens a stream for `protocol` on the connection, in
   * one call. A native peer sends the stream's first bytes beside the requests that bring the
   * connection about; a page waits for the first path.
   *
   * Rejects as `connect` and `Connection.open` do.
   */
  async open(
    ticket: string,
    protocol: string,
    options: AbortOptions = {},
  ): Promise<{ connection: Connection; stream: DuplexStream }> {
    const connection = await this.connect(ticket, options);
    return { connection, stream: await connection.open(protocol, options) };
  }

  /** The connections that other peers make, until the connector is closed. Iterators share one queue. */
  incoming(): AsyncIterableIterator<Connection> {
    return iterate(async () => {
      const raw = await this.#raw.accept();
      return raw && new Connection(raw);
    });
  }

  /** What this peer knows about its relays, addresses and connections. */
  async report(): Promise<Report> {
    try {
      return camelCased(await this.#raw.report()) as Report;
    } catch (error) {
      throw toError(error);
    }
  }

  /** Counters and gauges in the OpenMetrics text format, without addresses or peer ids. */
  metrics(): string {
    return this.#raw.metrics();
  }

  /** Closes every connection, tells the peers, and stops. Idempotent. */
  async close(): Promise<void> {
    await this.#raw.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** A fresh identity to keep and to give to `create`. It is a secret: whoever has it is this peer. */
export async function generateIdentity(options: { readonly wasm?: WasmSource } = {}): Promise<string> {
  await load(options.wasm);
  return generate();
}
