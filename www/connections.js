// The connections that are open, with one card for each peer, whoever has connected.
import { ConnectionView } from "./connection.js";

const open = new Map();

/** Dispatches `change` when a connection opens, gets another path, or closes. `detail` is the id of the peer. */
export const changes = new EventTarget();

export const connectionTo = (peerId) => open.get(peerId);

/** Returns the card of a connection. Both peers may connect at the same time, and then there is one already. */
export function show(connection, title) {
  const { peerId } = connection;
  const tell = () => changes.dispatchEvent(new CustomEvent("change", { detail: peerId }));
  const view = open.get(peerId) ?? new ConnectionView(connection, title, tell);
  open.set(peerId, view);
  tell();
  connection.closed.then(() => {
    if (open.get(peerId) === view) open.delete(peerId);
    tell();
  });
  return view;
}
