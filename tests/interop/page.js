// A stock js-libp2p peer in a page, which the tests drive through `window.node`.
import { webRTCDirect } from "@libp2p/webrtc";
import { receiveFile } from "../../www/protocols.js";
import { create, send } from "./peer.js";

const events = new EventTarget();
const happened = (name) => new Promise((resolve) => events.addEventListener(name, ({ detail }) => resolve(detail), { once: true }));
const happen = (name, detail) => events.dispatchEvent(new CustomEvent(name, { detail }));

async function file(stream) {
  const parts = stream[Symbol.asyncIterator]();
  const readable = new ReadableStream({
    async pull(controller) {
      const { value, done } = await parts.next();
      if (done) controller.close();
      else controller.enqueue(value.subarray());
    },
  });
  const writable = new WritableStream({ write: (bytes) => send(stream, bytes), close: () => stream.close({ signal: AbortSignal.timeout(60_000) }) });
  const { blob, sha256 } = await receiveFile({ readable, writable }, () => {}, () => {});
  happen("file", { size: blob.size, sha256 });
}

/** Starts the peer. Returns its id and the addresses at which it can be dialled. */
async function start(options) {
  const { peerId, addresses, dial, paths, echoed, short, pings, ...peer } = await create({
    ...options,
    protocols: { "/file/1": file },
    transports: [webRTCDirect()],
  });
  const nothing = (act) => async (...args) => void (await act(...args));
  Object.assign(window.node, { dial, paths, echoed, short, pings, byte: nothing(peer.byte), reset: peer.reset, open: nothing(peer.open) });
  return { peerId, addresses };
}

window.node = { start, happened };
