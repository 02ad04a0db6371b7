import { toError } from "./errors.js";

/** The options of every call that may take long. */
export interface AbortOptions {
  /** Cancels the operation. It then rejects with `signal.reason`. */
  readonly signal?: AbortSignal | undefined;
}

/** Runs a function of the bindings that takes a signal. */
export async function cancellable<T>(
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal | undefined) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted();
  try {
    return await work(signal);
  } catch (error) {
    signal?.throwIfAborted();
    throw toError(error);
  }
}
