/** The tab's end: it joins the worker that shares its peer. */
import type { AbortOptions } from "./abort.js";
import { serve } from "./bridge-page.js";
import { Presence, watch } from "./bridge-protocol.js";
import { endpoint, signalOf } from "./check.js";
import { Connector } from "./connector.js";
import { ThroughlineError } from "./errors.js";
import { Line } from "./tabs-line.js";
import { CONNECTOR, JOIN, type Greeted, type Joined, type Joining } from "./tabs-protocol.js";
import { RemoteConnector } from "./tabs-remote.js";

/** A worker that runs `share`, or the port of a shared one. */
export type SharingWorker = SharedWorker | Worker | MessagePort;

/** A worker whose script did not load, or that has not answered. */
class Unloaded extends ThroughlineError {}

/** How long a worker may take to load, in milliseconds. */
const LOADS = 20_000;
/**
 * How long a shared worker may take before the function makes another, at the first two times. Chromium may hand out
 * a worker whose process has crashed. That one fails or says nothing, and so does the next one sometimes. A worker that
 * only loads slowly is handed out again, so asking for it again does not delay it.
 */
const PATIENCE = [3000, 3000];

/**
 * Makes this tab one of those that are one peer, which runs in the worker that calls `share`. Resolves once the peer can
 * be reached, to a `Connector` like that of `Connector.create`. Its connections are this tab's, and its `close` means
 * that this tab leaves. The tab also makes peer connections for the worker, as `serve` of `throughline/bridge` does.
 *
 * Give it a function that makes the worker. It is called up to three times: again when the worker does not load, and
 * when a shared worker has not answered for three seconds. A browser hands out a shared worker for a moment after its
 * process has crashed. The third worker has 20 seconds, as has a dedicated one. A worker that is made already is tried
 * once, for 20 seconds.
 *
 * Where there are no shared workers, let it be a `Worker` with the same script. Then the tab is a peer of its own.
 *
 * Rejects as `Connector.create` does, with `unsupported_platform` if this is no page, has no WebRTC, or is not a secure
 * context, with `io` if the worker's script does not load in time, or with `limit_exceeded` beyond 64 tabs.
 */
export async function join(worker: SharingWorker | (() => SharingWorker), options: AbortOptions = {}): Promise<Connector> {
  const signal = signalOf(options);
  signal?.throwIfAborted();
  if (typeof worker !== "function") return meet(worker, LOADS, signal);
  for (const patience of PATIENCE) {
    try {
      return await meet(worker(), patience, signal);
    } catch (error) {
      if (!(error instanceof Unloaded)) throw error;
    }
  }
  return meet(worker(), LOADS, signal);
}

async function meet(worker: SharingWorker, patience: number, signal?: AbortSignal): Promise<Connector> {
  const { port = worker } = Object(worker) as { port?: MessagePort };
  const meeting = endpoint("worker", port);
  const bridge = serve(worker);
  const presence = new Presence();
  const { port1, port2 } = new MessageChannel();
  const over = new AbortController();
  const line = new Line(port1, () => over.abort());
  over.signal.addEventListener("abort", () => {
    presence.end();
    bridge.close();
  });
  const fail = (event: Event) => {
    // The error of a script has a message, and that of a script which is not there has none.
    const { message } = event as Partial<ErrorEvent>;
    const Failure = message ? ThroughlineError : Unloaded;
    line.end(new Failure("io", `the worker that shares the peer has failed: ${message || "its script does not load"}`));
  };
  const isShared = port !== worker;
  const wait = isShared ? patience : LOADS;
  const late = setTimeout(() => {
    const Failure = isShared ? Unloaded : ThroughlineError;
    line.end(new Failure("io", `the worker that shares the peer has not answered for ${wait / 1000} s`));
  }, wait);
  const abort = () => line.end(new ThroughlineError("aborted", "the caller's AbortSignal fired"));
  (worker as EventTarget).addEventListener("error", fail);
  signal?.addEventListener("abort", abort);
  try {
    // Whoever learns of the lock waits for it, and would have it at once if this page had not.
    await presence.held;
    meeting.postMessage({ throughline: JOIN, lock: presence.lock } satisfies Joining, [port2]);
    const { lock } = await line.call<Greeted>(CONNECTOR, "greet");
    clearTimeout(late);
    watch(lock, over.signal, () => line.end(new ThroughlineError("connector_closed", "the worker that shares the peer is gone")));
    return await enter(line, over.signal);
  } catch (error) {
    line.end(error as ThroughlineError);
    signal?.throwIfAborted();
    throw error;
  } finally {
    clearTimeout(late);
    (worker as EventTarget).removeEventListener("error", fail);
    signal?.removeEventListener("abort", abort);
  }
}

async function enter(line: Line, over: AbortSignal): Promise<Connector> {
  const isVisible = () => document.visibilityState === "visible";
  document.addEventListener("visibilitychange", () => line.see(isVisible()), { signal: over });
  const joined = await line.call<Joined>(CONNECTOR, "join", [isVisible()]);
  return new Connector(new RemoteConnector(line, joined));
}
