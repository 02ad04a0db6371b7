/**
 * Checks the arguments of callers before they enter the WebAssembly. The WebAssembly would misread a
 * value of a wrong type, or stop. Each error names the argument and says what was expected.
 */
import type { Endpoint } from "./bridge-protocol.js";
import { ThroughlineError, type ErrorCode } from "./errors.js";
import type { WasmSource } from "./load.js";

/** Checks that a value is a string. */
export function text(name: string, value: unknown, code: ErrorCode): string {
  return typeof value === "string" ? value : refuse(name, "a string", value, code);
}

/** Checks that a value is an object with members, such as options. */
export function members(name: string, value: unknown): Readonly<Record<string, unknown>> {
  const fits = typeof value === "object" && value !== null && !Array.isArray(value);
  return fits ? (value as Record<string, unknown>) : refuse(name, "an object", value);
}

export function list(name: string, value: unknown): readonly unknown[] {
  return Array.isArray(value) ? [...value] : refuse(name, "an array", value);
}

export function texts(name: string, value: unknown): readonly string[] {
  return list(name, value).map((item, index) => text(`${name}[${index}]`, item, "invalid_config"));
}

export function truth(name: string, value: unknown): boolean {
  return typeof value === "boolean" ? value : refuse(name, "true or false", value);
}

/** Checks that a number fits into Rust's integers. Rust checks its range. */
export function count(name: string, value: unknown): number {
  const fits = Number.isSafeInteger(value) && (value as number) >= 0;
  return fits ? (value as number) : refuse(name, "a whole number, 0 or more", value);
}

/** Returns the signal in the options of a call, if there is one. */
export function signalOf(options: unknown): AbortSignal | undefined {
  return options === undefined ? undefined : signal(members("options", options).signal);
}

/** Checks a signal by its members, because it may come from another window. */
export function signal(value: unknown): AbortSignal | undefined {
  if (value === undefined) return undefined;
  const { aborted, throwIfAborted, addEventListener } = Object(value) as Partial<AbortSignal>;
  const fits = typeof aborted === "boolean" && typeof throwIfAborted === "function" && typeof addEventListener === "function";
  return fits ? (value as AbortSignal) : refuse("signal", "an AbortSignal", value);
}

/** Checks that messages can be sent to a value and come from it. */
export function endpoint(name: string, value: unknown): Endpoint {
  const { addEventListener, postMessage } = Object(value) as Partial<Endpoint>;
  const fits = typeof addEventListener === "function" && typeof postMessage === "function";
  return fits ? (value as Endpoint) : refuse(name, "a Worker, a SharedWorker or a MessagePort", value);
}

export function wasm(value: unknown): WasmSource | undefined {
  if (value === undefined || typeof value === "string" || ArrayBuffer.isView(value)) return value as WasmSource;
  const kinds = [URL, ArrayBuffer, WebAssembly.Module, Response];
  const fits = kinds.some((kind) => value instanceof kind) || typeof Object(value).then === "function";
  return fits ? (value as WasmSource) : refuse("wasm", "an address, a response, bytes or a module", value);
}

/** Returns the bytes of a chunk that is written to a stream, or of a datagram. */
export function bytes(chunk: unknown, name = "chunk"): Uint8Array {
  try {
    if (chunk instanceof Uint8Array) return chunk;
    if (ArrayBuffer.isView(chunk)) return new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    if (chunk instanceof ArrayBuffer) return new Uint8Array(chunk);
  } catch (cause) {
    // The buffer was transferred, for example to a worker.
    throw new ThroughlineError("invalid_config", `${name}: its buffer was transferred; write a copy`, { cause });
  }
  return refuse(name, "an ArrayBuffer or a view of one (encode text first)", chunk);
}

/** Returns the code in the reason of an abort or a cancellation: `{ resetCode }`, an integer, or 0. */
export function resetCode(reason: unknown): number {
  const given = typeof reason === "object" && reason !== null && "resetCode" in reason ? reason.resetCode : reason;
  return Number.isInteger(given) && (given as number) >= 0 && (given as number) <= 0xffff_ffff ? (given as number) : 0;
}

function refuse(name: string, expected: string, value: unknown, code: ErrorCode = "invalid_config"): never {
  throw new ThroughlineError(code, `${name}: expected ${expected}, got ${described(value)}`);
}

/** Describes a value by its type. The value itself may be a secret. */
function described(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (Array.isArray(value)) return "an array";
  const type = typeof value;
  return `${/^[aeiou]/.test(type) ? "an" : "a"} ${type}`;
}
