import { snakeCased } from "./casing.js";
import { count, list, members, signal, text, texts, truth, wasm } from "./check.js";
import { ThroughlineError } from "./errors.js";
import type { Strategy } from "./events.js";
import type { WasmSource } from "./load.js";
import type { Options } from "./options.js";
import { mostStreams } from "./platform.js";

/** A STUN or TURN server, as `RTCPeerConnection` takes it. */
export interface IceServer {
  /** One or several addresses that start with `stun:`, `stuns:`, `turn:` or `turns:`. */
  readonly urls: string | readonly string[];
  /** The name for TURN servers. */
  readonly username?: string;
  /** The password for TURN servers. Keep it secret. */
  readonly credential?: string;
}

/** Milliseconds by strategy. A strategy that is left out keeps its default. */
export type StartDelays = { readonly [S in Strategy as S extends "circuit_relay" ? "circuitRelay" : S]?: number };

/** A token for relays, or a function that fetches one when it is needed. */
export type RelayTokens = string | (() => Promise<string>);

/** The configuration of a connector. Every option may be left out. Unknown names are refused. */
export interface Config extends Options {
  /**
   * The relay, or several: a name such as `relay.example.org`, a URL such as `location.origin`, or a
   * multiaddress. It says everything else by itself: its addresses over every transport, and its STUN and TURN
   * servers. These come before those in `relays`.
   */
  readonly relay?: string | readonly string[];
  /**
   * The STUN and TURN servers. Defaults to those that your relays name, so that no other server is asked. STUN
   * over TLS (`stuns:`) is refused, as on native targets, because it finds no address to which a peer can
   * send.
   */
  readonly iceServers?: readonly IceServer[];
  /** The secret of the peer's identity, from {@link generateIdentity}. Defaults to a fresh identity. */
  readonly identity?: string;
}

/** {@link Config}, and options that matter only while the connector is created. */
export interface CreateOptions extends Config {
  /** Rejects the creation with `signal.reason`. After the creation it has no effect. */
  readonly signal?: AbortSignal;
  /** Where the WebAssembly comes from. Defaults to the file beside this package's modules. */
  readonly wasm?: WasmSource;
}

type Check = (name: string, value: unknown, unknown: UnknownOption[]) => unknown;

const startDelays: { readonly [N in keyof StartDelays]-?: Check } = {
  direct: count,
  stun: count,
  upnp: count,
  circuitRelay: count,
  turn: count,
  birthday: count,
};

/** Every option with the check of its type. Ranges and addresses are checked in Rust. */
const options: { readonly [N in keyof CreateOptions]-?: Check } = {
  relay: (name, value) => (typeof value === "string" ? [value] : texts(name, value)),
  relays: texts,
  iceServers: (name, value) => list(name, value).map((server, index) => iceServer(`${name}[${index}]`, server)),
  protocols: texts,
  relayTokens: (name, value) => (typeof value === "function" ? value : text(name, value, "invalid_config")),
  identity: (name, value) => text(name, value, "invalid_identity"),
  reserve: truth,
  relayReservations: count,
  direct: truth,
  directory: truth,
  dialPrivate: truth,
  connectTimeoutMs: count,
  strategyTimeoutMs: count,
  startDelaysMs: (name, value, unknown) => checked(`${name}.`, members(name, value), startDelays, unknown),
  acceptanceDelayMs: count,
  relayTimeoutMs: count,
  stunTimeoutMs: count,
  portMapping: truth,
  portMappingTimeoutMs: count,
  upgradeTries: count,
  upgradeBackoffMs: count,
  resumeTimeoutMs: count,
  probeIntervalMs: count,
  probeTimeoutMs: count,
  idleTimeoutMs: count,
  circuitIdleTimeoutMs: count,
  streamWindow: count,
  maxCircuits: count,
  maxConnections: count,
  maxStreams: count,
  signal: (_, value) => signal(value),
  wasm: (_, value) => wasm(value),
};

/** An option that does not exist, and the names of those that exist. */
export interface UnknownOption {
  readonly name: string;
  readonly known: readonly string[];
}

/**
 * Checks the types of the options of `Connector.create`. Also returns the first option that does not
 * exist. Only the WebAssembly can find the nearest existing name.
 */
export function toOptions(given: unknown): { options: CreateOptions; unknown?: UnknownOption } {
  const unknown: UnknownOption[] = [];
  const valid = checked("", given === undefined ? {} : members("options", given), options, unknown);
  return { options: valid as CreateOptions, ...(unknown[0] && { unknown: unknown[0] }) };
}

function checked(
  within: string,
  given: Readonly<Record<string, unknown>>,
  checks: Readonly<Record<string, Check>>,
  unknown: UnknownOption[],
): Record<string, unknown> {
  const valid: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(given)) {
    const check = Object.hasOwn(checks, name) ? checks[name] : undefined;
    if (!check) unknown.push({ name, known: Object.keys(checks) });
    else if (value !== undefined) valid[name] = check(within + name, value, unknown);
  }
  return valid;
}

function iceServer(name: string, value: unknown): Required<IceServer> {
  const { urls, username = "", credential = "" } = members(name, value);
  return {
    urls: typeof urls === "string" ? [urls] : texts(`${name}.urls`, urls),
    username: text(`${name}.username`, username, "invalid_config"),
    credential: text(`${name}.credential`, credential, "invalid_config"),
  };
}

/**
 * Converts options to the form and the names of Rust's `Config`, which has separate lists of STUN and
 * TURN servers.
 */
export function toRawConfig(options: CreateOptions): object {
  const { signal: _signal, wasm: _wasm, identity: _identity, relay = [], iceServers = [], ...rest } = options;
  const relays = [relay, rest.relays ?? []].flat();
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
  const most = mostStreams();
  // Rust refuses what is above its range.
  const { maxStreams = most } = rest;
  const fits = most && maxStreams && maxStreams <= 65_536 ? { maxStreams: Math.min(maxStreams, most) } : {};
  return { ...(snakeCased({ ...rest, ...fits }) as object), relays, stun, turn };
}
