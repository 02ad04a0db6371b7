// Written from the table in src/config/options.rs by `make options`; a test compares the two.
import type { RelayTokens, StartDelays } from "./config.js";

/** The options of a connector that Rust and JavaScript share. */
export interface Options {
  /**
   * The relays through which others can reach this peer: names, URLs, or multiaddresses that end in `/p2p/<id>`.
   * 0 to 64 texts, 0 to 16 relays; defaults to none.
   */
  readonly relays?: readonly string[];
  /** Whether to hold reservations on relays, so that others can reach this peer through them. Defaults to `true`. */
  readonly reserve?: boolean;
  /** On how many relays to hold a reservation at a time. 1 to 16 relays; defaults to 2. */
  readonly relayReservations?: number;
  /**
   * The token for relays that admit only its holders. A page can give a function that fetches one. Defaults to
   * none.
   */
  readonly relayTokens?: RelayTokens;
  /** The protocols for which stock libp2p peers may open streams. 0 to 256 protocols; defaults to none. */
  readonly protocols?: readonly string[];
  /** Whether to try for paths other than the relay. Defaults to `true`. */
  readonly direct?: boolean;
  /** Whether to dial addresses in private networks and on this machine when others name them. Defaults to `true`. */
  readonly dialPrivate?: boolean;
  /** The longest time that a connect may take. 100 to 600,000 ms; defaults to 10,000. */
  readonly connectTimeoutMs?: number;
  /** The longest time that one attempt by one strategy may take. 100 to 600,000 ms; defaults to 10,000. */
  readonly strategyTimeoutMs?: number;
  /**
   * How long each strategy waits before it starts, by the strategy's name. 0 to 60,000 ms; defaults to 0, and
   * 1,000 for `birthday`, and 1,000 for `turn`.
   */
  readonly startDelaysMs?: StartDelays;
  /**
   * How long a connect holds back a path that is not direct while a direct path may still come. 0 to 60,000 ms;
   * defaults to 0.
   */
  readonly acceptanceDelayMs?: number;
  /**
   * The longest time that a relay may take to be reached and to grant a reservation. 100 to 600,000 ms; defaults
   * to 10,000.
   */
  readonly relayTimeoutMs?: number;
  /** The longest time that a STUN server may take to answer. 100 to 60,000 ms; defaults to 5,000. */
  readonly stunTimeoutMs?: number;
  /** Whether a native peer asks its router to forward a port. A page has no port to forward. Defaults to `true`. */
  readonly portMapping?: boolean;
  /** The longest time that the router may take to answer a native peer. 100 to 60,000 ms; defaults to 5,000. */
  readonly portMappingTimeoutMs?: number;
  /**
   * How often a failed strategy for a direct path is repeated until it is only repeated once a minute. 0 to 100
   * tries; defaults to 3.
   */
  readonly upgradeTries?: number;
  /**
   * The pause before a failed strategy is first repeated. It doubles each time. 10 to 600,000 ms; defaults to
   * 2,000.
   */
  readonly upgradeBackoffMs?: number;
  /** How long streams wait for a path after the last one is lost. 0 to 3,600,000 ms; defaults to 120,000. */
  readonly resumeTimeoutMs?: number;
  /** The pause between two probes of a path that carries nothing. 250 to 600,000 ms; defaults to 5,000. */
  readonly probeIntervalMs?: number;
  /**
   * The shortest time after which a path that leaves a probe unanswered is suspect. 100 to 60,000 ms; defaults to
   * 1,000.
   */
  readonly probeTimeoutMs?: number;
  /** How long a connection without streams and handles stays open. 0 to 3,600,000 ms; defaults to 30,000. */
  readonly idleTimeoutMs?: number;
  /**
   * How long a direct path may carry nothing until the circuit beside it is closed. 1,000 to 86,400,000 ms;
   * defaults to 60,000.
   */
  readonly circuitIdleTimeoutMs?: number;
  /** How many bytes may be in flight on one stream in one direction. 64 KiB to 64 MiB; defaults to 4 MiB. */
  readonly streamWindow?: number;
  /** How many circuits this peer has open through relays at a time. 1 to 1,024 circuits; defaults to 16. */
  readonly maxCircuits?: number;
  /** Whether relays may tell those who know this peer's id where it is. Defaults to `true`. */
  readonly directory?: boolean;
  /** How many connections are open at a time, in and out. 1 to 65,536 connections; defaults to 1,024. */
  readonly maxConnections?: number;
  /**
   * How many streams are open at a time on one connection. A page has 480 at most, and 120 in Firefox. 1 to
   * 65,536 streams; defaults to 1,024.
   */
  readonly maxStreams?: number;
}
