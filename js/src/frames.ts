/** Reads bytes of a known number from a stream. */
export class Frames {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  /** What has come and is not taken yet, from `#from` to `#to`. It grows with that, never with what is announced. */
  #held = new Uint8Array();
  #from = 0;
  #to = 0;

  constructor(readable: ReadableStream<Uint8Array>) {
    this.#reader = readable.getReader();
  }

  /** Takes so many bytes. Resolves to `undefined` if the stream ends before. */
  async take(length: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    while (this.#to - this.#from < length) {
      const { done, value } = await this.#reader.read();
      if (done) return undefined;
      this.#hold(value);
    }
    const taken = this.#held.slice(this.#from, this.#from + length);
    this.#from += length;
    if (this.#from === this.#to) this.#from = this.#to = 0;
    return taken;
  }

  /** Takes a message that stands behind its length in four bytes, unless it is too long or the stream ends. */
  async message(most: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const head = await this.take(4);
    const length = head && new DataView(head.buffer).getUint32(0);
    return length === undefined || length > most ? undefined : this.take(length);
  }

  /** Reads no more, and tells the peer. */
  cancel(): void {
    void this.#reader.cancel().catch(() => {});
  }

  /** Each move makes room for at least as much as it moves, so a byte costs the same however small the pieces are. */
  #hold(chunk: Uint8Array): void {
    if (this.#to + chunk.length > this.#held.length) {
      const rest = this.#held.subarray(this.#from, this.#to);
      const moved = new Uint8Array(Math.max(2 * rest.length, rest.length + chunk.length));
      moved.set(rest);
      this.#held = moved;
      this.#from = 0;
      this.#to = rest.length;
    }
    this.#held.set(chunk, this.#to);
    this.#to += chunk.length;
  }
}
