// The functions of page.mjs for a page of js-libp2p, which tests/interop/page.js puts into `window.node`.

/** Starts a peer that echoes. Resolves with its address as the ticket. */
export async function listen({ options }) {
  const { peerId, addresses } = await node.start({ relay: options.relays[0], iceServers: options.iceServers });
  return { ticket: addresses.find((address) => address.startsWith(options.relays[0])), peerId };
}

/** Connects after a rest and echoes a byte. Resolves with the events in order. There is no stream before the direct path. */
export async function connect({ options, ticket, restMs }) {
  const events = [];
  await node.start({ relay: options.relays[0], iceServers: options.iceServers });
  await new Promise((resolve) => setTimeout(resolve, restMs));
  const start = performance.now();
  const ms = () => performance.now() - start;
  try {
    await node.dial(ticket);
    events.push({ event: "connected", path: "direct", ms: ms() });
    await node.byte(ticket, "/echo/1");
    events.push({ event: "first_byte", ms: ms() });
  } catch (error) {
    events.push({ event: "error", code: error.name, message: String(error.message ?? error) });
  }
  return { events };
}
