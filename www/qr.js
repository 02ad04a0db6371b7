// The invitation into the room: its link as text, as a new tab, and as a QR code.
import { find } from "./dom.js";

/** Shows the link, and draws its code if the library is there (`node js/scripts/build.mjs` puts it into vendor/). */
export async function invite(link) {
  find("#room-link").textContent = link;
  find("#room-tab").href = link;
  // Another device cannot open an address of this one.
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  find("#qr-local").hidden = !local;
  if (local) find("#room-where").textContent = "in a new tab";
  find("#room-copy").classList.toggle("plain", local);
  find("#room-tab").classList.toggle("plain", !local);
  const holder = find("#qr");
  try {
    const { renderSVG } = await import("./vendor/qr.js");
    // Black on white, whatever the scheme is, because cameras expect it.
    holder.innerHTML = renderSVG(link, { ecc: "L", border: 2, whiteColor: "#fff", blackColor: "#000" });
    const svg = find("svg", holder);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "QR code of the link of this room");
  } catch {
    holder.hidden = true;
  }
}
