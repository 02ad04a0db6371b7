/** What the WebAssembly uses of `RTCDataChannel`, for a channel that is on a page or comes from there later. */

import { MAX_BYTES } from "./bridge-protocol.js";

/** What a channel asks of its page. */
interface Remote {
  send(data: ArrayBuffer): void;
  lower(bytes: number): void;
  shut(): void;
  /** The channel has ended. */
  over(): void;
}

const EVENTS = ["open", "closing", "close", "error", "bufferedamountlow"];

/** A data channel of a peer connection on a page. */
export class Channel extends EventTarget {
  readonly label: string;
  readonly #remote: Remote;
  /** The channel itself, if the page has transferred it. */
  #real: RTCDataChannel | undefined;
  #state: RTCDataChannelState;
  #low = 0;
  /** The bytes that were sent to the page, and those of which it has said that they are on their way. */
  #sent = 0;
  #drained = 0;

  /** The WebAssembly takes nothing but an `ArrayBuffer`, which is also all that a page sends. */
  binaryType: BinaryType = "arraybuffer";

  constructor(label: string, state: RTCDataChannelState, remote: Remote) {
    super();
    this.label = label;
    this.#state = state;
    this.#remote = remote;
  }

  get readyState(): RTCDataChannelState {
    return this.#state === "closed" ? "closed" : (this.#real?.readyState ?? this.#state);
  }

  get bufferedAmount(): number {
    return this.#real?.bufferedAmount ?? this.#sent - this.#drained;
  }

  set bufferedAmountLowThreshold(bytes: number) {
    this.#low = bytes;
    if (this.#real) this.#real.bufferedAmountLowThreshold = bytes;
    else this.#remote.lower(bytes);
  }

  send(data: Uint8Array<ArrayBuffer>): void {
    if (this.readyState !== "open") throw new DOMException("the channel is not open", "InvalidStateError");
    if (this.#real) return this.#give(this.#real, data);
    this.#sent += data.byteLength;
    // The bytes are in the memory of the WebAssembly, which stays here.
    this.#remote.send(data.slice().buffer);
  }

  #give(real: RTCDataChannel, data: Uint8Array<ArrayBuffer>): void {
    // Chromium throws the same. Firefox takes any number of bytes, and loses all but the first 64 MiB of them.
    if (real.bufferedAmount + data.byteLength > MAX_BYTES) throw new DOMException("the buffer of the channel is full", "OperationError");
    real.send(data);
  }

  close(): void {
    if (this.#real) return this.#real.close();
    if (this.#state === "closing" || this.#state === "closed") return;
    this.#state = "closing";
    this.#remote.shut();
  }

  /** The page has transferred the channel. */
  take(real: RTCDataChannel): void {
    if (this.#state === "closed") return real.close();
    this.#real = real;
    real.binaryType = "arraybuffer";
    real.bufferedAmountLowThreshold = this.#low;
    for (const type of EVENTS) real.addEventListener(type, () => this.happen(type, real.readyState));
    real.addEventListener("message", ({ data }: MessageEvent<ArrayBuffer | string>) => this.receive(data));
    if (this.#state === "closing") real.close();
    else if (real.readyState === "open") this.happen("open", "open");
  }

  /** Something has happened to the channel. */
  happen(type: string, state: RTCDataChannelState): void {
    if (this.#state === "closed") return;
    if (type === "close") return this.end();
    // A channel that is being closed here may have opened there in the meantime.
    if (this.#state !== "closing") this.#state = state;
    this.dispatchEvent(new Event(type));
  }

  receive(data: ArrayBuffer | string): void {
    this.dispatchEvent(new MessageEvent("message", { data }));
  }

  /** So many of the bytes that were sent have left the buffer of the page. */
  drain(total: number): void {
    const before = this.bufferedAmount;
    this.#drained = total;
    if (before > this.#low && this.bufferedAmount <= this.#low) this.dispatchEvent(new Event("bufferedamountlow"));
  }

  /** The channel is closed, or its page is gone. */
  end(): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#remote.over();
    this.dispatchEvent(new Event("close"));
  }
}
