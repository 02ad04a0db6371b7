import { toError } from "./errors.js";

/** Makes an async iterable that ends when `next` returns `undefined`. `next` is called only when a value is wanted. */
export function iterate<T>(next: () => Promise<T | undefined>): AsyncIterableIterator<T> {
  let ended = false;
  const done: IteratorResult<T> = { done: true, value: undefined };
  return {
    async next() {
      if (ended) return done;
      try {
        const value = await next();
        if (value !== undefined) return { done: false, value };
      } catch (error) {
        ended = true;
        throw toError(error);
      }
      ended = true;
      return done;
    },
    async return() {
      ended = true;
      return done;
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
