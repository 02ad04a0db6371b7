/** The page's end of a bridge. It makes the peer connections that a worker wants, and nothing else. */
import { endpoint } from "./check.js";
import { ThroughlineError } from "./errors.js";
import {
  ASK,
  failure,
  MAX_BYTES,
  MAX_CALLS,
  MAX_CHANNELS,
  MAX_CONNECTIONS,
  OFFER,
  Presence,
  SIGNALS,
  watch,
  type Endpoint,
  type Hello,
  type Meeting,
  type Method,
  type News,
  type Signal,
  type Wish,
} from "./bridge-protocol.js";

/** A worker asks once. More offers without an answer are not made. */
const MAX_OFFERS = 4;

/** The page's end of a bridge. */
export interface Bridge {
  /** Resolves when a worker has attached to the bridge. It stays pending if none does. */
  readonly attached: Promise<void>;
  /** Resolves when the bridge has ended: by `close`, or because the worker has. It never rejects. */
  readonly closed: Promise<void>;
  /** Closes every peer connection that this page has made for the worker. A second call has no effect. */
  close(): void;
  /** Closes it at the end of a `using`. */
  [Symbol.dispose](): void;
}

/**
 * Makes `RTCPeerConnection`s on this page for a worker that has called `attach`, because browsers have none in workers.
 * The `Connector` of the worker uses them, and this page has nothing to do with it. For a shared worker, each page calls
 * this for its own `SharedWorker` or its port.
 *
 * The data channels are transferred to a dedicated worker where the browser can. Otherwise their messages go through
 * this page. When the page or the worker ends, so do the connections.
 *
 * Throws `unsupported_platform` if this is no page, has no WebRTC, or is not a secure context, and `invalid_config` for
 * what is no worker.
 */
export function serve(worker: Worker | SharedWorker | MessagePort): Bridge {
  if (typeof RTCPeerConnection === "undefined" || !globalThis.navigator?.locks) {
    throw new ThroughlineError(
      "unsupported_platform",
      "`serve` is for a page with WebRTC on https or localhost; in the worker call `attach`",
    );
  }
  const { port = worker } = Object(worker) as { port?: MessagePort };
  return new Server(endpoint("worker", port));
}

type Post = (news: News | Signal, transfer?: Transferable[]) => void;

class Server implements Bridge {
  readonly attached: Promise<void>;
  readonly closed: Promise<void>;
  readonly #presence = new Presence();
  readonly #over = new AbortController();
  readonly #peers = new Map<number, Peer>();
  readonly #offered = new Set<MessagePort>();
  #port: MessagePort | undefined;
  #channels = false;
  #attach: () => void = () => {};

  constructor(endpoint: Endpoint) {
    const { signal } = this.#over;
    this.attached = new Promise((resolve) => (this.#attach = resolve));
    this.closed = new Promise((resolve) => signal.addEventListener("abort", () => resolve()));
    // Whoever gets the offer waits for the lock, and would have it at once if this page had not.
    const offer = () => this.#presence.held.then(() => this.#offer(endpoint)).catch(() => this.close());
    // A worker that attaches late has missed the first offer, and asks. One that attached early has asked in vain.
    const heard = (event: MessageEvent) => {
      if ((event.data as Meeting | null)?.throughline !== ASK) return;
      event.stopImmediatePropagation();
      offer();
    };
    endpoint.addEventListener("message", heard, { signal });
    endpoint.start?.();
    offer();
  }

  close(): void {
    if (this.#over.signal.aborted) return;
    this.#over.abort();
    for (const peer of this.#peers.values()) peer.close();
    this.#peers.clear();
    for (const port of this.#offered) port.close();
    this.#port?.close();
    this.#presence.end();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #offer(endpoint: Endpoint): void {
    if (this.#over.signal.aborted || this.#port || this.#offered.size >= MAX_OFFERS) return;
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => this.#bind(port1, data as Hello);
    this.#offered.add(port1);
    endpoint.postMessage({ throughline: OFFER, lock: this.#presence.lock } satisfies Meeting, [port2]);
  }

  /** The worker has answered an offer. */
  #bind(port: MessagePort, hello: Hello): void {
    this.#offered.delete(port);
    for (const other of this.#offered) other.close();
    this.#offered.clear();
    this.#port = port;
    this.#channels = hello.channels;
    port.onmessage = ({ data }) => this.#grant(data as Wish);
    watch(hello.lock, this.#over.signal, () => this.close());
    for (const type of SIGNALS) {
      const target = type === "visibilitychange" ? document : globalThis;
      target.addEventListener(type, (event) => this.#tell(type, event), { signal: this.#over.signal });
    }
    this.#tell("visibilitychange");
    this.#attach();
  }

  #tell(type: Signal["type"], event?: Event): void {
    const { persisted = false } = (event ?? {}) as Partial<PageTransitionEvent>;
    this.#post({ op: "signal", type, visible: document.visibilityState === "visible", persisted });
  }

  readonly #post: Post = (news, transfer = []) => this.#port?.postMessage(news, transfer);

  #grant(wish: Wish): void {
    const peer = this.#peers.get(wish.id);
    if (wish.op !== "open") {
      if (wish.op === "close") this.#peers.delete(wish.id);
      return peer?.grant(wish);
    }
    try {
      if (peer || this.#peers.size >= MAX_CONNECTIONS) throw new DOMException("too many connections", "OperationError");
      this.#peers.set(wish.id, new Peer(wish.id, wish.configuration, this.#post, this.#channels));
    } catch (error) {
      this.#post({ op: "failed", id: wish.id, error: failure(error) });
    }
  }
}

/** A peer connection that a worker has wanted. */
class Peer {
  readonly #id: number;
  readonly #connection: RTCPeerConnection;
  readonly #post: Post;
  readonly #channels = new Map<number, Channel>();
  /** Whether data channels go to the worker. It is not known before one has gone. */
  #transfers: boolean;
  #calls = 0;
  #incoming = 1;
  #watches = false;
  /** The bytes that the worker has not taken yet. */
  #untaken = 0;

  constructor(id: number, configuration: RTCConfiguration, post: Post, transfers: boolean) {
    this.#id = id;
    this.#post = post;
    this.#transfers = transfers;
    this.#connection = new RTCPeerConnection(configuration);
    this.#connection.onicecandidate = ({ candidate }) => post({ op: "candidate", id, candidate: candidate?.toJSON() ?? null });
    this.#connection.onconnectionstatechange = () => this.#tellState();
    this.#connection.ondatachannel = ({ channel }) => this.#receive(channel);
  }

  close(): void {
    this.#connection.close();
    this.#channels.clear();
  }

  grant(wish: Exclude<Wish, { op: "open" }>): void {
    switch (wish.op) {
      case "close":
        return this.close();
      case "call":
        return void this.#call(wish.call, wish.method, wish.argument);
      case "configure":
        try {
          return this.#connection.setConfiguration(wish.configuration);
        } catch {
          return; // the candidates of the servers that are left out come in vain
        }
      case "taken":
        this.#untaken -= wish.bytes;
        return;
      case "channel":
        return this.#open(wish.channel, wish.label, wish.options);
      case "threshold":
        return this.#channels.get(wish.channel)?.lower(wish.bytes);
      case "send":
        return this.#channels.get(wish.channel)?.send(wish.data);
      case "shut":
        return this.#channels.get(wish.channel)?.close();
    }
  }

  async #call(call: number, method: Method, argument: unknown): Promise<void> {
    const id = this.#id;
    this.#calls += 1;
    try {
      if (this.#calls > MAX_CALLS) throw new DOMException("too many calls at once", "OperationError");
      this.#post({ op: "answer", id, call, value: await this.#run(method, argument) });
    } catch (error) {
      this.#post({ op: "answer", id, call, error: failure(error) });
    } finally {
      this.#calls -= 1;
    }
  }

  /** Calls a method at once, so that the connection sees all calls in their order. */
  async #run(method: Method, argument: unknown): Promise<unknown> {
    const connection = this.#connection;
    const description = (made: RTCSessionDescriptionInit | null) => made && { type: made.type, sdp: made.sdp };
    switch (method) {
      case "createOffer":
        return description(await connection.createOffer());
      case "createAnswer":
        return description(await connection.createAnswer());
      case "setLocalDescription":
        await connection.setLocalDescription(argument as RTCLocalSessionDescriptionInit);
        return description(connection.localDescription);
      case "setRemoteDescription":
        return connection.setRemoteDescription(argument as RTCSessionDescriptionInit);
      case "addIceCandidate":
        return connection.addIceCandidate(argument as RTCIceCandidateInit);
      case "getStats":
        return pairs(await connection.getStats());
      default:
        throw new TypeError("there is no such method");
    }
  }

  #tellState(): void {
    const { connectionState, iceConnectionState, sctp } = this.#connection;
    if (sctp && connectionState === "connected" && !this.#watches) {
      this.#watches = true;
      this.#watch("sctp", sctp);
      this.#watch("dtls", sctp.transport);
    }
    this.#post({ op: "state", id: this.#id, state: connectionState, ice: iceConnectionState });
  }

  /** The state of a transport says at once that the peer has closed the connection. */
  #watch(part: "sctp" | "dtls", transport: RTCSctpTransport | RTCDtlsTransport | undefined): void {
    const tell = () => transport && this.#post({ op: "transport", id: this.#id, part, state: transport.state });
    transport?.addEventListener("statechange", tell);
    tell();
  }

  #open(number: number, label: string, options: RTCDataChannelInit): void {
    const id = this.#id;
    try {
      if (this.#channels.size >= 2 * MAX_CHANNELS) throw new DOMException("too many channels", "OperationError");
      const channel = this.#connection.createDataChannel(label, options);
      if (!this.#give({ op: "given", id, channel: number, real: channel }, channel)) this.#keep(number, channel);
    } catch {
      this.#post({ op: "happens", id, channel: number, type: "close", state: "closed" });
    }
  }

  #receive(channel: RTCDataChannel): void {
    const number = this.#incoming;
    this.#incoming += 2;
    const news = { op: "incoming", id: this.#id, channel: number, label: channel.label, state: channel.readyState } as const;
    if (this.#give({ ...news, real: channel }, channel)) return;
    if (this.#channels.size >= 2 * MAX_CHANNELS) return channel.close();
    this.#keep(number, channel);
    this.#post(news);
  }

  /** Transfers a channel that has just been made. The browser throws, and keeps it whole, if it cannot. */
  #give(news: News, channel: RTCDataChannel): boolean {
    if (!this.#transfers) return false;
    try {
      this.#post(news, [channel as unknown as Transferable]);
    } catch {
      this.#transfers = false;
    }
    return this.#transfers;
  }

  /** Keeps a channel on this page, and passes on what happens to it. */
  #keep(number: number, channel: RTCDataChannel): void {
    const id = this.#id;
    const tell = (type: string, state: RTCDataChannelState) => this.#post({ op: "happens", id, channel: number, type, state });
    // For the worker the channel ends at once. The browser may send what waits before it closes it.
    const end = () => {
      channel.close();
      if (this.#channels.delete(number)) tell("close", "closed");
    };
    const kept = new Channel(channel, (total) => this.#post({ op: "drained", id, channel: number, total }), end);
    this.#channels.set(number, kept);
    for (const type of ["open", "closing", "error"]) {
      channel.addEventListener(type, () => this.#channels.has(number) && tell(type, channel.readyState));
    }
    channel.addEventListener("close", end);
    channel.addEventListener("message", ({ data }: MessageEvent<ArrayBuffer | string>) => {
      if (!this.#channels.has(number)) return;
      const isText = typeof data === "string";
      const bytes = isText ? data.length : data.byteLength;
      // A data channel cannot make its sender wait. Peers of this library respect a window far below this.
      if (this.#untaken + bytes > MAX_BYTES) return end();
      this.#untaken += bytes;
      this.#post({ op: "message", id, channel: number, data }, isText ? [] : [data]);
    });
  }
}

/** A data channel that stays on this page. */
class Channel {
  readonly #channel: RTCDataChannel;
  readonly #drained: (total: number) => void;
  /** Ends the channel because the worker has sent too much. */
  readonly #end: () => void;
  /** The bytes that the worker has sent, and those of which it knows that they have left the browser's buffer. */
  #sent = 0;
  #told = 0;

  constructor(channel: RTCDataChannel, drained: (total: number) => void, end: () => void) {
    this.#channel = channel;
    this.#drained = drained;
    this.#end = end;
    channel.binaryType = "arraybuffer";
    channel.addEventListener("bufferedamountlow", () => this.#tell());
  }

  lower(bytes: number): void {
    this.#channel.bufferedAmountLowThreshold = bytes;
  }

  send(data: ArrayBuffer): void {
    try {
      // A worker that waits for room never gets here.
      if (this.#channel.bufferedAmount + data.byteLength > MAX_BYTES) return this.#end();
      this.#channel.send(data);
    } catch {
      return; // it is closed, and its events say so
    }
    this.#sent += data.byteLength;
    // The worker counts down to its threshold. Above it the browser has an event, and below it there is none.
    const low = this.#channel.bufferedAmountLowThreshold;
    if (this.#channel.bufferedAmount <= low && this.#sent - this.#told > low) this.#tell();
  }

  close(): void {
    this.#channel.close();
  }

  #tell(): void {
    this.#told = this.#sent - this.#channel.bufferedAmount;
    this.#drained(this.#told);
  }
}

const KINDS = ["transport", "candidate-pair", "local-candidate", "remote-candidate"];

/** What statistics say of candidate pairs. */
function pairs(report: RTCStatsReport): object[] {
  const found: object[] = [];
  report.forEach((entry: RTCStats) => {
    if (KINDS.includes(entry.type)) found.push(entry);
  });
  return found;
}
