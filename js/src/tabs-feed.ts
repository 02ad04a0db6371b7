/** One who listens to a feed. */
class Listener<T> {
  readonly #feed: Feed<T>;
  readonly #unread: T[];
  #missed = 0;
  #wake: (() => void) | undefined;

  constructor(feed: Feed<T>, unread: T[]) {
    this.#feed = feed;
    this.#unread = unread;
  }

  put(value: T, most: number): void {
    this.#unread.push(value);
    if (this.#unread.length > most) {
      this.#unread.shift();
      this.#missed += 1;
    }
    this.wake();
  }

  wake(): void {
    this.#wake?.();
    this.#wake = undefined;
  }

  async next(): Promise<T | undefined> {
    while (!this.#unread.length && !this.#feed.isOver) {
      await new Promise<void>((resolve) => {
        const before = this.#wake;
        this.#wake = () => (before?.(), resolve());
        this.#feed.hold(this, true);
      });
    }
    this.#feed.hold(this, false);
    const lagged = this.#missed ? this.#feed.lagged(this.#missed) : undefined;
    this.#missed = 0;
    return lagged ?? this.#unread.shift();
  }

  free(): void {}

  [Symbol.dispose](): void {}
}

/**
 * Tells several listeners what happens, as the events of the bindings do. One that is slow misses what is old. One that
 * nobody has any more and that waits for nothing is forgotten.
 */
export class Feed<T> {
  readonly #most: number;
  readonly #listeners = new Set<WeakRef<Listener<T>>>();
  readonly #waiting = new Set<Listener<T>>();
  /** What a listener is told that has missed so many values, if anything. */
  readonly lagged: (missed: number) => T | undefined;
  isOver = false;

  constructor(most: number, lagged: (missed: number) => T | undefined) {
    this.#most = most;
    this.lagged = lagged;
  }

  /** Listens from now on. `first` has been told already. */
  listen(...first: T[]): Listener<T> {
    const listener = new Listener(this, first);
    this.#listeners.add(new WeakRef(listener));
    return listener;
  }

  push(value: T): void {
    for (const known of this.#listeners) {
      const listener = known.deref();
      if (listener) listener.put(value, this.#most);
      else this.#listeners.delete(known);
    }
  }

  /** Nothing follows. */
  end(): void {
    this.isOver = true;
    for (const listener of this.#waiting) listener.wake();
  }

  /** Keeps a listener that waits. */
  hold(listener: Listener<T>, waits: boolean): void {
    if (waits) this.#waiting.add(listener);
    else this.#waiting.delete(listener);
  }
}
