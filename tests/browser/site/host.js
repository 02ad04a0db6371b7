// A page that serves peer connections to a worker, which the tests drive through `window.host`.
import { serve } from "/npm/dist/bridge.js";

/** The states of the peer connections that this page has made. */
const connections = [];
globalThis.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(configuration) {
    super(configuration);
    connections.push(this);
  }
};

let worker, port, bridge;
const waiting = new Map();

/** Starts a worker, and serves it. `late` lets the worker ask first. */
async function start(kind, late = false) {
  if (kind === "shared") {
    worker = new SharedWorker("worker.js", { type: "module", name: "peer" });
    port = worker.port;
  } else port = worker = new Worker("worker.js", { type: "module" });
  port.start?.();
  if (late) await new Promise((resolve) => port.addEventListener("message", resolve, { once: true }));
  again();
  port.addEventListener("message", ({ data: { id, value, error } }) => {
    const { resolve, reject } = waiting.get(id) ?? {};
    waiting.delete(id);
    if (error) reject(new Error(`${error.name} ${error.code}: ${error.message}`));
    else resolve?.(value);
  });
  await bridge.attached;
}

function again() {
  bridge = serve(worker);
}

/** Evaluates a function in the worker, with an argument and a result that can be cloned. */
function run(source, argument) {
  const id = crypto.randomUUID();
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    port.postMessage({ id, source, argument });
  });
}

/** Counts the frames of this page during a time: all of them, and those that were late. */
function frames(ms) {
  return new Promise((resolve) => {
    let [count, late, longest, last] = [0, 0, 0, undefined];
    const begun = performance.now();
    const frame = (now) => {
      const took = now - (last ?? now);
      last = now;
      count += 1;
      late += took > 33;
      longest = Math.max(longest, took);
      const elapsed = performance.now() - begun;
      if (elapsed < ms) requestAnimationFrame(frame);
      else resolve({ rate: (count * 1000) / elapsed, late, longest });
    };
    requestAnimationFrame(frame);
  });
}

window.host = {
  start, again, run, frames,
  close: () => bridge.close(),
  terminate: () => worker.terminate(),
  closed: () => bridge.closed,
  states: () => connections.map(({ connectionState }) => connectionState),
};
