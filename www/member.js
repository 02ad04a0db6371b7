// The card of another member of the room: its name, one button that connects to it, and how it is connected.
import { Attempt } from "./attempt.js";
import { connectionTo, show } from "./connections.js";
import { find, shortId } from "./dom.js";
import { pathNames } from "./names.js";
import { paint } from "./person.js";

export class MemberCard {
  #id;
  #name;
  #element = find("#member-template").content.cloneNode(true).firstElementChild;

  /** `connect` connects to the member until the signal that it gets aborts. */
  constructor(id, connect) {
    this.#id = id;
    this.#element.dataset.member = id;
    this.#part(".id").textContent = shortId(id);
    const attempt = new Attempt(this.#element);
    const button = this.#part(".connect");
    button.addEventListener("click", async () => {
      const connection = await attempt.run(button, connect);
      if (connection) show(connection, this.#name).reveal();
    });
    this.#part(".reveal").addEventListener("click", () => connectionTo(id)?.reveal());
    find("#room-state").before(this.#element);
  }

  #part(selector) {
    return find(selector, this.#element);
  }

  get name() {
    return this.#name;
  }

  set name(name) {
    this.#name = name;
    this.#part(".name").textContent = name;
    paint(this.#part(".face"), this.#id, name);
    this.#part(".connect").ariaLabel = `Connect to ${name}`;
    this.#part(".reveal").ariaLabel = `Show the connection to ${name}`;
    connectionTo(this.#id)?.rename(name);
    connectionTo(this.#id)?.showLeft(false);
  }

  /** Shows how the member is connected now. */
  update() {
    const path = connectionTo(this.#id)?.path;
    const badge = this.#part(".badge");
    badge.hidden = !path;
    this.#part(".id").hidden = !!path;
    badge.dataset.path = path;
    badge.textContent = pathNames[path];
    const [button, reveal] = [this.#part(".connect"), this.#part(".reveal")];
    const focused = document.activeElement === (path ? button : reveal);
    button.hidden = !!path;
    reveal.hidden = !path;
    if (focused) (path ? reveal : button).focus();
  }

  remove() {
    const focused = this.#element.contains(document.activeElement);
    this.#element.remove();
    if (focused) find("#people-title").focus();
  }
}
