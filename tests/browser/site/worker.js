// The peer of peer.js in a worker. `run` of host.js evaluates functions here.
import { attach } from "/npm/dist/bridge.js";

const ready = attach().then(() => import("./peer.js"));

function listen(port) {
  port.addEventListener("message", async ({ data: { id, source, argument } }) => {
    try {
      await ready;
      port.postMessage({ id, value: await (0, eval)(`(${source})`)(argument) });
    } catch ({ name, code, message }) {
      port.postMessage({ id, error: { name, code, message } });
    }
  });
  port.start?.();
}

if ("onconnect" in globalThis) addEventListener("connect", ({ ports: [port] }) => listen(port));
else listen(globalThis);
