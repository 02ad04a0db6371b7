/** How bytes reach the peer: from host to host, through a TURN server, or through a relay circuit. */
export type PathKind = "direct" | "turn" | "relayed";

/** The way by which a path was, or was not, brought about. */
export type Strategy = "direct" | "stun" | "upnp" | "circuit_relay" | "turn" | "birthday";

/** Why an {@link Attempt} gave no path. */
export type Cause =
  | "cancelled"
  | "timeout"
  | "refused"
  | "unreachable"
  | "wrong_peer"
  | "no_address"
  | "forbidden"
  | "relay_unreachable"
  | "no_reservation"
  | "limit"
  | "unsupported"
  | "no_gateway"
  | "no_pair"
  | "signalling"
  | "transport";

/** The path a connection uses. Addresses are personal data: keep them out of public logs. */
export interface Path {
  readonly path: PathKind;
  readonly strategy: Strategy;
  /** Our end, where it is known. */
  readonly local?: string | null;
  /** The peer's end or the relay's address, where it is known. */
  readonly remote?: string | null;
  /** The last measured round-trip time in milliseconds, once there is one. */
  readonly rttMs?: number | null;
}

/** One way that was tried. Times are milliseconds from the call to `connect`. */
export interface Attempt {
  readonly strategy: Strategy;
  readonly outcome: "succeeded" | "failed" | "cancelled";
  readonly startedMs: number;
  readonly endedMs: number;
  /** Why it failed or was cancelled, as a name to match on. */
  readonly cause?: Cause | null;
  /** Why it failed or was cancelled and what to do about it, for people. */
  readonly reason?: string | null;
}

/**
 * What happens to a connection. `ms` counts from the call to `connect`; on the accepting side from
 * the first path.
 */
export type PathEvent =
  /** Traffic moved to this path, and open streams with it. */
  | ({ readonly event: "path"; readonly ms: number; readonly reason: string } & Path)
  /** Every path is gone; streams wait, at most for `resumeTimeoutMs`. */
  | { readonly event: "lost"; readonly ms: number }
  /** An attempt ended. */
  | ({ readonly event: "attempt" } & Attempt)
  /** The reader was too slow and missed this many events. */
  | { readonly event: "lagged"; readonly missed: number }
  /** The connection is closed, with the code of the reason; nothing follows. */
  | { readonly event: "closed"; readonly code: string };

/** One relay in a {@link Report}. */
export interface RelayReport {
  readonly peerId: string;
  readonly connected: boolean;
  readonly reserved: boolean;
  /** Whether it forwards what is sent before the peer has agreed, as relays of this library do. */
  readonly forwards: boolean;
  readonly lastError?: string | null;
  readonly rttMs?: number | null;
}

/** One STUN server in a {@link NatReport}. */
export interface StunReport {
  readonly server: string;
  readonly mapped?: string | null;
  readonly rttMs?: number | null;
  readonly error?: string | null;
}

/** The NAT before a connector, as far as it is known; a browser does not tell. */
export interface NatReport {
  /** When it reuses a mapping. */
  readonly mapping: "unknown" | "none" | "endpoint_independent" | "address_dependent" | "address_and_port_dependent";
  /** Whom it lets in. */
  readonly filtering: "unknown" | "endpoint_independent" | "address_dependent" | "address_and_port_dependent";
  /** How it picks ports. */
  readonly ports: "unknown" | "preserved" | "contiguous" | "random";
  readonly portStep?: number | null;
  readonly external: readonly string[];
  readonly stun: readonly StunReport[];
  readonly portMapping: "off" | "searching" | "unavailable" | "useless" | "mapped";
  readonly mapped?: string | null;
  readonly protocols: { readonly upnp: boolean; readonly natPmp: boolean; readonly pcp: boolean };
}

/** What a connector knows about its own network position now. */
export interface Report {
  readonly peerId: string;
  readonly relays: readonly RelayReport[];
  readonly listening: readonly string[];
  readonly observed: readonly string[];
  readonly nat: NatReport;
  /** Those of our addresses that others are known to reach. Always empty on a page. Personal data. */
  readonly confirmed: readonly string[];
  readonly connections: number;
  readonly strategies: readonly Strategy[];
}
