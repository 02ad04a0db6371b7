import { snakeCased } from "./casing.js";
import { ThroughlineError } from "./errors.js";
import type { Strategy } from "./events.js";
import type { WasmSource } from "./load.js";

/** A STUN or TURN server, as `RTCPeerConnection` takes it. */
export interface IceServer {
  readonly urls: string | readonly string[];
  readonly username?: string;
  readonly credential?: string;
}

/** Milliseconds by strategy; what is left out keeps its default. */
export type StartDelays = { readonly [S in Strategy as S extends "circuit_relay" ? "circuitRelay" : S]?: number };

/**
 * The configuration of a connector. Every value may be left out; unknown names are refused. The
 * numbers' meanings, ranges and defaults are those of Rust's `Config`.
 */
export interface Config {
  /** Relays to be reached through: multiaddresses ending in `/p2p/<id>`. Defaults to none. */
  readonly relays?: readonly string[];
  /**
   * STUN and TURN servers. Defaults to none, so that nobody is asked without your knowledge. STUN over
   * TLS (`stuns:`) is refused, as on native targets, where it finds no address that a peer can send to.
   */
  readonly iceServers?: readonly IceServer[];
  /** Protocol names that stock libp2p peers may open streams with. Defaults to none. */
  readonly protocols?: readonly string[];
  /** Who to be: a secret of {@link generateIdentity}. Defaults to a fresh identity. */
  readonly identity?: string;
  /** Whether to hold reservations, that is, to be reachable. Defaults to `true`. */
  readonly reserve?: boolean;
  /** How many relays to hold reservations on. 1 to 16, defaults to 2. */
  readonly relayReservations?: number;
  /** Whether to try for paths other than the relay. Defaults to `true`. */
  readonly direct?: boolean;
  /**
   * Whether relays that tickets name are dialled in private networks and on this machine. Defaults to
   * `true`. A program in Node or Deno that dials its users' tickets sets it to `false`.
   */
  readonly dialPrivate?: boolean;
  /** The longest a connect may take. 100 to 600,000 ms, defaults to 10,000. */
  readonly connectTimeoutMs?: number;
  /** The longest one attempt by one strategy may take. 100 to 600,000 ms, defaults to 10,000. */
  readonly strategyTimeoutMs?: number;
  /** How long each strategy waits for its start. 0 to 60,000 ms, defaults to 0, `birthday` to 1,000. */
  readonly startDelaysMs?: StartDelays;
  /** How long a path that is not direct is held back while a direct one may come. 0 to 60,000 ms, defaults to 0. */
  readonly acceptanceDelayMs?: number;
  /** The longest a relay may take to be reached and to grant a reservation. 100 to 600,000 ms, defaults to 10,000. */
  readonly relayTimeoutMs?: number;
  /** How long a STUN server may take to answer. 100 to 60,000 ms, defaults to 5,000; nothing waits for it. */
  readonly stunTimeoutMs?: number;
  /** Whether a native peer asks its router to forward a port; without effect in a browser. */
  readonly portMapping?: boolean;
  /** How long the router may take to answer that. 100 to 60,000 ms, defaults to 5,000. */
  readonly portMappingTimeoutMs?: number;
  /** How often each strategy for a direct path is repeated after a failure. 0 to 100, defaults to 3. */
  readonly upgradeTries?: number;
  /** The pause before the first repetition; it doubles each time. 10 to 600,000 ms, defaults to 2,000. */
  readonly upgradeBackoffMs?: number;
  /** How long streams wait for a path after the last one is lost. 0 to 3,600,000 ms, defaults to 30,000. */
  readonly resumeTimeoutMs?: number;
  /** A connection without streams and handles is closed after this. 0 to 3,600,000 ms, defaults to 30,000. */
  readonly idleTimeoutMs?: number;
  /** Bytes in flight per stream and direction. 64 KiB to 64 MiB, defaults to 4 MiB. */
  readonly streamWindow?: number;
  /** Circuits open through relays at a time. 1 to 1,024, defaults to 16. */
  readonly maxCircuits?: number;
  /** Connections open at a time. 1 to 65,536, defaults to 1,024. */
  readonly maxConnections?: number;
  /** Streams open at a time on one connection. 1 to 65,536, defaults to 1,024. */
  readonly maxStreams?: number;
}

/** {@link Config}, with what only matters while the connector is made. */
export interface CreateOptions extends Config {
  /** Rejects the creation with `signal.reason`; later it has no effect. */
  readonly signal?: AbortSignal;
  /** Where the WebAssembly comes from. Defaults to the file beside this package's modules. */
  readonly wasm?: WasmSource;
}

/**
 * Options in the form and with the names of Rust's `Config`, where STUN and TURN servers are separate
 * lists. What is left, known or not, is checked there, so that there is one list of names.
 */
export function toRawConfig(options: CreateOptions): object {
  const { signal: _signal, wasm: _wasm, identity: _identity, iceServers = [], ...rest } = options;
  const stun: string[] = [];
  const turn: object[] = [];
  for (const [index, server] of iceServers.entries()) {
    const { urls, username = "", credential = "" } = server;
    for (const url of typeof urls === "string" ? [urls] : urls) {
      if (/^stuns?:/.test(url)) stun.push(url);
      else if (/^turns?:/.test(url)) turn.push({ url, username, credential });
      else {
        throw new ThroughlineError(
          "invalid_config",
          `iceServers[${index}].urls: "${url}" does not start with stun:, stuns:, turn: or turns:`,
        );
      }
    }
  }
  return { ...(snakeCased(rest) as object), stun, turn };
}
