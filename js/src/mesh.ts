/**
 * The entry `throughline/mesh`: full meshes on top of rooms. It is JavaScript alone, so a page that does not import it
 * loads nothing of it, and the WebAssembly is the same.
 */
import { bytes } from "./check.js";
import type { Connection } from "./connection.js";
import type { Connector } from "./connector.js";
import { ThroughlineError } from "./errors.js";
import { Frames } from "./frames.js";
import { Inbox } from "./inbox.js";
import { iterate } from "./iterate.js";
import { Link } from "./link.js";
import { MeshKey, PROOF } from "./proof.js";
import type { Member, Room, RoomOptions } from "./room.js";
import type { DuplexStream, IncomingStream } from "./streams.js";

/**
 * The protocol of the stream between two members, as in Rust. Whoever has the lower id opens the stream and writes its
 * proof, and the other one takes it by writing its own. Then each message stands behind its length in four bytes.
 */
const PROTOCOL = "throughline-mesh/1";
/** Each sends everything to all others, so more members would take a lot of a home's upstream. */
const MAX_MEMBERS = 32;
const MAX_MESSAGE = 64 * 1024;
/** How many connections of one peer are greeted, and how many of those that are no members. */
const GREETED = 2;
const STRANGERS = 32;
/** How many strangers wait for the page before no more connections are taken. */
const UNREAD_STRANGERS = 16;
/**
 * How long a member that has opened the stream may take to be seen in the room, and a stranger to open a stream, in
 * milliseconds. After that time, a member that should have been dialled by the other one dials by itself.
 */
const MEETS = 10_000;
/** How long a member that has opened the stream may take to prove itself. */
const PROVES = 10_000;
/** How long a member may take to answer. It waits for `MEETS` until it sees who asks. */
const ANSWERS = 20_000;
/** The first and the longest pause after a failure. A link that has lasted for the longest pause was no failure. */
const AGAIN = [1_000, 30_000] as const;
/** How far a pause may deviate, so that not everybody comes back at once. */
const JITTER = 0.25;

/** What is sent to a mesh. A string is encoded as UTF-8. */
export type MeshMessage = string | ArrayBuffer | ArrayBufferView;

/** What happens in a mesh. */
export type MeshEvent =
  /** A member is connected. */
  | ({ readonly type: "joined" } & Member)
  /** A member that is connected shows something else in the room. */
  | ({ readonly type: "changed" } & Member)
  /**
   * A member has left the room, or is no longer connected. It is the last event of that member, after the messages that
   * came whole. If it is still there, it is connected again once this is read.
   */
  | {
      readonly type: "left";
      /** The id of the member. */
      readonly id: string;
    }
  /**
   * A member has sent a message. From when it is connected until it has left, the messages of one member come whole, once
   * and in order. What it had not sent by then is lost.
   */
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
  /**
   * A peer has connected, and the first stream that it has opened is not for a mesh. It may be a member that is not
   * connected yet.
   */
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
 * The one with the lower id of two members dials the other. Both prove that they know the room's name and secret before
 * one counts as connected. Two that fail to meet try again, ever less often, at least twice a minute.
 *
 * While the mesh exists, it takes the connections that {@link Connector.incoming} would give, and hands those on whose
 * first stream is not for a mesh, as `stranger`. A peer that is no member and opens no stream for 10 s is let go. So are
 * peers beyond 32 that have not opened one yet. A connector is in one mesh at a time.
 *
 * Iterate over it for what happens, and do not stop: while nobody reads, the members cannot send, and whoever has gone is
 * not connected again. Of each member, 4 messages wait, and up to 12 datagrams besides. What it shows waits once, as it is
 * now. A member that has come and gone without a message is not told.
 *
 * Programs have the same, and meet pages there.
 */
export class Mesh implements AsyncIterable<MeshEvent> {
  /** The connectors that are in a mesh. */
  static readonly #taken = new WeakSet<Connector>();
  /** The room. */
  readonly room: Room;
  readonly #connector: Connector;
  readonly #key: MeshKey;
  readonly #own: string;
  readonly #members = new Map<string, Known>();
  readonly #links = new Map<string, Link>();
  /** The connections whose first stream is awaited. */
  readonly #greets = new Map<string, Set<Greet>>();
  /** Those that have opened the stream, and cannot be linked yet. */
  readonly #early = new Map<string, Early>();
  readonly #inbox = new Inbox();
  readonly #strangers: MeshEvent[] = [];
  readonly #incoming: AsyncIterableIterator<Connection>;
  readonly #over = new AbortController();
  /** Wakes whoever waits for an event, for the end, or for room for another event. */
  #wake: () => void = () => {};
  #changed: Promise<void> = Promise.resolve();

  private constructor(connector: Connector, key: MeshKey, room: Room) {
    this.room = room;
    this.#connector = connector;
    this.#key = key;
    this.#own = connector.peerId;
    this.#incoming = connector.incoming();
    this.#note();
    void this.#follow();
    void this.#accept();
  }

  /**
   * Enters a room as {@link Connector.join} does, and connects to everybody there. Rejects as it does, and with
   * `limit_exceeded` if 32 members are there, or if the connector is in another mesh.
   */
  static async join(connector: Connector, name: string, options: RoomOptions = {}): Promise<Mesh> {
    if (Mesh.#taken.has(connector)) {
      const why = "a connector is in one mesh at a time: take another connector for another mesh";
      throw new ThroughlineError("limit_exceeded", why);
    }
    Mesh.#taken.add(connector);
    let room: Room | undefined;
    try {
      room = await connector.join(name, options);
      const key = await MeshKey.of(options.application ?? "", name, options.secret ?? "");
      if (room.members().length >= MAX_MEMBERS) {
        throw new ThroughlineError("limit_exceeded", `a mesh has ${MAX_MEMBERS} members at most`);
      }
      return new Mesh(connector, key, room);
    } catch (error) {
      Mesh.#taken.delete(connector);
      room?.leave();
      throw error;
    }
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
   * them. A member for which a message has waited for 10 s is disconnected, even if it takes some. So one that is slow
   * holds the others up for 10 s at most. Rejects with `limit_exceeded` if the message is too long.
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

  /**
   * Leaves the room. The others see that at once, and what was not read is dropped. Messages that wait for members are
   * still sent, for 20 s at most, and then the streams are closed. Connections stay.
   */
  leave(): void {
    this.room.leave();
    this.#end();
  }

  /** What happens in the mesh. Iterators share one queue, which ends when this peer leaves. */
  [Symbol.asyncIterator](): AsyncIterableIterator<MeshEvent> {
    const wake = () => this.#note();
    return iterate(async (signal) => {
      signal.addEventListener("abort", wake);
      for (;;) {
        if (this.#isOver || signal.aborted) return undefined;
        const event = this.#strangers.shift() ?? this.#inbox.next();
        if (event) {
          this.#note();
          if (event.type === "left") for (const id of this.#early.keys()) this.#settle(id);
          return event;
        }
        await this.#changed;
      }
    });
  }

  /** Leaves the room. */
  [Symbol.dispose](): void {
    this.leave();
  }

  get #isOver(): boolean {
    return this.#over.signal.aborted;
  }

  /** Something can be read, or was. */
  #note(): void {
    this.#wake();
    this.#changed = new Promise((resolve) => (this.#wake = resolve));
  }

  #end(): void {
    if (this.#isOver) return;
    this.#over.abort();
    Mesh.#taken.delete(this.#connector);
    void this.#incoming.return?.();
    for (const id of [...this.#greets.keys()]) this.#endGreets(id);
    for (const { attempt } of this.#members.values()) attempt?.abort();
    for (const link of this.#links.values()) link.end();
    this.#links.clear();
    for (const id of this.#early.keys()) this.#takeEarly(id)?.stream.refuse();
    this.#note();
  }

  async #follow(): Promise<void> {
    for await (const change of this.room) {
      if (this.#isOver) return;
      if (change.type === "joined") this.#admit();
      else if (change.type === "left") this.#forget(change.id);
      else {
        this.#inbox.show(change.id, change.data);
        this.#note();
      }
    }
    this.#end();
  }

  async #accept(): Promise<void> {
    for (;;) {
      while (this.#strangers.length >= UNREAD_STRANGERS && !this.#isOver) await this.#changed;
      const { done, value: connection } = await this.#incoming.next();
      if (done) return this.#end();
      // It came in the moment when this peer left, and nobody else can take it any more.
      if (this.#isOver) return void connection.close();
      void this.#greet(connection);
    }
  }

  /** Takes those into the mesh for whom there is room. */
  #admit(): void {
    for (const { id } of this.room.members()) {
      if (this.#members.has(id) || this.#members.size >= MAX_MEMBERS - 1) continue;
      this.#members.set(id, { failures: 0 });
      if (this.#early.has(id)) this.#settle(id);
      // One that should be dialled by the other member, and is not, dials by itself.
      void this.#seek(id, this.#dials(id) ? 0 : MEETS);
    }
  }

  /** A member has left the room. */
  #forget(id: string): void {
    this.#members.get(id)?.attempt?.abort();
    this.#members.delete(id);
    this.#endGreets(id);
    this.#takeEarly(id)?.stream.refuse();
    this.#part(id);
    this.#admit();
  }

  /** Whether this peer is the one of the two that dials. */
  #dials(id: string): boolean {
    return this.#own < id;
  }

  /** Connects to a member after a pause, unless that is being done. The one that dials opens the stream. */
  async #seek(id: string, pause: number): Promise<void> {
    const known = this.#members.get(id);
    if (!known || known.attempt || this.#links.has(id) || this.#isOver) return;
    const { signal } = (known.attempt = new AbortController());
    try {
      await paused(pause, signal);
      while (!signal.aborted && !this.#inbox.canOpen(id)) await this.#changed;
      signal.throwIfAborted();
      const connection = await this.room.connect(id, { signal });
      if (this.#dials(id)) await this.#dial(connection, signal);
      else await this.#awaitStream(connection);
    } catch {
      // It is sought again.
    }
    if (signal.aborted) return; // it was linked meanwhile, or has left
    known.attempt = undefined;
    void this.#seek(id, pauseOf(known));
  }

  /** Opens the stream, and waits until the member takes it. */
  async #dial(connection: Connection, signal: AbortSignal): Promise<void> {
    const stream = await connection.open(PROTOCOL, { signal });
    const writer = stream.writable.getWriter();
    const frames = new Frames(stream.readable);
    const giveUp = () => {
      frames.cancel();
      void writer.abort().catch(() => {});
    };
    signal.addEventListener("abort", giveUp);
    const proof = await this.#key.proof(this.#own, connection.peerId);
    void writer.write(proof).catch(() => {});
    const isTaken = await this.#isProved(frames, connection.peerId, ANSWERS);
    signal.removeEventListener("abort", giveUp);
    if (signal.aborted || !isTaken || !this.#inbox.canOpen(connection.peerId)) return giveUp();
    writer.releaseLock();
    this.#link({ connection, stream, frames });
  }

  /** Waits until the member opens the stream, or will not. */
  async #awaitStream(connection: Connection): Promise<void> {
    const greets = [...(this.#greets.get(connection.peerId) ?? [])];
    await (greets.length ? Promise.all(greets.map(({ ended }) => ended)) : this.#greet(connection));
  }

  /** Whether a peer proves in time that it knows the room. */
  async #isProved(frames: Frames, id: string, within: number): Promise<boolean> {
    const late = setTimeout(() => frames.cancel(), within);
    try {
      const proof = await frames.take(PROOF);
      return proof !== undefined && (await this.#key.isProof(id, this.#own, proof));
    } catch {
      return false;
    } finally {
      clearTimeout(late);
    }
  }

  /** Whether there are too many whose first stream is awaited. Strangers take no room from members. */
  #isCrowded(id: string): boolean {
    if ((this.#greets.get(id)?.size ?? 0) >= GREETED) return true;
    const strangers = [...this.#greets].filter(([other]) => !this.#members.has(other));
    return !this.#members.has(id) && strangers.reduce((sum, [, greets]) => sum + greets.size, 0) >= STRANGERS;
  }

  /** Waits for the first stream that the other end of a connection opens. Beyond the limits, it is let go. */
  async #greet(connection: Connection): Promise<void> {
    const id = connection.peerId;
    if (this.#isCrowded(id)) return;
    const streams = connection.incomingStreams();
    let tellEnd = () => {};
    const ended = new Promise<void>((resolve) => (tellEnd = resolve));
    let isOver = false;
    const greet: Greet = {
      ended,
      end: () => {
        isOver = true;
        void streams.return?.();
        tellEnd();
      },
    };
    const greets = this.#greets.get(id) ?? new Set();
    this.#greets.set(id, greets.add(greet));
    const deadline = setTimeout(() => {
      if (!this.#members.has(id)) greet.end();
    }, MEETS);
    try {
      for await (const stream of streams) {
        if (stream.protocol !== PROTOCOL) return this.#tellStranger(connection, stream);
        const frames = new Frames(stream.readable);
        const isMember = !this.#dials(id) && (await this.#isProved(frames, id, PROVES));
        const takes = await this.#key.proof(this.#own, id);
        if (isMember && !isOver) return this.#arrive({ connection, stream, frames, takes });
        stream.refuse();
        if (isOver) return;
      }
    } catch {
      // The connection has ended.
    } finally {
      clearTimeout(deadline);
      greets.delete(greet);
      if (!greets.size) this.#greets.delete(id);
      greet.end();
    }
  }

  #endGreets(id: string): void {
    for (const greet of this.#greets.get(id) ?? []) greet.end();
  }

  #tellStranger(connection: Connection, stream: IncomingStream): void {
    this.#strangers.push({ type: "stranger", connection, stream });
    this.#note();
  }

  /** A peer that knows the room has opened the stream. */
  #arrive(early: Early): void {
    const id = early.connection.peerId;
    // A member that has made a new stream has given the old one up.
    const [known, hadLink] = [this.#members.get(id), this.#links.has(id)];
    this.#part(id);
    this.#takeEarly(id)?.stream.refuse();
    if (this.#early.size >= 2 * MAX_MEMBERS) return early.stream.refuse();
    const late = setTimeout(() => {
      this.#takeEarly(id)?.stream.refuse();
      void this.#greet(early.connection);
    }, MEETS);
    this.#early.set(id, { ...early, late });
    this.#settle(id);
    if (known && hadLink) void this.#seek(id, pauseOf(known));
  }

  #takeEarly(id: string): Early | undefined {
    const early = this.#early.get(id);
    clearTimeout(early?.late);
    this.#early.delete(id);
    return early;
  }

  /** Links a member that has opened the stream, if that can be told. */
  #settle(id: string): void {
    if (!this.#members.has(id) || !this.#inbox.canOpen(id)) return;
    const early = this.#takeEarly(id);
    if (early) this.#link(early);
  }

  /** There is a stream with a member, on which both have proved themselves or will do so at once. */
  #link({ connection, stream, frames, takes }: Opened): void {
    const id = connection.peerId;
    const known = this.#members.get(id);
    const member = this.room.members().find((other) => other.id === id);
    if (!known || !member || this.#links.has(id) || this.#isOver) {
      frames.cancel();
      return void stream.writable.abort().catch(() => {});
    }
    known.attempt?.abort();
    known.attempt = undefined;
    // From now on, the streams that the member opens are the page's.
    this.#endGreets(id);
    const link = new Link(connection, stream, frames);
    if (takes) void link.send(takes);
    this.#links.set(id, link);
    this.#inbox.open(id, link, member.data);
    this.#note();
    void this.#carry(id, known, link);
  }

  /** Hands on what comes, until the link has ended. */
  async #carry(id: string, known: Known, link: Link): Promise<void> {
    const since = performance.now();
    void this.#hearDatagrams(id, link).catch(() => {});
    await Promise.race([this.#hear(id, link).catch(() => {}), link.ended]);
    link.end();
    if (this.#links.get(id) !== link) return;
    // A member whose links end soon is sought ever less often, so that it does not come and go all the time.
    if (performance.now() - since >= AGAIN[1]) known.failures = 0;
    this.#part(id);
    void this.#seek(id, pauseOf(known));
  }

  async #hear(id: string, link: Link): Promise<void> {
    for (;;) {
      const message = await link.frames.message(MAX_MESSAGE);
      if (!message) return;
      while (!link.isOver && this.#inbox.hasRoom(id, link) === false) await this.#changed;
      if (link.isOver) return;
      this.#inbox.put(id, message);
      this.#note();
    }
  }

  async #hearDatagrams(id: string, link: Link): Promise<void> {
    const datagrams = link.connection.datagrams();
    void link.ended.then(() => datagrams.return?.());
    for await (const datagram of datagrams) {
      this.#inbox.putDatagram(id, link, datagram);
      this.#note();
    }
  }

  /** A member is no longer connected. */
  #part(id: string): void {
    const link = this.#links.get(id);
    if (!link) return;
    this.#links.delete(id);
    link.end();
    this.#inbox.close(id);
    this.#note();
  }
}

/** A member of the room. */
interface Known {
  failures: number;
  /** What ends the attempt to reach the member that is under way. Only its result counts. */
  attempt?: AbortController | undefined;
}

/** The wait for the first stream of a connection. */
interface Greet {
  readonly ended: Promise<void>;
  readonly end: () => void;
}

/** A stream whose peer has proved itself. */
interface Opened {
  readonly connection: Connection;
  readonly stream: DuplexStream;
  readonly frames: Frames;
  /** This peer's proof, if the member has opened the stream. */
  readonly takes?: Uint8Array<ArrayBuffer>;
}

/** A stream of which the member waits to be linked, and for how long. */
interface Early extends Opened {
  readonly stream: IncomingStream;
  readonly late?: ReturnType<typeof setTimeout>;
}

/** The pause before a member is sought again. */
function pauseOf(known: Known): number {
  const pause = Math.min(AGAIN[0] * 2 ** known.failures++, AGAIN[1]);
  return pause * (1 + JITTER * (2 * Math.random() - 1));
}

/** Waits for a time, or for the signal. */
function paused(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });
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
