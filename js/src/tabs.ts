/// <reference lib="esnext.disposable" preserve="true" />
/**
 * The entry `throughline/tabs`: all tabs of an origin are one peer, which runs in a shared worker. It is JavaScript
 * alone, and only the worker loads the WebAssembly.
 */
export { join, type SharingWorker } from "./tabs-page.js";
export { share } from "./tabs-worker.js";
