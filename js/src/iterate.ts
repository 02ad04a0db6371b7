import { toError } from "./errors.js";

/**
 * Makes an async iterable that ends when `next` returns `undefined`. `next` is called only when a value is wanted.
 * Its signal fires when the iterator is returned, so that the call takes nothing that somebody else waits for.
 */
export function iterate<T>(next: (signal: AbortSignal) => Promise<T | undefined>): AsyncIterableIterator<T> {
  const returned = new AbortController();
  let ended = false;
  const done: IteratorResult<T> = { done: true, value: undefined };
  return {
    async next() {
      if (ended) return done;
      try {
        const value = await next(returned.signal);
        // A value that has come before `return` is for whoever has asked for it.
        if (value !== undefined) return { done: false, value };
      } catch (error) {
        ended = true;
        if (returned.signal.aborted) return done;
        throw toError(error);
      }
      ended = true;
      return done;
    },
    async return() {
      ended = true;
      returned.abort();
      return done;
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
