/** The worker's end of one tab: what the tab has, and the calls that it makes. */
import { ThroughlineError } from "./errors.js";
import {
  CONNECTOR,
  MAX_CALLS,
  MAX_HANDLES,
  pack,
  type Answer,
  type Connected,
  type Course,
  type Entered,
  type Fault,
  type Greeted,
  type State,
  type Streamed,
  type Wish,
} from "./tabs-protocol.js";
import type { Peer, Sharing } from "./tabs-worker.js";
import type { RawConnection, RawEvents, RawRoom, RawStatusChanges, RawStream } from "../pkg/throughline.js";

/** What a tab has. */
interface Handle {
  run(method: string, args: readonly never[], signal: AbortSignal): unknown;
}

/** A call that has no answer yet. */
interface Pending {
  readonly handle: Handle;
  readonly method: string;
  readonly abort: AbortController;
}

let tabs = 0;

/** One tab. */
export class Tab {
  /** The tabs count from the oldest. */
  readonly number = tabs++;
  /** Whether the user sees the tab. */
  visible = true;
  readonly #port: MessagePort;
  readonly #sharing: Sharing;
  readonly #over = new AbortController();
  readonly #handles = new Map<number, Handle>([[CONNECTOR, new Entrance(this)]]);
  readonly #calls = new Map<number, Pending>();
  #peer: Peer | undefined;
  #next = CONNECTOR + 1;

  constructor(port: MessagePort, sharing: Sharing) {
    this.#port = port;
    this.#sharing = sharing;
    port.onmessage = ({ data }) => this.#hear(data as Wish);
  }

  /** Fires when the tab has left. */
  get over(): AbortSignal {
    return this.#over.signal;
  }

  #hear(wish: Wish): void {
    switch (wish.op) {
      case "call":
        return void this.#call(wish);
      case "abort":
        return this.#calls.get(wish.call)?.abort.abort();
      case "drop":
        return void this.#handles.delete(wish.on);
      case "see":
        this.visible = wish.visible;
        return;
      case "leave":
        return void this.end().then(() => this.#leave(wish.call));
    }
  }

  #leave(call: number): void {
    this.#answer({ call });
    this.#port.close();
  }

  async #call({ call, on, method, args }: Extract<Wish, { op: "call" }>): Promise<void> {
    const pending = { handle: this.#handles.get(on) ?? GONE, method, abort: new AbortController() };
    const settle = (answer: Omit<Answer, "call">) => this.#calls.delete(call) && this.#answer({ call, ...answer });
    const isFull = this.#calls.size >= MAX_CALLS;
    this.#calls.set(call, pending);
    try {
      if (isFull) throw tooMany("calls without an answer", MAX_CALLS);
      // It runs at once, so that what has the handle sees the calls in their order.
      settle({ value: await pending.handle.run(method, args as never[], pending.abort.signal) });
    } catch (error) {
      settle({ fault: pack(error) });
    }
  }

  #answer(answer: Answer): void {
    const { value } = answer;
    // The bindings give bytes that nobody else has.
    this.#port.postMessage(answer, value instanceof Uint8Array ? [value.buffer] : []);
  }

  /** The tab has asked whether the worker is there. */
  async greet(): Promise<Greeted> {
    const { held, lock } = this.#sharing.presence;
    await held;
    return { lock };
  }

  /** The tab has asked for the peer. */
  async enter(visible: boolean): Promise<Peer> {
    this.visible = visible;
    const peer = await this.#sharing.enter(this);
    this.#peer = peer;
    const changes = peer.raw.statusChanges();
    // The first one is the present status, which the tab gets with the peer.
    await changes.next();
    this.#handles.set(CONNECTOR, new ConnectorHandle(this, peer, changes));
    return peer;
  }

  /** Ends the tab, which has left, is closed or has crashed. Its connections are closed. */
  async end(): Promise<void> {
    if (this.over.aborted) return;
    this.#over.abort();
    const handles = [...this.#handles.values()];
    for (const handle of handles) if (handle instanceof RoomHandle) handle.end();
    const closing = handles.map((handle) => handle instanceof ConnectionHandle && this.close(handle));
    this.#settle(() => true, pack(ended()));
    this.#handles.clear();
    await Promise.all(closing);
    await this.#sharing.leave(this);
  }

  /** Ends the calls that fit. */
  #settle(fits: (pending: Pending) => boolean, fault: Fault): void {
    for (const [call, pending] of this.#calls) {
      if (!fits(pending)) continue;
      this.#calls.delete(call);
      pending.abort.abort();
      this.#answer({ call, fault });
    }
  }

  #add(handle: Handle): number {
    const on = this.#next++;
    this.#handles.set(on, handle);
    return on;
  }

  /** Gives the tab a connection. */
  connection(raw: RawConnection): ConnectionHandle {
    const handle = new ConnectionHandle(this, raw);
    const refusal = this.over.aborted ? ended() : this.#isFull();
    if (!refusal) {
      handle.on = this.#add(handle);
      return handle;
    }
    if (!this.holds(handle.peer)) void this.close(handle);
    throw refusal;
  }

  /** Gives the tab a stream of a connection that it has. */
  stream(raw: RawStream, parent: ConnectionHandle): Streamed {
    const handle = new StreamHandle(raw, parent);
    const refusal = this.over.aborted || parent.isOver ? closed() : this.#isFull();
    if (!refusal) return { on: this.#add(handle), protocol: raw.protocol(), early: raw.isEarly() };
    handle.end();
    throw refusal;
  }

  /** Gives the tab a room. */
  room(raw: RawRoom, forget: () => void): Entered {
    const handle = new RoomHandle(this, raw, forget);
    const refusal = this.over.aborted ? ended() : this.#isFull();
    if (!refusal) return { on: this.#add(handle), members: raw.members() };
    handle.end();
    throw refusal;
  }

  #isFull(): ThroughlineError | undefined {
    const what = "connections, streams and rooms of one tab";
    return this.#handles.size > MAX_HANDLES ? tooMany(what, MAX_HANDLES) : undefined;
  }

  /** Whether the tab has a connection with a peer. */
  holds(peer: string): boolean {
    const holds = (handle: Handle) => handle instanceof ConnectionHandle && handle.peer === peer && !handle.isOver;
    return [...this.#handles.values()].some(holds);
  }

  /** Closes a connection for this tab. If another tab has one with the same peer, that one goes on. */
  async close(handle: ConnectionHandle): Promise<void> {
    if (!this.#peer?.isHeld(handle.peer, this)) return handle.raw.close();
    const isOf = (parent: unknown) => parent instanceof ConnectionHandle && parent.peer === handle.peer;
    const goes = (other: Handle) => isOf(other) || (other instanceof StreamHandle && isOf(other.parent));
    for (const [on, other] of this.#handles) {
      if (!goes(other)) continue;
      this.#handles.delete(on);
      if (other instanceof ConnectionHandle) other.isOver = true;
      if (other instanceof StreamHandle) other.end();
    }
    this.#settle((pending) => pending.method !== "close" && goes(pending.handle), pack(closed()));
  }
}

/** What a tab has before it has the peer. */
class Entrance implements Handle {
  readonly #tab: Tab;

  constructor(tab: Tab) {
    this.#tab = tab;
  }

  async run(method: string, [visible]: readonly never[]): Promise<object> {
    if (method === "greet") return this.#tab.greet();
    const peer = await this.#tab.enter(visible as unknown as boolean);
    return { peerId: peer.raw.peerId(), ...stateOf(peer) };
  }
}

/** What stands for what a tab no longer has. */
const GONE: Handle = {
  run() {
    throw closed();
  },
};

class ConnectorHandle implements Handle {
  readonly #tab: Tab;
  readonly #peer: Peer;
  readonly #changes: RawStatusChanges;
  readonly #events: RawEvents;

  constructor(tab: Tab, peer: Peer, changes: RawStatusChanges) {
    this.#tab = tab;
    this.#peer = peer;
    this.#changes = changes;
    this.#events = peer.raw.events();
  }

  async run(method: string, args: readonly never[], signal: AbortSignal): Promise<unknown> {
    const [tab, peer, { raw }] = [this.#tab, this.#peer, this.#peer];
    switch (method) {
      case "connect":
        return tab.connection(await raw.connect(args[0]!, signal)).told();
      case "open": {
        const [connection, stream] = await raw.open(args[0]!, args[1]!, signal);
        const handle = tab.connection(connection);
        return [handle.told(), tab.stream(stream, handle)];
      }
      case "accept": {
        const accepted = await peer.accept(tab, signal);
        return accepted && tab.connection(accepted).told();
      }
      case "join":
        return this.#join(args as unknown as [string, string, string, Uint8Array], signal);
      case "report":
        return raw.report();
      case "event":
        return this.#events.next();
      case "state":
        return (await this.#changes.next()) && stateOf(peer);
      default:
        throw unknown(method);
    }
  }

  async #join([name, application, secret, data]: [string, string, string, Uint8Array], signal: AbortSignal): Promise<Entered> {
    const forget = this.#peer.enterRoom(JSON.stringify([name, application, secret]));
    try {
      return this.#tab.room(await this.#peer.raw.join(name, application, secret, data, signal), forget);
    } catch (error) {
      forget();
      throw error;
    }
  }
}

class ConnectionHandle implements Handle {
  readonly #tab: Tab;
  readonly raw: RawConnection;
  readonly peer: string;
  readonly #events: RawEvents;
  /** Its number, as soon as the tab has it. */
  on = CONNECTOR;
  /** Whether it is closed, for this tab at least. */
  isOver = false;

  constructor(tab: Tab, raw: RawConnection) {
    this.#tab = tab;
    this.raw = raw;
    this.peer = raw.peerId();
    // The events first, so that none is missing between what it says of itself now and the first of them.
    this.#events = raw.pathEvents();
  }

  told(): Connected {
    return { on: this.on, peerId: this.peer, ...this.course() };
  }

  course(): Course {
    return { path: this.raw.path(), attempts: this.raw.attempts() };
  }

  async run(method: string, args: readonly never[], signal: AbortSignal): Promise<unknown> {
    const { raw } = this;
    switch (method) {
      case "next": {
        const event = await this.#events.next();
        this.isOver ||= !event || (event as { event: string }).event === "closed";
        return event && { event, ...this.course() };
      }
      case "course":
        return this.course();
      case "waitDirect":
        return raw.waitDirect(args[0]!, signal);
      case "open":
        return this.#tab.stream(await raw.open(args[0]!, signal), this);
      case "acceptStream": {
        const accepted = await raw.acceptStream(signal);
        return accepted && this.#tab.stream(accepted, this);
      }
      case "sendDatagram":
        return raw.sendDatagram(args[0]!);
      case "receiveDatagram":
        return raw.receiveDatagram(signal);
      case "close":
        return this.#tab.close(this);
      default:
        throw unknown(method);
    }
  }
}

const STREAM = ["read", "write", "finish", "stop", "reset", "refuse"] as const;

class StreamHandle implements Handle {
  readonly #raw: RawStream;
  readonly parent: ConnectionHandle;

  constructor(raw: RawStream, parent: ConnectionHandle) {
    this.#raw = raw;
    this.parent = parent;
  }

  run(method: string, args: readonly never[]): unknown {
    const known = STREAM.find((name) => name === method);
    if (!known) throw unknown(method);
    return (this.#raw[known] as (...args: readonly never[]) => unknown)(...args);
  }

  end(): void {
    this.#raw.stop(0);
    this.#raw.reset(0);
  }
}

class RoomHandle implements Handle {
  readonly #tab: Tab;
  readonly #raw: RawRoom;
  readonly #forget: () => void;

  constructor(tab: Tab, raw: RawRoom, forget: () => void) {
    this.#tab = tab;
    this.#raw = raw;
    this.#forget = forget;
  }

  async run(method: string, args: readonly never[], signal: AbortSignal): Promise<unknown> {
    switch (method) {
      case "next":
        return this.#raw.next();
      case "show":
        return this.#raw.show(args[0]!);
      case "connect":
        return this.#tab.connection(await this.#raw.connect(args[0]!, signal)).told();
      case "leave":
        return this.end();
      default:
        throw unknown(method);
    }
  }

  end(): void {
    this.#raw.leave();
    this.#forget();
  }
}

function stateOf({ raw }: Peer): State {
  return { status: raw.status(), ticket: raw.ticket(), shortTicket: raw.shortTicket() };
}

function closed(): ThroughlineError {
  return new ThroughlineError("connection_closed", "the connection is closed");
}

function ended(): ThroughlineError {
  return new ThroughlineError("connector_closed", "this tab has left the shared peer");
}

function unknown(method: string): ThroughlineError {
  return new ThroughlineError("unsupported", `the worker has no \`${method}\`: load the same version of throughline there`);
}

export function tooMany(what: string, most: number): ThroughlineError {
  return new ThroughlineError("limit_exceeded", `there are at most ${most} ${what}`);
}
