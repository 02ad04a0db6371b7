// Connects to the peer in the address of the page, and returns what comes back.
import { Connector } from "throughline";

export async function greet() {
  const { relay, ticket } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const me = await Connector.create({ relays: [relay] });
  const { connection, stream } = await me.open(ticket, "echo/1");
  const writer = stream.writable.getWriter();
  await writer.write(new TextEncoder().encode("hello"));
  await writer.close();
  const answer = await new Response(stream.readable).text();
  await connection.close();
  await me.close();
  return answer;
}
