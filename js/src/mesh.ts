/**
 * The entry `throughline/mesh`: full meshes on top of rooms. It is JavaScript alone, so a page that does not import it
 * loads nothing of it, and the WebAssembly is the same.
 */
import { bytes } from "./check.js";
import type { Connection } from "./connection.js";
import type { Connector } from "./connector.js";
import { ThroughlineError } from "./errors.js";
import { iterate } from "./iterate.js";
import type { Member, Room, RoomOptions } from "./room.js";
import type { DuplexStream, IncomingStream } from "./streams.js";

/** The protocol of the stream between two members, as in Rust: each message stands behind its length in four bytes. */
const PROTOCOL = "throughline-mesh/1";
/** Each sends everything to all others, so more members would take a lot of a home's upstream. */
const MAX_MEMBERS = 32;
const MAX_MESSAGE = 64 * 1024;
/** How many messages wait for one member, and how many events for the page. */
const QUEUE = 16;
const EVENTS = 64;
/** How long a member may take to take a message, in milliseconds. */
const TAKES = 10_000;
/** How long a member that has opened the stream may take to be seen in the room. */
const MEETS = 10_000;
/** The first and the longest pause after a failure. */
const AGAIN = [1_000, 30_000] as const;

/** What is sent to a mesh. A string is encoded as UTF-8. */
export type MeshMessage = string | ArrayBuffer | ArrayBufferView;

/** What happens in a mesh. */
export type MeshEvent =
  /** A member is connected. */
  | ({ readonly type: "joined" } & Member)
  /** A member that is connected shows something else in the room. */
  | ({ readonly type: "changed" } & Member)
  /** A member has left the room, or is no longer connected. If it is still there, it is connected again. */
  | {
      readonly type: "left";
      /** The id of the member. */
      readonly id: string;
    }
  /** A member has sent a message. The messages of one member come whole, once and in order. */
  | {
      readonly type: "message";
      /** The id of the member. */
      readonly from: string;
      /** The message. */
      readonly data: Uint8Array;
    }
  /** A member has sent a datagram. */
  | {
      readonly type: "datagram";
      /** The id of the member. */
      readonly from: string;
      /** The datagram. */
      readonly data: Uint8Array;
    }
  /** A peer has connected, and the first stream that it has opened is not for the mesh. */
  | {
      readonly type: "stranger";
      /** The connection that the peer has made. */
      readonly connection: Connection;
      /** The first stream that the peer has opened. */
      readonly stream: IncomingStream;
    };

/**
 * A room in which each member is connected to every other, up to 32 of them. It sends a message to all with one call.
 *
 * While the mesh exists, it takes the connections that {@link Connector.incoming} would give, and hands those on whose
 * first stream is not for the mesh, as `stranger`. Iterate over it for what happens, and do not stop: while nobody reads,
 * the members cannot send. Programs have the same, and meet pages there.
 */
export class Mesh implements AsyncIterable<MeshEvent> {
  /** The room. */
  readonly room: Room;
  readonly #own: string;
  readonly #members = new Map<string, Known>();
  readonly #links = new Map<string, Link>();
  /** Those whose first stream is awaited, and over how many connections. */
  readonly #greeted = new Map<string, number>();
  /** Those that have opened the stream and are not seen in the room yet. */
  readonly #early = new Map<string, [Connection, IncomingStream]>();
  readonly #events: MeshEvent[] = [];
  readonly #incoming: AsyncIterableIterator<Connection>;
  #over = false;
  /** What ends each pause. */
  readonly #pauses = new Set<() => void>();
  /** Wakes whoever waits for an event, for the end, or for room for another event. */
  #wake: () => void = () => {};
  #changed: Promise<void> = Promise.resolve();

  private constructor(connector: Connector, room: Room) {
    this.room = room;
    this.#own = connector.peerId;
    this.#incoming = connector.incoming();
    this.#note();
    void this.#follow();
    void this.#accept();
  }

  /**
   * Enters a room as {@link Connector.join} does, and connects to everybody there. Rejects as it does, and with
   * `limit_exceeded` if 32 members are there.
   */
  static async join(connector: Connector, name: string, options: RoomOptions = {}): Promise<Mesh> {
    const room = await connector.join(name, options);
    if (room.members().length >= MAX_MEMBERS) {
      room.leave();
      throw new ThroughlineError("limit_exceeded", `a mesh has ${MAX_MEMBERS} members at most`);
    }
    return new Mesh(connector, room);
  }

  /** The ids of the members that are connected, in their order. */
  get peers(): readonly string[] {
    return [...this.#links.keys()].sort();
  }

  /** The connection with a member, for streams of the page's own. */
  connection(peer: string): Connection | undefined {
    return this.#links.get(peer)?.connection;
  }

  /**
   * Sends a message of at most 64 KiB to every member that is connected. It waits while 16 messages wait for one of
   * them. A member that takes nothing for 10 s is disconnected. Rejects with `limit_exceeded` if it is too long.
   */
  async broadcast(message: MeshMessage): Promise<void> {
    const frame = framed(message);
    await Promise.all([...this.#links.values()].map((link) => link.send(frame)));
  }

  /** Sends a message to one member, as `broadcast` does to all. Resolves to whether the member is connected. */
  async send(peer: string, message: MeshMessage): Promise<boolean> {
    const frame = framed(message);
    return (await this.#links.get(peer)?.send(frame)) ?? false;
  }

  /**
   * Sends a datagram to every member that is connected. It waits for nothing, and may be lost. One of 1,120 bytes fits
   * on every path, and a longer one goes only where it fits.
   */
  sendDatagram(datagram: ArrayBuffer | ArrayBufferView): void {
    const valid = bytes(datagram, "datagram");
    for (const { connection } of this.#links.values()) {
      try {
        connection.sendDatagram(valid);
      } catch {
        // It is lost for this member.
      }
    }
  }

  /** Leaves the room. The others see that at once, and the streams to the members are closed. */
  leave(): void {
    this.room.leave();
    this.#end();
  }

  /** What happens in the mesh. */
  [Symbol.asyncIterator](): AsyncIterableIterator<MeshEvent> {
    return iterate(async () => {
      while (!this.#events.length && !this.#over) await this.#changed;
      const event = this.#events.shift();
      this.#note();
      return event;
    });
  }

  /** Leaves the room. */
  [Symbol.dispose](): void {
    this.leave();
  }

  #note(): void {
    this.#wake();
    this.#changed = new Promise((resolve) => (this.#wake = resolve));
  }

  #tell(event: MeshEvent): void {
    this.#events.push(event);
    this.#note();
  }

  /** Tells an event of a member when there is room for it. */
  async #tellOf(event: MeshEvent): Promise<void> {
    while (this.#events.length >= EVENTS && !this.#over) await this.#changed;
    if (!this.#over) this.#tell(event);
  }

  #end(): void {
    if (this.#over) return;
    this.#over = true;
    for (const end of [...this.#pauses]) end();
    void this.#incoming.return?.();
    for (const link of this.#links.values()) link.end();
    this.#links.clear();
    this.#note();
  }

  /** Waits for a time, or for the end. */
  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        this.#pauses.delete(end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      this.#pauses.add(end);
    });
  }

  async #follow(): Promise<void> {
    for await (const change of this.room) {
      if (change.type === "joined") this.#admit();
      else if (change.type === "left") {
        this.#members.delete(change.id);
        this.#part(change.id);
        this.#admit();
      } else {
        const known = this.#members.get(change.id);
        if (known) known.data = change.data;
        if (known && this.#links.has(change.id)) this.#tell(change);
      }
    }
    this.#end();
  }

  async #accept(): Promise<void> {
    for await (const connection of this.#incoming) {
      if (this.#over) return void connection.close(); // it came when this peer had left
      void this.#greet(connection);
    }
    this.#end();
  }

  /** Takes those into the mesh for whom there is room. */
  #admit(): void {
    for (const { id, data } of this.room.members()) {
      if (this.#members.has(id) || this.#members.size >= MAX_MEMBERS - 1) continue;
      this.#members.set(id, { data, pause: AGAIN[0] });
      const early = this.#early.get(id);
      this.#early.delete(id);
      if (early) this.#link(...early);
      // One that should be dialled by the other member, and is not, dials by itself.
      else void this.#seek(id, this.#dials(id) ? 0 : MEETS);
    }
  }

  /** Whether this peer is the one of the two that dials. */
  #dials(id: string): boolean {
    return this.#own < id;
  }

  /** Connects to a member after a pause. The one that dials opens the stream. */
  async #seek(id: string, pause: number): Promise<void> {
    const known = this.#members.get(id);
    await this.#pause(pause);
    const isSought = () => !this.#over && this.#members.get(id) === known && !this.#links.has(id);
    if (!known || !isSought()) return;
    try {
      const connection = await this.room.connect(id);
      if (this.#dials(id)) this.#link(connection, await connection.open(PROTOCOL));
      else if (isSought() && !this.#greeted.has(id)) await this.#greet(connection);
    } catch {
      if (isSought()) this.#seekAgain(id);
    }
  }

  /** Seeks a member again, after a pause. */
  #seekAgain(id: string): void {
    const known = this.#members.get(id);
    if (!known || this.#links.has(id) || this.#over) return;
    const pause = known.pause;
    known.pause = Math.min(pause * 2, AGAIN[1]);
    void this.#seek(id, pause);
  }

  /** Waits for the first stream that the other end of a connection opens, and until it is seen in the room. */
  async #greet(connection: Connection): Promise<void> {
    const id = connection.peerId;
    for (;;) {
      this.#greeted.set(id, (this.#greeted.get(id) ?? 0) + 1);
      const first = await connection.incomingStreams().next().catch(() => undefined);
      const others = (this.#greeted.get(id) ?? 1) - 1;
      if (others > 0) this.#greeted.set(id, others);
      else this.#greeted.delete(id);
      if (!first || first.done) return this.#seekAgain(id);
      const stream = first.value;
      if (stream.protocol !== PROTOCOL) return this.#tellOf({ type: "stranger", connection, stream });
      if (this.#members.has(id)) return this.#link(connection, stream);
      if (this.#early.size < MAX_MEMBERS) {
        const early: [Connection, IncomingStream] = [connection, stream];
        this.#early.set(id, early);
        await this.#pause(MEETS);
        if (this.#early.get(id) !== early) return;
        this.#early.delete(id);
      }
      stream.refuse();
    }
  }

  /** There is a stream with a member. */
  #link(connection: Connection, stream: DuplexStream): void {
    const id = connection.peerId;
    const known = this.#members.get(id);
    if (!known || this.#over) return;
    known.pause = AGAIN[0];
    const before = this.#links.get(id);
    const link = new Link(connection, stream);
    this.#links.set(id, link);
    before?.end();
    if (!before) this.#tell({ type: "joined", id, data: known.data });
    void link.carry((event) => this.#tellOf(event), (event) => {
      if (this.#events.length < EVENTS) this.#tell(event);
    }).finally(() => {
      if (this.#links.get(id) !== link) return;
      this.#part(id);
      this.#seekAgain(id);
    });
  }

  /** A member is no longer connected. */
  #part(id: string): void {
    const link = this.#links.get(id);
    if (!link) return;
    this.#links.delete(id);
    link.end();
    this.#tell({ type: "left", id });
  }
}

/** A member of the room. */
interface Known {
  data: Uint8Array;
  pause: number;
}

/** The stream with a member that is connected. */
class Link {
  readonly connection: Connection;
  readonly #stream: DuplexStream;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  readonly #ended: Promise<void>;
  #end: () => void = () => {};
  #isOver = false;
  /** How many messages wait, and who waits for room. */
  #waiting = 0;
  #free: (() => void)[] = [];

  constructor(connection: Connection, stream: DuplexStream) {
    this.connection = connection;
    this.#stream = stream;
    this.#writer = stream.writable.getWriter() as WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
    this.#ended = new Promise((resolve) => (this.#end = resolve));
  }

  /** Resolves when there is room for the message, to whether the member is connected. */
  async send(frame: Uint8Array<ArrayBuffer>): Promise<boolean> {
    while (this.#waiting >= QUEUE && !this.#isOver) await new Promise<void>((resolve) => this.#free.push(resolve));
    if (this.#isOver) return false;
    this.#waiting += 1;
    void this.#write(frame);
    return true;
  }

  async #write(frame: Uint8Array<ArrayBuffer>): Promise<void> {
    const stalls = setTimeout(() => this.end(), TAKES * (this.#waiting + 1));
    try {
      await this.#writer.write(frame);
    } catch {
      this.end();
    } finally {
      clearTimeout(stalls);
      this.#waiting -= 1;
      this.#free.shift()?.();
    }
  }

  /** Hands on what comes, until the stream or the connection has ended. */
  async carry(tell: (event: MeshEvent) => Promise<void>, tellLossy: (event: MeshEvent) => void): Promise<void> {
    const from = this.connection.peerId;
    const datagrams = async () => {
      for await (const data of this.connection.datagrams()) {
        if (this.#isOver) return;
        tellLossy({ type: "datagram", from, data });
      }
    };
    const messages = async () => {
      for await (const data of messagesOf(this.#stream.readable)) await tell({ type: "message", from, data });
    };
    void datagrams().catch(() => {});
    await Promise.race([messages().catch(() => {}), this.#ended]);
    this.end();
  }

  end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#end();
    for (const free of this.#free) free();
    // What the member has not taken after a while is dropped.
    const stalls = setTimeout(() => void this.#writer.abort().catch(() => {}), TAKES);
    void this.#writer.close().catch(() => {}).finally(() => clearTimeout(stalls));
  }
}

/** Returns a message as it stands on a stream. */
function framed(message: unknown): Uint8Array<ArrayBuffer> {
  const body = typeof message === "string" ? new TextEncoder().encode(message) : bytes(message, "message");
  if (body.length > MAX_MESSAGE) {
    throw new ThroughlineError("limit_exceeded", `message: a message to a mesh has ${MAX_MESSAGE} bytes at most`);
  }
  const frame = new Uint8Array(4 + body.length);
  new DataView(frame.buffer).setUint32(0, body.length);
  frame.set(body, 4);
  return frame;
}

/** Reads the messages of a stream. */
async function* messagesOf(readable: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  let rest = new Uint8Array();
  for await (const chunk of readable) {
    const all = new Uint8Array(rest.length + chunk.length);
    all.set(rest);
    all.set(chunk, rest.length);
    rest = all;
    while (rest.length >= 4) {
      const length = new DataView(rest.buffer, rest.byteOffset).getUint32(0);
      if (length > MAX_MESSAGE) throw new ThroughlineError("protocol_violation", "a message is too long");
      if (rest.length < 4 + length) break;
      yield rest.slice(4, 4 + length);
      rest = rest.subarray(4 + length);
    }
  }
}
