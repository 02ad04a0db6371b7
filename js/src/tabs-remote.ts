/**
 * What the worker has, as the bindings of the WebAssembly look. So a tab has the same `Connector` as any page, with the
 * same connections and streams.
 */
import { ThroughlineError, type ErrorCode } from "./errors.js";
import { Feed } from "./tabs-feed.js";
import type { Line } from "./tabs-line.js";
import {
  CONNECTOR,
  type Connected,
  type Course,
  type Entered,
  type Happening,
  type Joined,
  type State,
  type Streamed,
} from "./tabs-protocol.js";
import type { RawConnection, RawConnector, RawEvents, RawRoom, RawStatusChanges, RawStream } from "../pkg/throughline.js";

/** How many events wait for one who listens, as in the WebAssembly. */
const EVENTS = 32;
/** How many datagrams are on their way to the worker, and how many wait for that. */
const DATAGRAMS = 64;
const WAITING_DATAGRAMS = 256;
/** The most bytes of a datagram while there is no path, and of what a member of a room shows. */
const DATAGRAM = 1120;
const SHOWN = 1024;

const lagged = (missed: number): object => ({ event: "lagged", missed });

/** What has a handle. The bindings have it freed, and here nothing has to be. */
abstract class Remote {
  protected readonly line: Line;
  protected readonly on: number;

  constructor(line: Line, on: number) {
    this.line = line;
    this.on = on;
  }

  protected call<T>(method: string, args?: readonly unknown[], signal?: AbortSignal): Promise<T> {
    return this.line.call(this.on, method, args, signal);
  }

  free(): void {}

  [Symbol.dispose](): void {}
}

/** The connector that the tabs share. */
export class RemoteConnector extends Remote implements RawConnector {
  readonly #peerId: string;
  readonly #changes = new Feed<object>(1, () => undefined);
  readonly #events = new Feed<object>(EVENTS, lagged);
  #state: State;

  constructor(line: Line, joined: Joined) {
    super(line, CONNECTOR);
    this.#peerId = joined.peerId;
    this.#state = joined;
    void this.#follow<State>("state", this.#changes, (state) => (this.#state = state).status);
    void this.#follow<object>("event", this.#events, (event) => event);
  }

  /** Asks for one event after the other. */
  async #follow<T>(method: string, feed: Feed<object>, event: (value: T) => object): Promise<void> {
    try {
      for (let value; (value = await this.call<T | undefined>(method)); ) feed.push(event(value));
    } catch {
      // The connector is closed.
    }
    feed.end();
  }

  peerId(): string {
    return this.#peerId;
  }

  ticket(): string {
    return this.#state.ticket;
  }

  shortTicket(): string {
    return this.#state.shortTicket;
  }

  status(): object {
    return this.#state.status;
  }

  statusChanges(): RawStatusChanges {
    return this.#changes.listen(this.#state.status);
  }

  events(): RawEvents {
    return this.#events.listen();
  }

  metrics(): string {
    throw new ThroughlineError("unsupported", "a tab has no metrics: the worker has, where `share` gets the connector from a function");
  }

  report(): Promise<object> {
    return this.call("report");
  }

  async connect(ticket: string, signal: AbortSignal | undefined): Promise<RawConnection> {
    return new RemoteConnection(this.line, await this.call("connect", [ticket], signal));
  }

  async open(ticket: string, protocol: string, signal: AbortSignal | undefined): Promise<[RawConnection, RawStream]> {
    const [connected, streamed] = await this.call<[Connected, Streamed]>("open", [ticket, protocol], signal);
    return [new RemoteConnection(this.line, connected), new RemoteStream(this.line, streamed)];
  }

  async accept(signal: AbortSignal | undefined): Promise<RawConnection | undefined> {
    const accepted = await over(this.call<Connected | undefined>("accept", [], signal));
    return accepted && new RemoteConnection(this.line, accepted);
  }

  async join(name: string, application: string, secret: string, data: Uint8Array, signal: AbortSignal | undefined): Promise<RawRoom> {
    return new RemoteRoom(this.line, await this.call("join", [name, application, secret, data], signal));
  }

  close(): Promise<void> {
    return this.line.leave();
  }
}

/** Whoever waits for something of what is closed learns that there is no more. */
async function over<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (isOver(error)) return undefined;
    throw error;
  }
}

function isOver(error: unknown): boolean {
  return ["connection_closed", "connector_closed"].includes((error as ThroughlineError).code);
}

class RemoteConnection extends Remote implements RawConnection {
  readonly #peerId: string;
  readonly #feed = new Feed<object>(EVENTS, lagged);
  readonly #closed: Promise<string>;
  readonly #unsent: Uint8Array[] = [];
  #unanswered = 0;
  #course: Course;
  #asks = false;
  /** Why it is closed. */
  #code: ErrorCode | undefined;

  constructor(line: Line, { on, peerId, path, attempts }: Connected) {
    super(line, on);
    this.#peerId = peerId;
    this.#course = { path, attempts };
    this.#closed = this.#follow();
  }

  /** Asks for one event after the other, and resolves to the code of the last one. */
  async #follow(): Promise<string> {
    while (!this.#code) {
      let event: { event: string; code?: ErrorCode };
      try {
        const next = await this.call<(Course & { event: typeof event }) | undefined>("next");
        event = next?.event ?? { event: "closed", code: "connector_closed" };
        this.#course = next ?? this.#course;
      } catch (error) {
        event = { event: "closed", code: (error as ThroughlineError).code };
      }
      if (event.event === "closed") this.#code = event.code ?? "connection_closed";
      if (this.#code) this.#course = { ...this.#course, path: undefined };
      this.#feed.push(event);
    }
    this.#feed.end();
    this.line.drop(this.on);
    return this.#code;
  }

  /** The worker forgets what is closed, and its answer would not say why it is. */
  protected override async call<T>(method: string, args?: readonly unknown[], signal?: AbortSignal): Promise<T> {
    this.#check();
    return super.call(method, args, signal);
  }

  #check(): void {
    if (this.#code) throw new ThroughlineError(this.#code, "the connection is closed");
  }

  peerId(): string {
    return this.#peerId;
  }

  path(): object | undefined {
    // Round trips are measured without an event, so whoever asks again gets what has been measured since.
    if (!this.#asks && !this.#code) {
      this.#asks = true;
      const ask = async () => (this.#course = await this.call<Course>("course"));
      ask().catch(() => {}).finally(() => (this.#asks = false));
    }
    return this.#course.path;
  }

  attempts(): object[] {
    return this.#course.attempts;
  }

  waitDirect(ms: number, signal: AbortSignal | undefined): Promise<object> {
    return this.call("waitDirect", [ms], signal);
  }

  pathEvents(): RawEvents {
    return this.#code ? this.#feed.listen({ event: "closed", code: this.#code }) : this.#feed.listen();
  }

  async open(protocol: string, signal: AbortSignal | undefined): Promise<RawStream> {
    return new RemoteStream(this.line, await this.call("open", [protocol], signal));
  }

  async acceptStream(signal: AbortSignal | undefined): Promise<RawStream | undefined> {
    if (this.#code) return undefined;
    const accepted = await over(this.call<Streamed | undefined>("acceptStream", [], signal));
    return accepted && new RemoteStream(this.line, accepted);
  }

  sendDatagram(datagram: Uint8Array): void {
    this.#check();
    const { path } = this.#course as { path?: { max_datagram_size?: number } };
    if (path && !path.max_datagram_size) throw new ThroughlineError("unsupported", "the peer takes no datagrams");
    const most = path?.max_datagram_size ?? DATAGRAM;
    if (datagram.length > most) {
      throw new ThroughlineError("limit_exceeded", `datagram: it has ${datagram.length} bytes, and the path carries ${most}`);
    }
    this.#unsent.push(datagram.slice());
    if (this.#unsent.length > WAITING_DATAGRAMS) this.#unsent.shift();
    void this.#send();
  }

  /** The newest datagrams wait, because the worker may be slow. */
  async #send(): Promise<void> {
    if (this.#unanswered >= DATAGRAMS) return;
    this.#unanswered += 1;
    for (let datagram; (datagram = this.#unsent.shift()); ) {
      await this.call("sendDatagram", [datagram]).catch(() => {});
    }
    this.#unanswered -= 1;
  }

  async receiveDatagram(signal: AbortSignal | undefined): Promise<Uint8Array | undefined> {
    return this.#code ? undefined : over(this.call("receiveDatagram", [], signal));
  }

  closed(): Promise<string> {
    return this.#closed;
  }

  async close(): Promise<void> {
    if (this.#code) return;
    await over(this.call("close"));
    await this.#closed;
  }
}

/** Tells the worker of streams that nobody has any more. */
const dropped = new FinalizationRegistry<() => void>((drop) => drop());

class RemoteStream extends Remote implements RawStream {
  readonly #protocol: string;
  readonly #early: boolean;
  #reads = true;
  #writes = true;

  constructor(line: Line, { on, protocol, early }: Streamed) {
    super(line, on);
    this.#protocol = protocol;
    this.#early = early;
    dropped.register(this, () => line.drop(on), this);
  }

  /** Ends one direction, or both. */
  #end(direction: "reads" | "writes" | "both"): void {
    if (!this.#reads && !this.#writes) return;
    this.#reads &&= direction === "writes";
    this.#writes &&= direction === "reads";
    if (this.#reads || this.#writes) return;
    dropped.unregister(this);
    this.line.drop(this.on);
  }

  protocol(): string {
    return this.#protocol;
  }

  isEarly(): boolean {
    return this.#early;
  }

  async read(max: number): Promise<Uint8Array | undefined> {
    let bytes: Uint8Array | undefined;
    try {
      return (bytes = await this.call("read", [max]));
    } finally {
      if (!bytes) this.#end("reads");
    }
  }

  async write(bytes: Uint8Array): Promise<void> {
    const copy = bytes.slice();
    try {
      await this.line.call(this.on, "write", [copy], undefined, [copy.buffer]);
    } catch (error) {
      this.#end("writes");
      throw error;
    }
  }

  finish(): Promise<void> {
    return this.call<void>("finish").finally(() => this.#end("writes"));
  }

  stop(code: number): void {
    this.line.tell(this.on, "stop", code);
    this.#end("reads");
  }

  reset(code: number): void {
    this.line.tell(this.on, "reset", code);
    // Whoever reads on is told so by the stream itself.
    this.#end("writes");
  }

  refuse(): void {
    this.line.tell(this.on, "refuse");
    this.#end("both");
  }
}

class RemoteRoom extends Remote implements RawRoom {
  /** What the members show now, and what has been told of them. */
  readonly #now = new Map<string, Uint8Array>();
  readonly #told = new Map<string, Uint8Array>();
  /** The members of whom there may be something to tell. */
  readonly #turns = new Set<string>();
  readonly #waiting: (() => void)[] = [];
  #isOver = false;

  constructor(line: Line, { on, members }: Entered) {
    super(line, on);
    for (const [, id, data] of members) this.#now.set(id, data);
    void this.#follow();
  }

  async #follow(): Promise<void> {
    try {
      for (let next; !this.#isOver && (next = await this.call<Happening | undefined>("next")); ) {
        const [kind, id, data] = next;
        if (kind === "left") this.#now.delete(id);
        else this.#now.set(id, data);
        this.#turns.add(id);
        this.#waiting.shift()?.();
      }
    } catch {
      // The connector is closed.
    }
    this.leave();
  }

  members(): Happening[] {
    return [...this.#now].map(([id, data]) => ["joined", id, data]);
  }

  async next(): Promise<Happening | undefined> {
    for (;;) {
      for (const id of this.#turns) {
        this.#turns.delete(id);
        const [told, now] = [this.#told.get(id), this.#now.get(id)];
        if (now === told) continue;
        if (now) this.#told.set(id, now);
        else this.#told.delete(id);
        return (now ? [told ? "changed" : "joined", id, now] : ["left", id]) as Happening;
      }
      if (this.#isOver) return undefined;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  show(data: Uint8Array): void {
    if (data.length > SHOWN) throw new ThroughlineError("invalid_config", `data: a member of a room shows ${SHOWN} bytes at most`);
    this.line.tell(this.on, "show", data);
  }

  async connect(member: string, signal: AbortSignal | undefined): Promise<RawConnection> {
    return new RemoteConnection(this.line, await this.call("connect", [member], signal));
  }

  leave(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.line.tell(this.on, "leave");
    this.line.drop(this.on);
    for (const wake of this.#waiting.splice(0)) wake();
  }
}
