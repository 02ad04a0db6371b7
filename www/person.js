// What a member of a room shows the others: its name, as UTF-8.
import { shortId } from "./dom.js";
import { visitorName } from "./words.js";

const KEY = "throughline.name";
/** The same as `maxlength` of the field. */
const MOST = 40;

/** A name comes from others. So it is one short line, without controls that turn or break the text around it. */
const clean = (text) => [...text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}\s]+/gu, " ").trim()].slice(0, MOST).join("").trim();

export const nameOf = ({ id, data }) => clean(new TextDecoder().decode(data)) || shortId(id);

/** The visitor's own name. A tab keeps it over a reload, and a second tab has another one. */
export function ownName() {
  return sessionStorage.getItem(KEY) ?? keepName(visitorName());
}

/** Keeps the name, and returns how it is shown. Without one, there is one made at random. */
export function keepName(text) {
  const name = clean(text) || visitorName();
  sessionStorage.setItem(KEY, name);
  return name;
}

/** Gives each peer a colour of its own, in a circle with the first letter of its name. */
export function paint(circle, id, name) {
  circle.style.setProperty("--hue", [...id].reduce((hue, letter) => (hue * 31 + letter.charCodeAt(0)) % 360, 0));
  circle.textContent = [...name][0].toUpperCase();
}
