import { ThroughlineError } from "./errors.js";

/** Throws `unsupported_platform` if there is no WebRTC. The message says what to do. */
export function assertSupported(scope: typeof globalThis = globalThis): void {
  const unsupported = (message: string): never => {
    throw new ThroughlineError("unsupported_platform", message);
  };
  if ("WorkerGlobalScope" in scope && typeof scope.RTCPeerConnection === "undefined") {
    unsupported("workers have no WebRTC: create the Connector in the page and transfer its streams to the worker");
  }
  if (scope.isSecureContext === false) {
    unsupported("this page is not a secure context: serve it over https, or from localhost");
  }
  if (typeof scope.RTCPeerConnection === "undefined") {
    unsupported("there is no RTCPeerConnection here: throughline on npm is for web pages; elsewhere use the Rust crate");
  }
}
