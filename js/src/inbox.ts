/** How many messages of one member wait for the page, and how many with the datagrams. */
const UNREAD_MESSAGES = 4;
const UNREAD = 16;
/** The members whose events may wait: as many as are there, and as many that have gone. */
const MAILBOXES = 64;

/** What is to be told of the members of a mesh. */
export type News =
  | { readonly type: "joined" | "changed"; readonly id: string; readonly data: Uint8Array }
  | { readonly type: "left"; readonly id: string }
  | { readonly type: "message" | "datagram"; readonly from: string; readonly data: Uint8Array };

/** What is to be told of one member, from when it is linked until it is told that it has left. */
interface Mailbox {
  readonly link: unknown;
  shown: Uint8Array;
  isTold: boolean;
  isChanged: boolean;
  isOver: boolean;
  readonly unread: ["message" | "datagram", Uint8Array][];
}

/**
 * What the page has not read yet, as in `core/mesh.rs`. For each member it comes in one order: that it has joined, then
 * its messages, and at last that it has left. A member whose end is unread is not linked again, so while nobody reads,
 * this cannot grow.
 */
export class Inbox {
  readonly #boxes = new Map<string, Mailbox>();
  /** The members of whom there is something to tell. They take turns. */
  readonly #turns = new Set<string>();

  /** Whether a link with this member can be told. */
  canOpen(id: string): boolean {
    return !this.#boxes.has(id) && this.#boxes.size < MAILBOXES;
  }

  /** A member is linked. */
  open(id: string, link: unknown, shown: Uint8Array): void {
    this.#boxes.set(id, { link, shown, isTold: false, isChanged: false, isOver: false, unread: [] });
    this.#turns.add(id);
  }

  /** A member shows something else. */
  show(id: string, shown: Uint8Array): void {
    const box = this.#boxes.get(id);
    if (!box || box.isOver || same(box.shown, shown)) return;
    box.shown = shown;
    box.isChanged = true;
    this.#turns.add(id);
  }

  /** Whether there is room for a message that has come over this link, or `undefined` if the link is over. */
  hasRoom(id: string, link: unknown): boolean | undefined {
    const box = this.#boxes.get(id);
    if (!box || box.link !== link || box.isOver) return undefined;
    return box.unread.filter(([type]) => type === "message").length < UNREAD_MESSAGES;
  }

  /** A message has come for which there is room. */
  put(id: string, message: Uint8Array): void {
    this.#boxes.get(id)?.unread.push(["message", message]);
    this.#turns.add(id);
  }

  /** A datagram has come. It is lost if there is no room for it. */
  putDatagram(id: string, link: unknown, datagram: Uint8Array): void {
    const box = this.#boxes.get(id);
    if (!box || box.link !== link || box.isOver || box.unread.length >= UNREAD) return;
    box.unread.push(["datagram", datagram]);
    this.#turns.add(id);
  }

  /** A link is over. If nothing was told of it and nothing came over it, nothing is told. */
  close(id: string): void {
    const box = this.#boxes.get(id);
    if (box && (box.isTold || box.unread.length)) {
      box.isOver = true;
      this.#turns.add(id);
    } else {
      this.#boxes.delete(id);
      this.#turns.delete(id);
    }
  }

  /** Takes what is to be told next. */
  next(): News | undefined {
    for (const id of this.#turns) {
      this.#turns.delete(id);
      const box = this.#boxes.get(id);
      if (!box) continue;
      const news = this.#of(id, box);
      if (news.type === "left") this.#boxes.delete(id);
      else if (box.isChanged || box.unread.length || box.isOver) this.#turns.add(id);
      return news;
    }
    return undefined;
  }

  #of(id: string, box: Mailbox): News {
    if (!box.isTold || box.isChanged) {
      const type = box.isTold ? "changed" : "joined";
      box.isTold = true;
      box.isChanged = false;
      return { type, id, data: box.shown };
    }
    const unread = box.unread.shift();
    return unread ? { type: unread[0], from: id, data: unread[1] } : { type: "left", id };
  }
}

function same(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((byte, at) => byte === other[at]);
}
