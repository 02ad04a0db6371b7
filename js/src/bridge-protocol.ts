/** What a page and a worker say to each other over the port of a bridge, and what bounds it. */

/** How a page offers a bridge, with its port, and how a worker asks for one. The last part is the version. */
export const OFFER = "throughline-bridge-offer-1";
export const ASK = "throughline-bridge-ask-1";

/** The most peer connections of one bridge. Chromium has 500 for a page. */
export const MAX_CONNECTIONS = 500;
/** The most data channels that a worker has opened on one connection. Chromium has ids for 512. */
export const MAX_CHANNELS = 512;
/** The most calls without an answer on one connection. A peer may trickle many candidates at once. */
export const MAX_CALLS = 256;
/** The most bytes that wait at either end of a connection. The WebAssembly has the same limit for what it receives. */
export const MAX_BYTES = 16 * 1024 * 1024;
/** A worker tells the page each time when it has taken this many bytes of a connection. */
export const TAKEN = 256 * 1024;

/** What is sent from one to the other to find it. */
export interface Meeting {
  readonly throughline: typeof OFFER | typeof ASK;
  /** The lock of the page that offers. */
  readonly lock?: string;
}

/** The first message of a worker on the port. */
export interface Hello {
  readonly lock: string;
  /** Whether data channels exist there, so that they may be transferred. */
  readonly channels: boolean;
}

/** The methods of `RTCPeerConnection` that are called for a worker and that have an answer. */
export type Method =
  | "createOffer"
  | "createAnswer"
  | "setLocalDescription"
  | "setRemoteDescription"
  | "addIceCandidate"
  | "getStats";

/** What a worker wants of the connection `id`. Its own channels have even numbers, and those of the peer odd ones. */
export type Wish = { readonly id: number } & (
  | { readonly op: "open"; readonly configuration: RTCConfiguration }
  | { readonly op: "configure"; readonly configuration: RTCConfiguration }
  | { readonly op: "call"; readonly call: number; readonly method: Method; readonly argument: unknown }
  | { readonly op: "close" }
  | { readonly op: "taken"; readonly bytes: number }
  | { readonly op: "channel"; readonly channel: number; readonly label: string; readonly options: RTCDataChannelInit }
  | { readonly op: "threshold"; readonly channel: number; readonly bytes: number }
  | { readonly op: "send"; readonly channel: number; readonly data: ArrayBuffer }
  | { readonly op: "shut"; readonly channel: number }
);

/** What happens to the connection `id` on the page. */
export type News = { readonly id: number } & (
  | { readonly op: "failed"; readonly error: Failure }
  | { readonly op: "answer"; readonly call: number; readonly value?: unknown; readonly error?: Failure }
  | { readonly op: "candidate"; readonly candidate: RTCIceCandidateInit | null }
  | { readonly op: "transport"; readonly part: "sctp" | "dtls"; readonly state: string }
  | { readonly op: "state"; readonly state: RTCPeerConnectionState; readonly ice: RTCIceConnectionState }
  | { readonly op: "incoming"; readonly channel: number; readonly label: string; readonly state: RTCDataChannelState; readonly real?: RTCDataChannel }
  | { readonly op: "given"; readonly channel: number; readonly real: RTCDataChannel }
  | { readonly op: "happens"; readonly channel: number; readonly type: string; readonly state: RTCDataChannelState }
  | { readonly op: "message"; readonly channel: number; readonly data: ArrayBuffer | string }
  | { readonly op: "drained"; readonly channel: number; readonly total: number }
);

/** An event of the page itself, which happens in its worker too. */
export interface Signal {
  readonly op: "signal";
  readonly type: (typeof SIGNALS)[number];
  readonly visible: boolean;
  readonly persisted: boolean;
}

/** The events of a page that do not happen in a worker, and that a `Connector` listens for. */
export const SIGNALS = ["visibilitychange", "pageshow", "pagehide"] as const;

/** What a call threw. */
export interface Failure {
  readonly name: string;
  readonly message: string;
}

export function failure(thrown: unknown): Failure {
  const { name, message } = Object(thrown) as Partial<Error>;
  return { name: String(name ?? "Error"), message: String(message ?? thrown) };
}

/** Where a page and a worker meet: a worker, the inside of one, or a port. */
export interface Endpoint {
  addEventListener(type: "message", listener: (event: MessageEvent) => void, options?: AddEventListenerOptions): void;
  postMessage(message: unknown, transfer: Transferable[]): void;
  start?(): void;
}

/**
 * Says that this page or worker is there, by a lock that it holds. The browser gives the lock to whoever waits for it
 * when its holder is gone, however that ended.
 */
export class Presence {
  readonly lock = `throughline-bridge-${crypto.randomUUID()}`;
  /** Resolves when the lock is held. */
  readonly held: Promise<void>;
  #release: () => void = () => {};

  constructor() {
    const released = new Promise<void>((resolve) => (this.#release = resolve));
    this.held = new Promise((resolve, reject) => {
      const hold = () => {
        resolve();
        return released;
      };
      navigator.locks.request(this.lock, hold).catch(reject);
    });
  }

  /** Says that it is gone. */
  end(): void {
    this.#release();
  }
}

/** Calls `gone` when the holder of a lock is gone, unless `signal` is aborted first. */
export function watch(lock: string, signal: AbortSignal, gone: () => void): void {
  navigator.locks.request(lock, { signal }, () => {}).then(gone, () => {});
}
