// Makes a ticket for a peer that cannot print its own. The format is that of the crate's
// documentation: `tl1`, then the base64url of 0 for a stock peer, the peer id, the relays, the
// addresses and the mapped addresses. A length has two bytes, and a count has one.
import { multiaddr } from "@multiformats/multiaddr";

export function ticket(relay, peerId) {
  // The bytes of a peer id are the value of a /p2p component, after its code (two bytes) and length.
  const id = multiaddr(`/p2p/${peerId}`).bytes.subarray(3);
  const item = (bytes) => [bytes.length >> 8, bytes.length & 255, ...bytes];
  const bytes = [0, ...item(id), 1, ...item(multiaddr(relay).bytes), 0, 0];
  return `tl1${Buffer.from(bytes).toString("base64url")}`;
}
