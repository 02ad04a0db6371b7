import type { Attempt } from "./events.js";
import { camelCased, inCamelCase } from "./casing.js";

/** Every error code. The codes are the same as in Rust. */
export const errorCodes = [
  /** A ticket does not parse. The message names the part. Ask the peer for a fresh ticket. */
  "invalid_ticket",
  /** A multiaddress or URL does not parse, or has the wrong form for its place. */
  "invalid_address",
  /** An option is unknown, of the wrong type or out of range. The message names the option. */
  "invalid_config",
  /** An identity is malformed. */
  "invalid_identity",
  /** A protocol name is empty, too long or has control characters. */
  "invalid_protocol",
  /** The peer or the network sent something that its protocol forbids. */
  "protocol_violation",
  /** No configured relay could be reached, or none granted a reservation. */
  "no_relay",
  /** No path to the peer came up. `attempts` lists every attempt. */
  "unreachable",
  /** Another peer answered than the one that the ticket names. Nothing was sent to it. */
  "wrong_peer",
  /** A deadline passed. The message names it, and after `waitDirect` the `attempts` say why. */
  "timeout",
  /** The peer is a stock libp2p peer, or an old one of this library, and cannot do this. */
  "unsupported",
  /** The peer does not serve the requested protocol. */
  "protocol_refused",
  /** A limit on this side or the peer's was reached. The message names it. */
  "limit_exceeded",
  /** The relays do not admit this peer. Check `relayTokens`. */
  "access_denied",
  /** A quota at the relays is used up. `retryAfterMs` says when it begins anew. */
  "quota_exceeded",
  /** Either side reset the stream. */
  "stream_reset",
  /** Either side closed the connection, and its streams are gone. */
  "connection_closed",
  /** Every path was lost, and none came back within `resumeTimeoutMs`. */
  "connection_lost",
  /** The connector was closed. */
  "connector_closed",
  /** The operation was cancelled. With an `AbortSignal`, its `reason` is thrown instead. */
  "aborted",
  /** There is no WebRTC here: this is a worker without a bridge, Node.js or an insecure context. */
  "unsupported_platform",
  /** The browser refused something. `cause` has its error, and `load` what is known about a WebAssembly. */
  "io",
  /** A bug in this library. Please report it. */
  "internal",
] as const;

/** One of {@link errorCodes}, which says what each means. */
export type ErrorCode = (typeof errorCodes)[number];

/** Why the WebAssembly could not be loaded. */
export type LoadFailureReason =
  /** The server answered with an error, mostly 404. `LoadFailure.status` has it. */
  | "status"
  /** An HTML page is at the address, as the servers of bundlers answer for files that do not exist. */
  | "page"
  /** The page's Content-Security-Policy forbids the address, or WebAssembly altogether. */
  | "content_security_policy"
  /** Nothing answered at the address. */
  | "network"
  /** Something else than WebAssembly is there. */
  | "not_wasm"
  /** The browser could not compile or instantiate it. */
  | "invalid";

/** What is known about a WebAssembly that could not be loaded. */
export interface LoadFailure {
  /** Why it could not be loaded. */
  readonly reason: LoadFailureReason;
  /** Its address, if it was fetched. */
  readonly url?: string;
  /** The status of the answer, if there was one. */
  readonly status?: number;
  /** The content type of the answer, if it named one. */
  readonly contentType?: string;
}

/** The members of a {@link ThroughlineError} that only some errors have. */
export interface ThroughlineErrorOptions extends ErrorOptions {
  /** See `ThroughlineError.attempts`. */
  readonly attempts?: readonly Attempt[];
  /** See `ThroughlineError.resetCode`. */
  readonly resetCode?: number;
  /** See `ThroughlineError.retryAfterMs`. */
  readonly retryAfterMs?: number;
  /** See `ThroughlineError.load`. */
  readonly load?: LoadFailure;
}

/** The one error type of this package. */
export class ThroughlineError extends Error {
  /** The name of the class, which also tells errors of another copy of this package. */
  override readonly name = "ThroughlineError";
  /** The kind of error, for use in a `switch`. */
  readonly code: ErrorCode;
  /** All attempts. It is empty unless a connect failed, or `waitDirect` found no direct path. */
  readonly attempts: readonly Attempt[];
  /**
   * With `stream_reset`, the reason that the application at the other end gave. It is 0 if the application
   * gave none. It is `undefined` for every other code, and if a stock libp2p peer reset the stream.
   */
  readonly resetCode: number | undefined;
  /**
   * With `quota_exceeded`, how long the quota stays used up, in milliseconds from this error. It is
   * `undefined` for every other code, and if the relay did not say.
   */
  readonly retryAfterMs: number | undefined;
  /** With `io`, what is known about a WebAssembly that could not be loaded. It is `undefined` otherwise. */
  readonly load: LoadFailure | undefined;

  constructor(code: ErrorCode, message: string, options: ThroughlineErrorOptions = {}) {
    super(message, options);
    this.code = code;
    this.attempts = options.attempts ?? [];
    this.resetCode = options.resetCode;
    this.retryAfterMs = options.retryAfterMs;
    this.load = options.load;
  }
}

/** Makes a `ThroughlineError` from any value that the bindings throw. */
export function toError(thrown: unknown): ThroughlineError {
  if (thrown instanceof ThroughlineError) return thrown;
  if (typeof thrown === "object" && thrown !== null && "code" in thrown && isCode(thrown.code)) {
    const { code, message, attempts, resetCode, retryAfterMs, cause } = thrown as RawError;
    return new ThroughlineError(code, named(code, message ?? code), {
      attempts: camelCased(attempts ?? []) as Attempt[],
      ...(resetCode === undefined ? {} : { resetCode }),
      ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
      ...(cause === undefined ? {} : { cause }),
    });
  }
  // A panic in Rust stops the WebAssembly without a message, and it answers nothing from then on.
  const isBug = thrown instanceof WebAssembly.RuntimeError;
  const message = isBug
    ? `throughline has a bug and stops; please report this with the stack of \`cause\`: ${thrown.message}`
    : thrown instanceof Error
      ? thrown.message
      : String(thrown);
  return new ThroughlineError("internal", message, { cause: thrown });
}

/** The message of an invalid option starts with its name, which is replaced by JavaScript's name. */
function named(code: ErrorCode, message: string): string {
  return code === "invalid_config" ? message.replace(/^[\w.]+(?=: )/, inCamelCase) : message;
}

interface RawError {
  code: ErrorCode;
  message?: string;
  attempts?: unknown[];
  resetCode?: number;
  retryAfterMs?: number;
  cause?: unknown;
}

function isCode(code: unknown): code is ErrorCode {
  return (errorCodes as readonly unknown[]).includes(code);
}
