/** The tab's end of its port to the worker. */
import { ThroughlineError } from "./errors.js";
import { unpack, type Answer, type Wish } from "./tabs-protocol.js";

interface Waiting {
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
}

/** Calls what the worker has for this tab. */
export class Line {
  readonly #port: MessagePort;
  readonly #over: () => void;
  readonly #waiting = new Map<number, Waiting>();
  #next = 0;
  /** Why there are no more calls. */
  #end: ThroughlineError | undefined;

  /** `over` is called once, when there are no more calls. */
  constructor(port: MessagePort, over: () => void) {
    this.#port = port;
    this.#over = over;
    port.onmessage = ({ data }) => this.#hear(data as Answer);
  }

  #hear({ call, value, fault }: Answer): void {
    const waiting = this.#waiting.get(call);
    this.#waiting.delete(call);
    if (fault) waiting?.reject(unpack(fault));
    else waiting?.resolve(value as never);
  }

  /** Calls a method of what has the handle `on`. The signal asks the worker to end the call, which still answers. */
  async call<T>(on: number, method: string, args: readonly unknown[] = [], signal?: AbortSignal, transfer?: Transferable[]): Promise<T> {
    const call = this.#next++;
    const answer = this.#send<T>(call, { op: "call", call, on, method, args }, transfer);
    const abort = () => this.#post({ op: "abort", call });
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort);
    try {
      return await answer;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** Calls a method whose answer nobody waits for. */
  tell(on: number, method: string, ...args: unknown[]): void {
    this.call(on, method, args).catch(() => {});
  }

  drop(on: number): void {
    this.#post({ op: "drop", on });
  }

  see(visible: boolean): void {
    this.#post({ op: "see", visible });
  }

  /** Leaves the worker, which closes the connections of this tab first. */
  async leave(): Promise<void> {
    const call = this.#next++;
    await this.#send(call, { op: "leave", call }).catch(() => {});
    this.end(new ThroughlineError("connector_closed", "this tab has left the shared peer"));
  }

  /** Ends every call, and those that come. */
  end(why: ThroughlineError): void {
    if (this.#end) return;
    this.#end = why;
    for (const { reject } of this.#waiting.values()) reject(why);
    this.#waiting.clear();
    this.#port.close();
    this.#over();
  }

  #send<T>(call: number, wish: Wish, transfer?: Transferable[]): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.#end) return reject(this.#end);
      this.#waiting.set(call, { resolve, reject });
      this.#post(wish, transfer);
    });
  }

  #post(wish: Wish, transfer: Transferable[] = []): void {
    if (!this.#end) this.#port.postMessage(wish, transfer);
  }
}
