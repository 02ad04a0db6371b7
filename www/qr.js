// The invitation: a link that leads to this page's peer, as text and as a QR code.
import { find } from "./dom.js";

/** Shows the link, and draws its code if the library is there (`node js/scripts/build.mjs` puts it into vendor/). */
export async function invite(ticket) {
  const link = `${location.origin}${location.pathname}#connect=${ticket}`;
  find("#invite").textContent = link;
  const holder = find("#qr");
  try {
    const { renderSVG } = await import("./vendor/qr.js");
    // Black on white, whatever the scheme is, because cameras expect it.
    holder.innerHTML = renderSVG(link, { ecc: "L", border: 2, whiteColor: "#fff", blackColor: "#000" });
    const svg = find("svg", holder);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "QR code of the invite link");
  } catch {
    find("#qr-details").hidden = true;
  }
  // A camera of another device cannot open an address of this one.
  find("#qr-local").hidden = !["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  return link;
}
