/** The worker's end of bridges: what a `Connector` takes for the browser's `RTCPeerConnection`. */
import { endpoint, members, signalOf } from "./check.js";
import { ThroughlineError } from "./errors.js";
import type { AbortOptions } from "./abort.js";
import { Channel } from "./bridge-channel.js";
import {
  ASK,
  MAX_CONNECTIONS,
  MAX_CHANNELS,
  OFFER,
  Presence,
  TAKEN,
  watch,
  type Endpoint,
  type Failure,
  type Hello,
  type Meeting,
  type Method,
  type News,
  type Signal,
  type Wish,
} from "./bridge-protocol.js";

/** Options of `attach`. */
export interface AttachOptions extends AbortOptions {
  /** A port on whose other end a page calls `serve`. Defaults to the worker itself, or to every page of a shared one. */
  readonly port?: MessagePort;
}

/** The bridges to pages, in the order of their beginning. */
const links: Link[] = [];
let presence: Presence | undefined;
/** Called when a bridge begins. */
const waiting = new Set<() => void>();
let attachedToScope = false;

/**
 * Gives this worker the peer connections of the pages that call `serve` for it. Resolves when the first page does, and
 * then `Connector.create` works as in a page. Call it before the first `await` of the worker's script, because a shared
 * worker learns of a page only once. Later calls do the same again, and are needed only for further ports.
 *
 * When a page goes, its connections end as if ICE had failed. Other pages of a shared worker take over what is tried
 * next. Without any page, paths through relays remain.
 *
 * Rejects with `unsupported_platform` outside of workers and in an insecure context, or with the reason of `signal`.
 */
export async function attach(options: AttachOptions = {}): Promise<void> {
  const { port } = members("options", options);
  const chosen = port === undefined ? undefined : endpoint("port", port);
  const signal = signalOf(options);
  signal?.throwIfAborted();
  if (!("WorkerGlobalScope" in globalThis) || !globalThis.navigator?.locks) {
    throw new ThroughlineError(
      "unsupported_platform",
      "`attach` is for a worker of a page on https or localhost; in the page call `serve`",
    );
  }
  presence ??= new Presence();
  if (chosen) listen(chosen);
  else if (!attachedToScope) {
    attachedToScope = true;
    if ("onconnect" in globalThis) {
      globalThis.addEventListener("connect", (event) => listen((event as MessageEvent).ports[0] as MessagePort));
    } else listen(globalThis as unknown as Endpoint);
  }
  // A worker from a `data:` address has no locks.
  await presence.held.catch((cause: unknown) => {
    throw new ThroughlineError("unsupported_platform", "this worker has no origin: load it from an address of its page", { cause });
  });
  if (!links.length) await begun(signal);
}

function begun(signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      waiting.delete(done);
      reject(signal?.reason);
    };
    const done = () => {
      signal?.removeEventListener("abort", abort);
      resolve();
    };
    signal?.addEventListener("abort", abort, { once: true });
    waiting.add(done);
  });
}

/** Takes the offers of a page, one after the other. */
function listen(endpoint: Endpoint): void {
  let link: Link | undefined;
  endpoint.addEventListener("message", (event) => {
    const { throughline, lock } = Object(event.data) as Meeting;
    const port = event.ports[0];
    if (throughline !== OFFER || !lock || !port) return;
    event.stopImmediatePropagation();
    if (link) return port.close();
    const made = new Link(port, lock, () => (link = undefined));
    link = made;
  });
  endpoint.start?.();
  endpoint.postMessage({ throughline: ASK } satisfies Meeting, []);
}

/** A bridge to a page. */
class Link {
  readonly #port: MessagePort;
  readonly #connections = new Map<number, Connection>();
  readonly #gone: () => void;
  #next = 0;
  #over = false;
  /** Whether the user sees the page. */
  visible = true;

  constructor(port: MessagePort, lock: string, gone: () => void) {
    this.#port = port;
    this.#gone = gone;
    port.onmessage = ({ data }) => this.#hear(data as News | Signal);
    watch(lock, new AbortController().signal, () => this.#end());
    const hello = (lock: string) => {
      port.postMessage({ lock, channels: typeof RTCDataChannel === "function" } satisfies Hello);
    };
    presence?.held.then(() => hello(presence!.lock), () => {});
  }

  /** Begins to make connections, because the page has answered. */
  #begin(): void {
    if (links.includes(this) || this.#over) return;
    links.push(this);
    install();
    for (const done of waiting) done();
    waiting.clear();
  }

  /** The page is gone, or has closed the bridge. */
  #end(): void {
    this.#over = true;
    const at = links.indexOf(this);
    if (at >= 0) links.splice(at, 1);
    this.#port.close();
    this.#gone();
    const error = { name: "InvalidStateError", message: "the page of this peer connection is gone" };
    for (const connection of [...this.#connections.values()]) connection.fail(error);
    this.#connections.clear();
  }

  #hear(news: News | Signal): void {
    if (this.#over) return;
    if (news.op === "signal") {
      this.visible = news.visible;
      this.#begin();
      // A page that goes is the end of this worker only if it is the last one.
      if (news.type !== "pagehide" || links.length === 1) {
        globalThis.dispatchEvent(Object.assign(new Event(news.type), { persisted: news.persisted }));
      }
      return;
    }
    const connection = this.#connections.get(news.id);
    if (connection) connection.hear(news);
    else if ("real" in news) news.real?.close();
  }

  /** Returns the number of a new connection. */
  add(connection: Connection): number {
    if (this.#connections.size >= MAX_CONNECTIONS) throw new DOMException("too many connections", "OperationError");
    const id = this.#next++;
    this.#connections.set(id, connection);
    return id;
  }

  remove(id: number): void {
    this.#connections.delete(id);
  }

  post(wish: Wish, transfer: Transferable[] = []): void {
    this.#port.postMessage(wish, transfer);
  }
}

/** The transports below the data channels of a connection, of which only the end matters. */
class Transport extends EventTarget {
  state = "new";

  change(state: string): void {
    this.state = state;
    this.dispatchEvent(new Event("statechange"));
  }
}

interface Call {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: DOMException) => void;
}

/** What the WebAssembly uses of `RTCPeerConnection`, for a connection on a page. */
class Connection extends EventTarget {
  readonly #link: Link;
  readonly #id: number;
  readonly #calls = new Map<number, Call>();
  readonly #channels = new Map<number, Channel>();
  #next = 0;
  /** The bytes that have been taken and of which the page does not know. */
  #taken = 0;
  #error: Failure | undefined;

  connectionState: RTCPeerConnectionState = "new";
  iceConnectionState: RTCIceConnectionState = "new";
  localDescription: RTCSessionDescriptionInit | null = null;
  readonly sctp = Object.assign(new Transport(), { transport: new Transport() });

  constructor(configuration: RTCConfiguration = {}) {
    super();
    const link = links.find(({ visible }) => visible) ?? links.at(-1);
    if (!link) throw new DOMException("no page serves this worker", "InvalidStateError");
    this.#link = link;
    this.#id = link.add(this);
    this.#post({ op: "open", id: this.#id, configuration });
  }

  createOffer(): Promise<unknown> {
    return this.#call("createOffer");
  }

  createAnswer(): Promise<unknown> {
    return this.#call("createAnswer");
  }

  async setLocalDescription(description?: RTCLocalSessionDescriptionInit): Promise<void> {
    this.localDescription = (await this.#call("setLocalDescription", description)) as RTCSessionDescriptionInit;
  }

  setRemoteDescription(description: RTCSessionDescriptionInit): Promise<unknown> {
    return this.#call("setRemoteDescription", description);
  }

  addIceCandidate(candidate?: RTCIceCandidateInit): Promise<unknown> {
    return this.#call("addIceCandidate", candidate);
  }

  async getStats(): Promise<Map<string, RTCStats>> {
    const entries = (await this.#call("getStats")) as RTCStats[];
    return new Map(entries.map((entry) => [entry.id, entry]));
  }

  setConfiguration(configuration: RTCConfiguration): void {
    this.#post({ op: "configure", id: this.#id, configuration });
  }

  createDataChannel(label: string, options: RTCDataChannelInit = {}): Channel {
    if (this.connectionState === "closed" || this.#error) throw new DOMException("it is closed", "InvalidStateError");
    const own = [...this.#channels.keys()].filter((number) => number % 2 === 0);
    if (own.length >= MAX_CHANNELS) throw new DOMException("no data channel is free", "OperationError");
    const number = 2 * this.#next++;
    const channel = this.#channel(number, label, "connecting");
    this.#post({ op: "channel", id: this.#id, channel: number, label, options });
    return channel;
  }

  close(): void {
    if (this.connectionState === "closed") return;
    this.connectionState = this.iceConnectionState = "closed";
    this.#post({ op: "close", id: this.#id });
    this.#link.remove(this.#id);
    // The events come after the call, as those of the browser do.
    const error = (this.#error = { name: "InvalidStateError", message: "the connection is closed" });
    queueMicrotask(() => this.#over(error));
  }

  /** Ends as if ICE had failed. */
  fail(error: Failure): void {
    if (this.connectionState === "closed") return;
    this.#link.remove(this.#id);
    this.#error = error;
    // The connection first: a channel that ends before it looks as if the peer had closed it.
    this.connectionState = this.iceConnectionState = "failed";
    this.dispatchEvent(new Event("connectionstatechange"));
    this.#over(error);
  }

  #over(error: Failure): void {
    this.#error = error;
    for (const { reject } of this.#calls.values()) reject(thrown(error));
    this.#calls.clear();
    for (const channel of [...this.#channels.values()]) channel.end();
  }

  #post(wish: Wish, transfer?: Transferable[]): void {
    if (!this.#error) this.#link.post(wish, transfer);
  }

  #call(method: Method, argument?: unknown): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#error) return reject(thrown(this.#error));
      const call = this.#next++;
      this.#calls.set(call, { resolve, reject });
      this.#post({ op: "call", id: this.#id, call, method, argument });
    });
  }

  #channel(number: number, label: string, state: RTCDataChannelState): Channel {
    const id = this.#id;
    const channel = new Channel(label, state, {
      send: (data) => this.#post({ op: "send", id, channel: number, data }, [data]),
      lower: (bytes) => this.#post({ op: "threshold", id, channel: number, bytes }),
      shut: () => this.#post({ op: "shut", id, channel: number }),
      over: () => this.#channels.delete(number),
    });
    this.#channels.set(number, channel);
    return channel;
  }

  #receive(channel: RTCDataChannel | Channel): void {
    this.dispatchEvent(Object.assign(new Event("datachannel"), { channel }));
  }

  hear(news: News): void {
    switch (news.op) {
      case "failed":
        return this.fail(news.error);
      case "answer": {
        const call = this.#calls.get(news.call);
        this.#calls.delete(news.call);
        return news.error ? call?.reject(thrown(news.error)) : call?.resolve(news.value);
      }
      case "candidate":
        return void this.dispatchEvent(Object.assign(new Event("icecandidate"), { candidate: news.candidate }));
      case "transport":
        return (news.part === "sctp" ? this.sctp : this.sctp.transport).change(news.state);
      case "state":
        this.connectionState = news.state;
        this.iceConnectionState = news.ice;
        return void this.dispatchEvent(new Event("connectionstatechange"));
      case "incoming":
        return this.#receive(news.real ?? this.#channel(news.channel, news.label, news.state));
      case "given": {
        const channel = this.#channels.get(news.channel);
        return channel ? channel.take(news.real) : news.real.close();
      }
      case "happens":
        return this.#channels.get(news.channel)?.happen(news.type, news.state);
      case "drained":
        return this.#channels.get(news.channel)?.drain(news.total);
      case "message":
        this.#take(typeof news.data === "string" ? news.data.length : news.data.byteLength);
        return this.#channels.get(news.channel)?.receive(news.data);
    }
  }

  #take(bytes: number): void {
    this.#taken += bytes;
    if (this.#taken < TAKEN) return;
    this.#post({ op: "taken", id: this.#id, bytes: this.#taken });
    this.#taken = 0;
  }
}

function thrown({ name, message }: Failure): DOMException {
  return new DOMException(message, name);
}

/** Puts the connections of pages where the WebAssembly looks for those of the browser. */
function install(): void {
  const scope: { RTCPeerConnection?: unknown } = globalThis;
  scope.RTCPeerConnection ??= Connection;
}
