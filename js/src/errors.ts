import type { Attempt } from "./events.js";
import { camelCased, inCamelCase } from "./casing.js";

/** Every error code, the same as in Rust; each says what to do about it. */
export const errorCodes = [
  /** A ticket does not parse. The message names the part. Ask the peer for a fresh one. */
  "invalid_ticket",
  /** A multiaddress or URL does not parse or has the wrong form for its place. */
  "invalid_address",
  /** A configuration value is unknown, of the wrong type or out of range. The message names it. */
  "invalid_config",
  /** An identity is malformed. */
  "invalid_identity",
  /** A protocol name is empty, too long or has control characters. */
  "invalid_protocol",
  /** The peer or the network sent something that its protocol forbids. */
  "protocol_violation",
  /** No configured relay could be reached, or none granted a reservation. */
  "no_relay",
  /** No path to the peer came up; `attempts` lists every attempt. */
  "unreachable",
  /** The peer that answered is not the one the ticket names. Nothing was sent to it. */
  "wrong_peer",
  /** A deadline of the configuration passed. The message says which. */
  "timeout",
  /** The peer does not serve the protocol that was asked for. */
  "protocol_refused",
  /** A limit, ours or the peer's, was reached. The message says which. */
  "limit_exceeded",
  /** The stream was reset by either side. */
  "stream_reset",
  /** The connection was closed by either side; its streams are gone. */
  "connection_closed",
  /** Every path was lost and none came back within the resume timeout. */
  "connection_lost",
  /** The connector was closed. */
  "connector_closed",
  /** The operation was cancelled. With an `AbortSignal`, its `reason` is thrown instead. */
  "aborted",
  /** A worker, Node.js or an insecure context: WebRTC is not to be had here. */
  "unsupported_platform",
  /** The browser refused something; `cause` has its words. */
  "io",
  /** A bug in this library. Please report it. */
  "internal",
] as const;

export type ErrorCode = (typeof errorCodes)[number];

export interface ThroughlineErrorOptions extends ErrorOptions {
  readonly attempts?: readonly Attempt[];
}

/** The one error type of this package. */
export class ThroughlineError extends Error {
  override readonly name = "ThroughlineError";
  /** What went wrong, for `switch`. */
  readonly code: ErrorCode;
  /** Everything that was tried; empty unless a connect failed. */
  readonly attempts: readonly Attempt[];

  constructor(code: ErrorCode, message: string, options: ThroughlineErrorOptions = {}) {
    super(message, options);
    this.code = code;
    this.attempts = options.attempts ?? [];
  }
}

/** Makes a `ThroughlineError` of whatever the bindings rejected with. */
export function toError(thrown: unknown): ThroughlineError {
  if (thrown instanceof ThroughlineError) return thrown;
  if (typeof thrown === "object" && thrown !== null && "code" in thrown && isCode(thrown.code)) {
    const { code, message, attempts, cause } = thrown as RawError;
    return new ThroughlineError(code, named(code, message ?? code), {
      attempts: camelCased(attempts ?? []) as Attempt[],
      ...(cause === undefined ? {} : { cause }),
    });
  }
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new ThroughlineError("internal", message, { cause: thrown });
}

/** The message of an invalid option starts with its name, which is JavaScript's here. */
function named(code: ErrorCode, message: string): string {
  return code === "invalid_config" ? message.replace(/^[\w.]+(?=: )/, inCamelCase) : message;
}

interface RawError {
  code: ErrorCode;
  message?: string;
  attempts?: unknown[];
  cause?: unknown;
}

function isCode(code: unknown): code is ErrorCode {
  return (errorCodes as readonly unknown[]).includes(code);
}
