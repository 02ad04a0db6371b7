/** What a tab and the worker that it shares say to each other, and what bounds it. */
import { ThroughlineError, toError, type ErrorCode, type ThroughlineErrorOptions } from "./errors.js";

/** How a tab joins a worker, with its port. The last part is the version. */
export const JOIN = "throughline-tabs-join-2";

/** The most tabs of one worker. */
export const MAX_TABS = 64;
/** The most connections, streams and rooms that the worker keeps for one tab. */
export const MAX_HANDLES = 16_384;
/** The most calls of one tab without an answer. A stream has two at most, one for each direction. */
export const MAX_CALLS = 2 * MAX_HANDLES;

/** What a tab sends to the worker, with the port for everything else. */
export interface Joining {
  readonly throughline: typeof JOIN;
  /** The lock of the tab. */
  readonly lock: string;
}

/** The handle of the connector. The worker numbers all others. */
export const CONNECTOR = 0;

/**
 * What a tab wants. The worker says nothing but answers, so nothing piles up before a tab that does not listen: what
 * happens to a connection is the answer to a call that waits for it.
 */
export type Wish =
  /** Calls a method of what has the handle `on`. */
  | { readonly op: "call"; readonly call: number; readonly on: number; readonly method: string; readonly args: readonly unknown[] }
  /** Ends a call that waits. */
  | { readonly op: "abort"; readonly call: number }
  /** Nobody has the handle any more. */
  | { readonly op: "drop"; readonly on: number }
  /** Whether the user sees the tab. */
  | { readonly op: "see"; readonly visible: boolean }
  /** The tab leaves. The answer comes when its connections are closed. */
  | { readonly op: "leave"; readonly call: number };

/** The answer to a call: a value, or what was thrown. */
export interface Answer {
  readonly call: number;
  readonly value?: unknown;
  readonly fault?: Fault;
}

/** The answer to the first call, `greet`: the worker is there. */
export interface Greeted {
  /** The lock of the worker. */
  readonly lock: string;
}

/** The answer to the second call, `join`. */
export interface Joined extends State {
  readonly peerId: string;
}

/** What a connector says of itself. */
export interface State {
  readonly status: object;
  readonly ticket: string;
  readonly shortTicket: string;
}

/** A connection that a tab has got. */
export interface Connected extends Course {
  readonly on: number;
  readonly peerId: string;
}

/** What a connection says of itself. */
export interface Course {
  readonly path: object | undefined;
  readonly attempts: object[];
}

/** A stream that a tab has got. */
export interface Streamed {
  readonly on: number;
  readonly protocol: string;
  readonly early: boolean;
}

/** A room that a tab has entered. */
export interface Entered {
  readonly on: number;
  readonly members: readonly Happening[];
}

/** A change in a room: a kind, an id and data. */
export type Happening = [string, string, Uint8Array];

/** A `ThroughlineError` as it crosses. A copy of an error itself would lose what makes it one. */
export interface Fault extends Omit<ThroughlineErrorOptions, "cause"> {
  readonly code: ErrorCode;
  readonly message: string;
  /** What the causes say, the nearest first. */
  readonly causes: readonly string[];
}

/** The most causes that cross. */
const MAX_CAUSES = 8;

export function pack(thrown: unknown): Fault {
  const { code, message, attempts, resetCode, retryAfterMs, load, cause } = toError(thrown);
  const causes: string[] = [];
  for (let at = cause; at instanceof Error && causes.length < MAX_CAUSES; at = at.cause) causes.push(at.message);
  const known = Object.entries({ resetCode, retryAfterMs, load }).filter(([, value]) => value !== undefined);
  return { code, message, attempts, causes, ...Object.fromEntries(known) };
}

export function unpack({ code, message, causes, ...rest }: Fault): ThroughlineError {
  const within = (inner: ErrorOptions, text: string) => ({ cause: new Error(text, inner) });
  return new ThroughlineError(code, message, { ...rest, ...causes.reduceRight<ErrorOptions>(within, {}) });
}
