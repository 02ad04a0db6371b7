import { cancellable, type AbortOptions } from "./abort.js";
import { bytes, members as fields, signalOf, text } from "./check.js";
import { Connection } from "./connection.js";
import { toError } from "./errors.js";
import { iterate } from "./iterate.js";
import type { RawRoom } from "../pkg/throughline.js";

/** How a room is entered. The peers of one room give the same name, secret and application. */
export interface RoomOptions extends AbortOptions {
  /** The name of the application, so that others' rooms of the same name are other rooms. Defaults to "". */
  readonly application?: string | undefined;
  /**
   * Who knows it can enter the room, see who is there, and read what they show. Relays do not learn it, but they
   * can try guesses, so take 16 random bytes or more, as text. Without a secret, the name takes its place.
   */
  readonly secret?: string | undefined;
  /** What this member shows the others, at most 1,024 bytes. A string is encoded as UTF-8. Defaults to nothing. */
  readonly data?: RoomData | undefined;
}

/** What a member of a room shows. */
export type RoomData = string | ArrayBuffer | ArrayBufferView;

/** Another peer in a room. */
export interface Member {
  /** The id of the peer, which has signed this. */
  readonly id: string;
  /** What it shows. */
  readonly data: Uint8Array;
}

/** A change in a room. Changes of one member that come faster than they are read become one. */
export type RoomEvent =
  /** A peer has come, or was there before this one. */
  | ({ readonly type: "joined" } & Member)
  /** A member shows something else. */
  | ({ readonly type: "changed" } & Member)
  /** A member has left, or has not been heard of for 30 s. */
  | {
      readonly type: "left";
      /** The id of the member. */
      readonly id: string;
    };

/**
 * A room that this peer is in. Iterate over it for what changes: `for await (const event of room)`. The first
 * events tell who was there before. Iterators share one queue, which ends when this peer leaves.
 */
export class Room implements AsyncIterable<RoomEvent> {
  readonly #raw: RawRoom;

  /** @internal */
  constructor(raw: RawRoom) {
    this.#raw = raw;
  }

  /** The others that are in the room now, in no order. */
  members(): readonly Member[] {
    return this.#raw.members().map(([, id, data]) => ({ id, data }));
  }

  /**
   * Shows the others something else from now on, at most 1,024 bytes. If it changes more often than twice a
   * second for long, the others see some of the values. Throws `invalid_config` if there is too much of it.
   */
  show(data: RoomData): void {
    const shown = dataOf(data);
    try {
      this.#raw.show(shown);
    } catch (error) {
      throw toError(error);
    }
  }

  /** Connects to a member, by itself or by its id. Rejects as {@link Connector.connect} does. */
  async connect(member: string | { readonly id: string }, options: AbortOptions = {}): Promise<Connection> {
    const given = typeof member === "string" ? member : fields("member", member).id;
    const id = text("member", given, "invalid_ticket");
    return new Connection(await cancellable(signalOf(options), (signal) => this.#raw.connect(id, signal)));
  }

  /** Leaves the room. The others see that at once. Connections to members stay. */
  leave(): void {
    this.#raw.leave();
  }

  /** What changes in the room. */
  [Symbol.asyncIterator](): AsyncIterableIterator<RoomEvent> {
    return iterate(async () => {
      const event = await this.#raw.next();
      if (event === undefined) return undefined;
      const [type, id, data] = event;
      return (type === "left" ? { type, id } : { type, id, data }) as RoomEvent;
    });
  }

  /** Leaves the room. */
  [Symbol.dispose](): void {
    this.leave();
  }
}

/** @internal The bytes that a member shows. A copy of at most one more than there may be goes to the bindings. */
export function dataOf(data: unknown): Uint8Array {
  const all = typeof data === "string" ? new TextEncoder().encode(data) : bytes(data, "data");
  return all.subarray(0, 1025);
}
