/**
 * The module for Node.js and server-side rendering. It exports the same names, so that the import works.
 * Every use rejects with `unsupported_platform`, because Node.js has no WebRTC.
 */
import { ThroughlineError } from "./errors.js";

export { errorCodes, ThroughlineError } from "./errors.js";

function unsupported(): Promise<never> {
  return Promise.reject(
    new ThroughlineError(
      "unsupported_platform",
      "throughline on npm is for web pages, because Node.js has no WebRTC: run the `throughline` program with --json beside " +
        "Node.js (`cargo install throughline --features cli`), or use the Rust crate",
    ),
  );
}

export class Connector {
  private constructor() {}
  static readonly create = unsupported;
}

export class Connection {
  private constructor() {}
}

export class Room {
  private constructor() {}
}

export const generateIdentity = unsupported;
export const load = unsupported;
