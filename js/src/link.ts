import type { Connection } from "./connection.js";
import type { Frames } from "./frames.js";
import type { DuplexStream } from "./streams.js";

/** How many messages wait for one member. */
const QUEUE = 16;
/** How long a message may wait for a member, in milliseconds. The others do not wait longer for it. */
const TAKES = 10_000;

/** The stream with a member that is connected. */
export class Link {
  readonly connection: Connection;
  readonly frames: Frames;
  /** Resolves when the link is over. */
  readonly ended: Promise<void>;
  readonly #writer: WritableStreamDefaultWriter<BufferSource>;
  /** What waits, and since when. */
  readonly #queue: [number, Uint8Array<ArrayBuffer>][] = [];
  /** Who waits for room. */
  readonly #waiting: (() => void)[] = [];
  #isOver = false;
  #isWriting = false;
  #tellEnd: () => void = () => {};

  constructor(connection: Connection, stream: DuplexStream, frames: Frames) {
    this.connection = connection;
    this.frames = frames;
    this.#writer = stream.writable.getWriter();
    this.ended = new Promise((resolve) => (this.#tellEnd = resolve));
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** Resolves when there is room for the message, to whether the member is connected. */
  async send(frame: Uint8Array<ArrayBuffer>): Promise<boolean> {
    while (this.#queue.length >= QUEUE && !this.#isOver) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    if (this.#isOver) return false;
    this.#queue.push([performance.now(), frame]);
    void this.#write();
    return true;
  }

  /** Sends what waits. The oldest message is written, so one timer is enough for all. */
  async #write(): Promise<void> {
    if (this.#isWriting) return;
    this.#isWriting = true;
    for (let head = this.#queue[0]; head; head = this.#queue[0]) {
      const [since, frame] = head;
      const late = setTimeout(() => this.#abort(), Math.max(0, since + TAKES - performance.now()));
      try {
        await this.#writer.write(frame);
      } catch {
        this.#abort();
      } finally {
        clearTimeout(late);
      }
      this.#queue.shift();
      this.#waiting.shift()?.();
    }
    this.#isWriting = false;
    if (this.#isOver) this.#close();
  }

  /** The member has not taken a message in time, or takes none any more. A part of one is of no use. */
  #abort(): void {
    this.#queue.length = 0;
    void this.#writer.abort().catch(() => {});
    this.end();
  }

  #close(): void {
    // What the member does not take is dropped.
    const late = setTimeout(() => void this.#writer.abort().catch(() => {}), TAKES);
    void this.#writer.close().catch(() => {}).finally(() => clearTimeout(late));
  }

  /** Takes nothing more, and sends what waits already. */
  end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.frames.cancel();
    this.#tellEnd();
    for (const wake of this.#waiting.splice(0)) wake();
    if (!this.#isWriting) this.#close();
  }
}
