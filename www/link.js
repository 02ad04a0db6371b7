// The link of a room. The name and the secret are in its fragment, which a browser sends to no server.
import { placeName } from "./words.js";

/** 16 random bytes or more, in base64url. A shorter text is what is left of a link that was cut. */
const ROOM = /^(.{1,64})\.([\w-]{22,128})$/u;
const SECRET_BYTES = 16;

export const roomLink = ({ name, secret }) => `${location.origin}${location.pathname}#room=${encodeURIComponent(name)}.${secret}`;

/** The link by which others connect to the peer of `ticket`, without a room. */
export const ticketLink = (ticket) => `${location.origin}${location.pathname}#connect=${ticket}`;

/** Reads the fragment: the room, whether its link was `cut`, and the ticket of a peer to connect to. */
export function readFragment() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const [, name, secret] = ROOM.exec(fields.get("room") ?? "") ?? [];
  return { room: secret && { name, secret }, cut: fields.has("room") && !secret, ticket: fields.get("connect") };
}

export function newRoom() {
  const bytes = crypto.getRandomValues(new Uint8Array(SECRET_BYTES));
  const secret = btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return { name: placeName(), secret };
}

/** Puts the room into the page's address, and keeps it there. Another link in the same tab is another visit. */
export function keepRoom(room) {
  const keep = () => history.replaceState(null, "", roomLink(room));
  keep();
  addEventListener("hashchange", () => {
    const { room: other, cut, ticket } = readFragment();
    if (other || cut || ticket) location.reload();
    else keep();
  });
}
