import type { ErrorCode } from "./errors.js";

/** How bytes reach the peer: from host to host, through a TURN server, or through a relay circuit. */
export type PathKind = "direct" | "turn" | "relayed";

/** The way in which a path was, or was not, found. */
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
  | "denied"
  | "quota"
  | "unsupported"
  | "no_gateway"
  | "no_pair"
  | "signalling"
  | "transport";

/**
 * Why traffic moved to another path. It is the `first` path, or it is `better` than the path before it, or
 * the path before it was `lost`. With `resumed`, every path was lost before, and this one came within
 * `resumeTimeoutMs`.
 */
export type ChangeReason = "first" | "better" | "lost" | "resumed";

/** The path that a connection uses. Addresses are personal data: keep them out of public logs. */
export interface Path {
  /** How the bytes travel. */
  readonly path: PathKind;
  /** The way in which the path was found. */
  readonly strategy: Strategy;
  /** The address of this end, if it is known. */
  readonly local?: string;
  /** The address of the peer's end or of the relay, if it is known. */
  readonly remote?: string;
  /** The last measured round-trip time in milliseconds, or `undefined` before the first measurement. */
  readonly rttMs?: number;
  /** The most bytes of a datagram that the path carries, at least 1120, or `undefined` if the peer takes none. */
  readonly maxDatagramSize?: number;
}

/** One way that was tried. Its times are milliseconds from the call to `connect`. */
export interface Attempt {
  /** The way that was tried. */
  readonly strategy: Strategy;
  /** What became of it. An attempt is cancelled when its path is no longer wanted. */
  readonly outcome: "succeeded" | "failed" | "cancelled";
  /** When it began. */
  readonly startedMs: number;
  /** When it ended. */
  readonly endedMs: number;
  /** Why it failed or was cancelled, as a name for use in a `switch`. */
  readonly cause?: Cause;
  /** Why it failed or was cancelled, and what to do about it, for people. */
  readonly reason?: string;
}

/**
 * An event of a connection. `ms` counts from the call to `connect`. On the accepting side it counts from
 * the first path.
 */
export type PathEvent =
  /** Traffic moved to this path, and open streams moved along. */
  | ({
      readonly event: "path";
      /** When it happened. */
      readonly ms: number;
      /** Why traffic moved. */
      readonly reason: ChangeReason;
    } & Path)
  /** Every path is gone. Streams wait for a new path, at most for `resumeTimeoutMs`. */
  | {
      readonly event: "lost";
      /** When it happened. */
      readonly ms: number;
    }
  /** The path in use carries datagrams of another size than before. */
  | {
      readonly event: "datagram_size";
      /** When it happened. */
      readonly ms: number;
      /** The most bytes of a datagram from now on, or `undefined` if the peer takes none. */
      readonly maxDatagramSize?: number;
    }
  /** An attempt ended. */
  | ({ readonly event: "attempt" } & Attempt)
  /** The reader was too slow and missed this many events. */
  | {
      readonly event: "lagged";
      /** How many events are missing. */
      readonly missed: number;
    }
  /** The connection is closed. No event follows. */
  | {
      readonly event: "closed";
      /** Why it is closed. */
      readonly code: ErrorCode;
    };

/** An event of a connector. */
export type ConnectorEvent =
  /**
   * A relay says that this peer's quota there is nearly used up, or is. When nothing is left of it, the relay ends
   * circuits to this peer, and refuses new ones with `quota_exceeded`, until the quota begins anew.
   */
  | {
      readonly event: "quota";
      /** The id of the relay. */
      readonly relay: string;
      /** How many more bytes the relay carries. */
      readonly left: number;
      /** How many bytes the quota has in all. */
      readonly total: number;
      /** For how long the quota is given. */
      readonly period: "day" | "month";
      /** In how many milliseconds the quota begins anew. */
      readonly endsMs: number;
    }
  /** The reader was too slow and missed this many events. */
  | {
      readonly event: "lagged";
      /** How many events are missing. */
      readonly missed: number;
    };

/** One relay in a {@link Report} or a {@link Status}. */
export interface RelayReport {
  /** It is empty for a relay that is configured by its name, as long as the relay has not said who it is. */
  readonly peerId: string;
  /** The name or URL by which the relay is configured, if it is not by a multiaddress. */
  readonly name?: string;
  /** Whether this connector is connected to the relay. */
  readonly connected: boolean;
  /** Whether the relay holds a reservation of this connector. */
  readonly reserved: boolean;
  /** Whether the relay forwards bytes before the other peer has agreed, as relays of this library do. */
  readonly forwards: boolean;
  /** What went wrong last, for people, unless nothing has. */
  readonly lastError?: string;
  /** The last measured round-trip time to the relay in milliseconds. */
  readonly rttMs?: number;
}

/** One STUN server in a {@link NatReport}. */
export interface StunReport {
  /** The URL of the server. */
  readonly server: string;
  /** The address under which the server saw this connector. Personal data. */
  readonly mapped?: string;
  /** How long the server took to answer, in milliseconds. */
  readonly rttMs?: number;
  /** Why there is no answer, for people. */
  readonly error?: string;
}

/** The NAT in front of a connector, as far as it is known. A browser does not tell. */
export interface NatReport {
  /** For which destinations the NAT reuses a mapping. */
  readonly mapping: "unknown" | "none" | "endpoint_independent" | "address_dependent" | "address_and_port_dependent";
  /** Whose datagrams the NAT lets in. */
  readonly filtering: "unknown" | "endpoint_independent" | "address_dependent" | "address_and_port_dependent";
  /** How the NAT picks ports. */
  readonly ports: "unknown" | "preserved" | "contiguous" | "random";
  /** With `contiguous`, how far the next port is from the one before it. */
  readonly portStep?: number;
  /** The external addresses of the NAT. Personal data. */
  readonly external: readonly string[];
  /** What each STUN server answered. */
  readonly stun: readonly StunReport[];
  /** Whether the router maps a port. `useless` is a mapping that nobody outside can reach. */
  readonly portMapping: "off" | "searching" | "unavailable" | "useless" | "mapped";
  /** The address that the router maps. Personal data. */
  readonly mapped?: string;
  /** The protocols by which the router maps ports. */
  readonly protocols: {
    /** UPnP Internet Gateway Device. */
    readonly upnp: boolean;
    /** NAT-PMP, RFC 6886. */
    readonly natPmp: boolean;
    /** The Port Control Protocol, RFC 6887. */
    readonly pcp: boolean;
  };
}

/** The report of what a connector knows about its own network position now. */
export interface Report {
  /** The id of this connector's peer. */
  readonly peerId: string;
  /** The relays of this connector. */
  readonly relays: readonly RelayReport[];
  /** The addresses at which this connector listens. It is always empty in a page. Personal data. */
  readonly listening: readonly string[];
  /** The addresses under which others have seen this connector. Personal data. */
  readonly observed: readonly string[];
  /** The NAT in front of this connector. */
  readonly nat: NatReport;
  /** The addresses of this connector that others are known to reach. It is always empty in a page. Personal data. */
  readonly confirmed: readonly string[];
  /** How many connections are open. */
  readonly connections: number;
  /** The strategies that this connector can use here. */
  readonly strategies: readonly Strategy[];
}

/** What a connector is to others now. */
export interface Status {
  /**
   * Whether others can reach this peer. While it is `connecting`, a relay is being reached. While it is
   * `unreachable`, the relays are tried again and again.
   */
  readonly state: "connecting" | "reachable" | "unreachable";
  /** Why others cannot reach this peer, and what to do about it. */
  readonly reason?: string;
  /** The ticket as it is now. */
  readonly ticket: string;
  /** The relays of this connector. */
  readonly relays: readonly RelayReport[];
  /** The NAT in front of this connector. */
  readonly nat: NatReport;
  /** The addresses at which this connector listens. It is always empty in a page. Personal data. */
  readonly listening: readonly string[];
  /** The addresses of this connector that others are known to reach. It is always empty in a page. Personal data. */
  readonly confirmed: readonly string[];
}
