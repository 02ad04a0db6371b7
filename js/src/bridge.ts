/// <reference lib="esnext.disposable" preserve="true" />
/**
 * The entry `throughline/bridge`: the API in a worker. The page serves peer connections to the worker, where browsers
 * have none. It is JavaScript alone, so a page that only serves loads no WebAssembly.
 */
export { serve, type Bridge } from "./bridge-page.js";
export { attach, type AttachOptions } from "./bridge-worker.js";
