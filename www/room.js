// The room that the page is in: who is there, who comes and goes, and in words what keeps this page out.
import { changes, connectionTo } from "./connections.js";
import { find } from "./dom.js";
import { showFault } from "./fault.js";
import { log } from "./log.js";
import { MemberCard } from "./member.js";
import { keepName, nameOf, ownName, paint } from "./person.js";

/** Rooms of other applications at the same relay are other rooms, even by the same name. */
const APPLICATION = "throughline-demo";

const CLOCK = "Set the clock of this device, and try again.";

const states = {
  starting: "Starting…",
  joining: "Entering the room…",
  alone: "Nobody else is here yet. Open this link on another device or in a new tab.",
  lost: "The relay does not answer. This page keeps trying, and until then cannot see who comes and goes.",
};

export class RoomView {
  #here;
  #id = "";
  #name = ownName();
  #room;
  #reachable = true;
  #cards = new Map();
  #fault = find("#room-fault");

  /** `here` is the name and the secret of the room. */
  constructor(here) {
    this.#here = here;
    find("#room-name").textContent = here.name;
    const field = find("#own-name");
    field.value = this.#name;
    field.addEventListener("change", () => this.#rename((field.value = keepName(field.value))));
    find("#own-form").addEventListener("submit", (event) => {
      event.preventDefault();
      field.blur(); // this is a change
    });
    changes.addEventListener("change", ({ detail }) => this.#cards.get(detail)?.update());
    this.#paint();
    this.#show("starting");
  }

  /** The name of a member. */
  nameOf(id) {
    return this.#cards.get(id)?.name;
  }

  /** Enters the room, and shows who comes and goes until the connector is closed. */
  async enter(connector) {
    this.#say("");
    this.#show("joining");
    this.#id = connector.peerId;
    this.#paint();
    const shown = this.#name;
    const { name, secret } = this.#here;
    try {
      this.#room = await connector.join(name, { application: APPLICATION, secret, data: shown });
    } catch (error) {
      const hint = error.code === "invalid_config" ? CLOCK : undefined;
      return this.fail(error, { hint, again: () => this.enter(connector) });
    }
    if (this.#name !== shown) this.#room.show(this.#name);
    // Who was there before has not come just now.
    const before = new Set(this.#room.members().map(({ id }) => id));
    log("room", { members: before.size });
    this.#count();
    for await (const { type, ...member } of this.#room) {
      log(type, { peer: member.id });
      if (type === "left") this.#left(member.id);
      else this.#seen(member, before.delete(member.id));
      this.#count();
    }
  }

  #seen(member, before) {
    const { id } = member;
    const known = this.#cards.get(id);
    const card = known ?? new MemberCard(id, (signal) => this.#room.connect(id, { signal }));
    this.#cards.set(id, card);
    card.name = nameOf(member);
    card.update();
    if (!known && !before) announce(`${card.name} is here.`);
  }

  #left(id) {
    const card = this.#cards.get(id);
    announce(`${card.name} has left.`);
    connectionTo(id)?.showLeft(true);
    card.remove();
    this.#cards.delete(id);
  }

  #rename(name) {
    this.#name = name;
    this.#room?.show(name);
    this.#paint();
  }

  #paint() {
    paint(find("#own-face"), this.#id, this.#name);
  }

  /** Shows whether a relay is there, through which the room is seen. */
  set reachable(reachable) {
    this.#reachable = reachable;
    if (this.#room) this.#count();
  }

  #count() {
    const others = this.#cards.size;
    this.#say(others ? `you and ${others} ${others === 1 ? "other" : "others"}` : "only you");
    this.#show(!this.#reachable ? "lost" : others ? "full" : "alone");
  }

  #say(count) {
    find("#room-count").textContent = count;
  }

  #show(state) {
    const words = find("#room-state");
    words.dataset.state = state;
    words.textContent = states[state] ?? "";
    words.hidden = !states[state];
  }

  /** Shows why this page is not in the room. `again` tries once more. */
  fail(error, { hint, again }) {
    log("error", { code: error.code, message: error.message });
    this.#say("you are not in it");
    this.#show("out");
    showFault(this.#fault, error, { hint, again });
  }
}

/** Says who has come or left, also to whoever cannot see the page. */
export function announce(text) {
  find("#news").textContent = text;
}
