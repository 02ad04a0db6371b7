import { generateIdentity as generate, RawConnector, unknownOption } from "../pkg/throughline.js";
import { cancellable, type AbortOptions } from "./abort.js";
import { camelCased } from "./casing.js";
import { members, signalOf, text, wasm } from "./check.js";
import { toOptions, toRawConfig, type CreateOptions } from "./config.js";
import { Connection } from "./connection.js";
import { ThroughlineError, toError } from "./errors.js";
import type { Report } from "./events.js";
import { iterate } from "./iterate.js";
import { load, type WasmSource } from "./load.js";
import { assertSupported } from "./platform.js";
import { dataOf, Room, type RoomOptions } from "./room.js";
import { duplex, type DuplexStream } from "./streams.js";

/** One peer: an identity, its reservations on relays, and its connections. */
export class Connector {
  readonly #raw: RawConnector;
  /** The id of this peer. */
  readonly peerId: string;

  private constructor(raw: RawConnector) {
    this.#raw = raw;
    this.peerId = raw.peerId();
  }

  /**
   * Starts a peer. With `relays`, it resolves once the first relay holds a reservation, so that `ticket`
   * is complete.
   *
   * Rejects with `unsupported_platform`, `invalid_config`, `invalid_address`, `invalid_identity`,
   * `no_relay`, `limit_exceeded` if every relay refuses because it has no room, `access_denied` if the
   * relays do not admit this peer, `quota_exceeded` if its quota is used up, or `io` if the WebAssembly
   * cannot be loaded.
   */
  static async create(options: CreateOptions = {}): Promise<Connector> {
    assertSupported();
    const { options: valid, unknown } = toOptions(options);
    valid.signal?.throwIfAborted();
    const config = toRawConfig(valid);
    await load(valid.wasm);
    if (unknown) throw new ThroughlineError("invalid_config", unknownOption(unknown.name, unknown.known.join(" ")));
    // A function cannot cross as JSON, so it is not among the options.
    const fetch = valid.relayTokens;
    const tokens =
      typeof fetch === "function" ? async () => text("relayTokens", await fetch(), "invalid_config") : undefined;
    return cancellable(
      valid.signal,
      async (signal) => new Connector(await RawConnector.create(config, valid.identity, tokens, signal)),
    );
  }

  /** A ticket, by which others can reach this peer now. Read it again after the network has changed. */
  get ticket(): string {
    return this.#raw.ticket();
  }

  /**
   * A ticket that is short enough for a business card, a QR code (in upper case) or a link, as in
   * `${location.origin}/#${me.shortTicket}`: this peer's id, and up to two of its relays. Whoever has it looks the
   * rest up at the relay, while it makes the circuit, so that takes no longer. A relay without a name stands by one
   * of its addresses, so a peer that cannot dial that address needs `ticket`.
   */
  get shortTicket(): string {
    return this.#raw.shortTicket();
  }

  /**
   * Enters the room `name`, where peers find each other without tickets. Resolves once a relay has let this peer in
   * and has shown who is there. Peers meet that share at least one relay of `throughline serve`. The relay knows
   * the room by a hash of application, name and secret. It sees which peers are in it and when, but neither its
   * name nor what they show.
   *
   * Rejects with `invalid_config` (too much data, or a wrong clock), `no_relay`, `limit_exceeded` (the room has
   * 1,024 members, or this peer is in 64 rooms), `access_denied` or `connector_closed`.
   */
  async join(name: string, options: RoomOptions = {}): Promise<Room> {
    const validName = text("name", name, "invalid_config");
    const { application = "", secret = "", data = "" } = members("options", options);
    const valid = [text("application", application, "invalid_config"), text("secret", secret, "invalid_config")] as const;
    const shown = dataOf(data);
    const work = (signal: AbortSignal | undefined) => this.#raw.join(validName, ...valid, shown, signal);
    return new Room(await cancellable(signalOf(options), work));
  }

  /**
   * Connects to the peer that `ticket` names, and resolves on the first authenticated path, which usually
   * is a relay circuit. The connector then looks for a better path in the background, and `paths` reports
   * it. A ticket is also a short ticket, a link with a ticket after its `#`, or the id of a peer that uses one of
   * this peer's relays. A peer that has moved since is looked up at the relays.
   *
   * Rejects with `invalid_ticket`, `no_relay`, `unreachable` (with every attempt), `wrong_peer`,
   * `limit_exceeded` or `connector_closed`.
   */
  async connect(ticket: string, options: AbortOptions = {}): Promise<Connection> {
    const valid = text("ticket", ticket, "invalid_ticket");
    return new Connection(await cancellable(signalOf(options), (signal) => this.#raw.connect(valid, signal)));
  }

  /**
   * Opens a stream for `protocol` to the peer that `ticket` names, without waiting for a path. What is written
   * at once is *early data*: it travels beside the requests that make the connection. The first answer is back
   * after one round trip through the relay, where `connect` and `Connection.open` take two. Early data needs a
   * relay of `throughline serve` and a ticket of the peer's present run. Otherwise the stream goes over the
   * first path, and only takes longer. `connection.path` is `undefined` until there is a path.
   *
   * Early data is sealed for the peer, and no relay can read it. It has no forward secrecy until the peer's first
   * answer: whoever records it and later steals the peer's key can read it.
   *
   * Rejects with `invalid_ticket`, `invalid_protocol`, `limit_exceeded` or `connector_closed`. If no path to the
   * peer comes up, the stream fails with the error that `connect` would give.
   */
  async open(
    ticket: string,
    protocol: string,
    options: AbortOptions = {},
  ): Promise<{ connection: Connection; stream: DuplexStream }> {
    const validTicket = text("ticket", ticket, "invalid_ticket");
    const validProtocol = text("protocol", protocol, "invalid_protocol");
    const [connection, stream] = await cancellable(signalOf(options), (signal) =>
      this.#raw.open(validTicket, validProtocol, signal),
    );
    return { connection: new Connection(connection), stream: duplex(stream) };
  }

  /** Iterates over the connections that other peers make, until the connector is closed. Iterators share one queue. */
  incoming(): AsyncIterableIterator<Connection> {
    return iterate(async () => {
      const raw = await this.#raw.accept();
      return raw && new Connection(raw);
    });
  }

  /** Reports what this peer knows about its relays, addresses and connections. */
  async report(): Promise<Report> {
    try {
      return camelCased(await this.#raw.report()) as Report;
    } catch (error) {
      throw toError(error);
    }
  }

  /** Returns counters and gauges in the OpenMetrics text format, without addresses or peer ids. */
  metrics(): string {
    return this.#raw.metrics();
  }

  /** Closes every connection, tells the peers, and stops. A second call has no effect. */
  async close(): Promise<void> {
    await this.#raw.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Makes a fresh identity for `create`. Keep it secret: whoever has it can act as this peer. */
export async function generateIdentity(options: { readonly wasm?: WasmSource } = {}): Promise<string> {
  await load(wasm(members("options", options).wasm));
  return generate();
}
