// The report in plain words.
import { ms, shortId } from "./dom.js";
import { strategyName } from "./names.js";

/** Returns sentences about who can reach this page, and how. */
export function plain({ relays, nat, strategies, connections }) {
  const held = relays.filter(({ reserved }) => reserved);
  const sentences = [
    held.length
      ? "Every peer with this page's ticket can reach it: directly where the networks allow it, and else through a relay."
      : "Nobody can reach this page, because no relay holds a reservation for it. It can still connect to others.",
  ];
  for (const { peerId, reserved, connected, rttMs, lastError } of relays) {
    const state = reserved ? "holds a reservation" : connected ? "is connected, but grants no reservation" : "cannot be reached";
    const took = rttMs === undefined ? "" : `, ${ms(rttMs)} away`;
    sentences.push(`The relay ${shortId(peerId)} ${state}${took}${lastError && !reserved ? `: ${lastError}` : ""}.`);
  }
  const mapping = mappings[nat?.mapping];
  sentences.push(mapping ?? "A browser does not tell which NAT it is behind. The command “throughline netcheck” does.");
  sentences.push(`This page can try: ${strategies.map(strategyName).join(", ")}.`);
  if (connections !== undefined) sentences.push(`It has ${connections} ${connections === 1 ? "connection" : "connections"}.`);
  return sentences;
}

const mappings = {
  none: "There is no NAT in front of this page.",
  endpoint_independent: "The NAT has one address for all peers, so hole punching works.",
  address_dependent: "The NAT has another address for each peer, so hole punching needs a peer with an open NAT.",
  address_and_port_dependent: "The NAT has another address for each peer and port, so hole punching needs a peer with an open NAT.",
};
