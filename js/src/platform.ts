import { ThroughlineError } from "./errors.js";

/** Throws `unsupported_platform` if there is no WebRTC. The message says what to do. */
export function assertSupported(scope: typeof globalThis = globalThis): void {
  const unsupported = (message: string): never => {
    throw new ThroughlineError("unsupported_platform", message);
  };
  if ("WorkerGlobalScope" in scope && typeof scope.RTCPeerConnection === "undefined") {
    unsupported("workers have no WebRTC: call `attach` of throughline/bridge here and `serve` in the page, before the Connector");
  }
  if (scope.isSecureContext === false) {
    unsupported("this page is not a secure context: serve it over https, or from localhost");
  }
  if (typeof scope.RTCPeerConnection === "undefined") {
    unsupported("there is no RTCPeerConnection here: throughline on npm is for web pages; elsewhere use the Rust crate");
  }
}

/**
 * How many streams the data channels of this browser carry at a time, if they are fewer than in Chromium. Firefox
 * begins SCTP with 256 streams, of which half belong to each end, and some to protocols below. It asks for more by
 * RFC 6525, which native peers do not grant.
 */
export function mostStreams(agent: string | undefined = globalThis.navigator?.userAgent): number | undefined {
  return agent && /\bFirefox\//.test(agent) ? 120 : undefined;
}
