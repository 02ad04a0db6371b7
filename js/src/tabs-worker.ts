/** The worker that the tabs share, and what of it they share. */
import { attach } from "./bridge-worker.js";
import { Presence, watch, type Endpoint } from "./bridge-protocol.js";
import type { CreateOptions } from "./config.js";
import { Connector } from "./connector.js";
import { ThroughlineError } from "./errors.js";
import { JOIN, MAX_TABS, type Joining } from "./tabs-protocol.js";
import { Tab, tooMany } from "./tabs-session.js";
import type { RawConnection, RawConnector } from "../pkg/throughline.js";

let isShared = false;

/**
 * Lets all tabs that call `join` for this worker be one peer. Call it once, and before the first `await` of the worker's
 * script, because a shared worker learns of a tab only once.
 *
 * `options` are those of `Connector.create`, or a function that makes the connector, such as one that reads the identity
 * from a database first. The connector is made when the first tab joins, and closed when the last one has left. Then the
 * next tab that joins has another one made. If that fails, the tab's `join` rejects with the error, and the next tab
 * tries again.
 *
 * The script may use the connector that its function makes. What it takes from `incoming` does not reach the tabs. It
 * should not close connections that tabs may have as well.
 *
 * Throws `unsupported_platform` outside of workers, and `invalid_config` when it is called again.
 */
export function share(options: CreateOptions | (() => Promise<Connector>) = {}): void {
  if (!("WorkerGlobalScope" in globalThis)) {
    throw new ThroughlineError("unsupported_platform", "`share` is for a worker that tabs share; in the tabs call `join`");
  }
  if (isShared) throw new ThroughlineError("invalid_config", "share: this worker shares a connector already");
  isShared = true;
  const presence = new Presence();
  // Whoever joins learns of it.
  for (const failed of [attach(), presence.held]) failed.catch(() => {});
  const sharing = new Sharing(async () => {
    // The page that served when the last peer was made may be gone.
    await attach();
    await presence.held;
    return typeof options === "function" ? options() : Connector.create(options);
  }, presence);
  if ("onconnect" in globalThis) {
    globalThis.addEventListener("connect", (event) => listen(sharing, (event as MessageEvent).ports[0] as MessagePort));
  } else listen(sharing, globalThis as unknown as Endpoint);
}

/** Takes the tabs that come by an endpoint. */
function listen(sharing: Sharing, endpoint: Endpoint): void {
  endpoint.addEventListener("message", (event) => {
    const { throughline, lock } = Object(event.data) as Joining;
    const port = event.ports[0];
    if (throughline !== JOIN || !lock || !port) return;
    event.stopImmediatePropagation();
    const tab = new Tab(port, sharing);
    // The browser gives the lock away when the tab is gone, however that ended.
    watch(lock, tab.over, () => void tab.end());
  });
  endpoint.start?.();
}

/** What the tabs of one worker share: one peer at a time. */
export class Sharing {
  /** That of the worker. */
  readonly presence: Pick<Presence, "held" | "lock">;
  readonly #make: () => Promise<Connector>;
  /** The tabs, with the peer that each has. */
  readonly #tabs = new Map<Tab, Peer | undefined>();
  #made: Promise<Peer> | undefined;
  /** The peer, as soon as it is made. */
  #peer: Peer | undefined;
  /** Settles when the peer before is closed. */
  #closing: Promise<unknown> = Promise.resolve();

  constructor(make: () => Promise<Connector>, presence: Pick<Presence, "held" | "lock">) {
    this.#make = make;
    this.presence = presence;
  }

  /** A tab wants the peer. */
  async enter(tab: Tab): Promise<Peer> {
    if (this.#tabs.size >= MAX_TABS) throw tooMany("tabs of one worker", MAX_TABS);
    this.#tabs.set(tab, undefined);
    try {
      const peer = await this.#present();
      this.#tabs.set(tab, peer);
      peer.tabs.add(tab);
      // The tab has left in the meantime.
      if (tab.over.aborted) await this.leave(tab);
      return peer;
    } catch (error) {
      this.#tabs.delete(tab);
      throw error;
    }
  }

  /** A tab has left. The last one closes the peer. */
  async leave(tab: Tab): Promise<void> {
    const peer = this.#tabs.get(tab);
    this.#tabs.delete(tab);
    peer?.tabs.delete(tab);
    // A tab that enters at this moment gets the same peer.
    if (!peer || peer.tabs.size || (peer === this.#peer && [...this.#tabs.values()].includes(undefined))) return;
    if (peer === this.#peer) this.#made = this.#peer = undefined;
    await (this.#closing = peer.raw.close());
  }

  /** Returns the peer that is there, or makes one. */
  #present(): Promise<Peer> {
    if (this.#made) return this.#made;
    const made = this.#closing.then(async () => new Peer(rawOf(await this.#make())));
    this.#made = made;
    const over = () => {
      if (this.#made === made) this.#made = this.#peer = undefined;
    };
    made.then((peer) => {
      this.#peer = peer;
      return peer.ended;
    }).then(over, over);
    return made;
  }
}

function rawOf(connector: unknown): RawConnector {
  const { raw } = Object(connector) as Partial<Connector>;
  if (!raw) throw new ThroughlineError("invalid_config", "share: the function gave no Connector");
  return raw;
}

/** A tab that waits for a connection that another peer makes. */
interface Waiter {
  readonly tab: Tab;
  readonly resolve: (raw: RawConnection | undefined) => void;
  readonly reject: (error: unknown) => void;
}

/** The peer that the tabs are. */
export class Peer {
  readonly raw: RawConnector;
  readonly tabs = new Set<Tab>();
  /** Resolves when the connector is closed. */
  readonly ended: Promise<void>;
  readonly #rooms = new Set<string>();
  readonly #waiting = new Set<Waiter>();
  /** A connection that came when nobody waited any more. */
  #left: RawConnection | undefined;
  #stop = new AbortController();
  #gives = false;

  constructor(raw: RawConnector) {
    this.raw = raw;
    this.ended = this.#follow();
  }

  async #follow(): Promise<void> {
    const changes = this.raw.statusChanges();
    while (await changes.next());
  }

  /** Whether another tab has a connection with a peer. There is one connection with each peer, which the tabs share. */
  isHeld(peer: string, except: Tab): boolean {
    return [...this.tabs].some((tab) => tab !== except && tab.holds(peer));
  }

  /**
   * Notes that a tab enters a room, and returns what forgets that. A room sees a peer once, so one tab would show data in
   * the place of another, and take it away when it leaves.
   */
  enterRoom(room: string): () => void {
    if (this.#rooms.has(room)) {
      throw new ThroughlineError("limit_exceeded", "this peer is in the room already: one tab at a time enters a room");
    }
    this.#rooms.add(room);
    return () => this.#rooms.delete(room);
  }

  /** Waits for a connection that another peer makes. */
  accept(tab: Tab, signal: AbortSignal): Promise<RawConnection | undefined> {
    return new Promise((resolve, reject) => {
      const waiter = { tab, resolve, reject };
      this.#waiting.add(waiter);
      signal.addEventListener("abort", () => {
        if (!this.#waiting.delete(waiter)) return;
        reject(new ThroughlineError("aborted", "the tab waits no more"));
        if (!this.#waiting.size) this.#stop.abort();
      });
      void this.#give();
    });
  }

  /** Gives each connection to one tab: one that the user sees, or the oldest. It takes none while no tab waits. */
  async #give(): Promise<void> {
    if (this.#gives) return;
    this.#gives = true;
    while (this.#waiting.size) {
      const { signal } = (this.#stop = new AbortController());
      try {
        const raw = this.#left ?? (await this.raw.accept(signal));
        this.#left = undefined;
        const taker = [...this.#waiting].sort(byTurn)[0];
        if (!raw) this.#settle(({ resolve }) => resolve(undefined));
        else if (!taker) this.#left = raw;
        else {
          this.#waiting.delete(taker);
          taker.resolve(raw);
        }
      } catch (error) {
        if (!signal.aborted) this.#settle(({ reject }) => reject(error));
      }
    }
    this.#gives = false;
  }

  #settle(how: (waiter: Waiter) => void): void {
    for (const waiter of this.#waiting) how(waiter);
    this.#waiting.clear();
  }
}

function byTurn({ tab: one }: Waiter, { tab: other }: Waiter): number {
  return Number(other.visible) - Number(one.visible) || one.number - other.number;
}
