/// <reference lib="esnext.disposable" preserve="true" />
import { generateIdentity as generate, RawConnector, unknownOption } from "../pkg/throughline.js";
import { cancellable, type AbortOptions } from "./abort.js";
import { camelCased } from "./casing.js";
import { members, signalOf, text, wasm } from "./check.js";
import { toOptions, toRawConfig, type CreateOptions } from "./config.js";
import { Connection } from "./connection.js";
import { ThroughlineError, toError } from "./errors.js";
import type { ConnectorEvent, Report, Status } from "./events.js";
import { iterate } from "./iterate.js";
import { load, type WasmSource } from "./load.js";
import { assertSupported } from "./platform.js";
import { dataOf, Room, type RoomOptions } from "./room.js";
import { duplex, type DuplexStream } from "./streams.js";

/** The events of a {@link Connector}. */
export interface ConnectorEventMap {
  /** The status has changed. `detail` is the new one. */
  status: CustomEvent<Status>;
}

/**
 * One peer: an identity, its reservations on relays, and its connections. It dispatches `status` when its
 * {@link Connector.status} has changed.
 */
export class Connector extends EventTarget {
  readonly #raw: RawConnector;
  readonly #closed = new AbortController();
  /** The id of this peer. */
  readonly peerId: string;

  /** @internal */
  constructor(raw: RawConnector) {
    super();
    this.#raw = raw;
    this.peerId = raw.peerId();
    void this.#tellStatus();
    const leave = (event: Event) => {
      // A page that the browser keeps comes back with its connections.
      if (!(event as PageTransitionEvent).persisted) void this.close();
    };
    globalThis.addEventListener?.("pagehide", leave, { signal: this.#closed.signal });
  }

  /**
   * Starts a peer. With `relay` or `relays`, it resolves once the first relay holds a reservation, so that `ticket`
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

  /** @internal The bindings, for `throughline/tabs`. */
  get raw(): RawConnector {
    return this.#raw;
  }

  /** A ticket, by which others can reach this peer now. The event `status` tells when it changes. */
  get ticket(): string {
    return this.#raw.ticket();
  }

  /** Whether others can reach this peer now and why not, with its relays and its ticket. */
  get status(): Status {
    return camelCased(this.#raw.status()) as Status;
  }

  /**
   * Iterates over the present status and each new one, until the connector is closed. A caller that is slow
   * misses what is old, and gets the newest one.
   */
  statusChanges(): AsyncIterableIterator<Status> {
    const changes = this.#raw.statusChanges();
    return iterate(async () => camelCased(await changes.next()) as Status | undefined);
  }

  /** Listens for an event, such as `status`, as every `EventTarget` lets it. */
  override addEventListener<K extends keyof ConnectorEventMap>(
    type: K,
    listener: (this: Connector, event: ConnectorEventMap[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  override addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  override addEventListener(type: string, listener: never, options?: boolean | AddEventListenerOptions): void {
    super.addEventListener(type, listener, options);
  }

  async #tellStatus(): Promise<void> {
    let first = true;
    for await (const detail of this.statusChanges()) {
      if (!first) this.dispatchEvent(new CustomEvent("status", { detail }));
      first = false;
    }
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
  ): Promise<{
    /** The connection, which may have no path yet. */
    connection: Connection;
    /** The stream, which takes bytes at once. */
    stream: DuplexStream;
  }> {
    const validTicket = text("ticket", ticket, "invalid_ticket");
    const validProtocol = text("protocol", protocol, "invalid_protocol");
    const [connection, stream] = await cancellable(signalOf(options), (signal) =>
      this.#raw.open(validTicket, validProtocol, signal),
    );
    return { connection: new Connection(connection), stream: duplex(stream) };
  }

  /**
   * Iterates over the connections that other peers make, until the connector is closed. Iterators share one queue, and
   * one that is returned leaves to the others what it waited for. A mesh is such an iterator.
   */
  incoming(): AsyncIterableIterator<Connection> {
    return iterate(async (signal) => {
      const raw = await this.#raw.accept(signal);
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

  /**
   * Iterates over what concerns no single connection, from the call until the connector is closed: what a
   * relay says about this peer's quota. Several callers may listen. A caller that is too slow gets a `lagged`
   * event.
   */
  events(): AsyncIterableIterator<ConnectorEvent> {
    const events = this.#raw.events();
    return iterate(async () => camelCased(await events.next()) as ConnectorEvent | undefined);
  }

  /**
   * Returns counters and gauges in the OpenMetrics text format, without addresses or peer ids. Throws `unsupported` in a
   * tab of `throughline/tabs`, because they are the worker's.
   */
  metrics(): string {
    return this.#raw.metrics();
  }

  /**
   * Closes every connection, tells the peers, and stops. A second call has no effect. A page that its user leaves
   * does the same, unless the browser keeps it in its back/forward cache.
   */
  async close(): Promise<void> {
    this.#closed.abort();
    await this.#raw.close();
  }

  /** Closes it at the end of an `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Makes a fresh identity for `create`. Keep it secret: whoever has it can act as this peer. */
export async function generateIdentity(options: { readonly wasm?: WasmSource } = {}): Promise<string> {
  await load(wasm(members("options", options).wasm));
  return generate();
}
