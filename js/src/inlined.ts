import type { WasmSource } from "./load.js";

/** The WebAssembly, compressed by deflate, in base64. scripts/build.mjs puts it here. */
declare const THROUGHLINE_WASM: string;

/** Returns the WebAssembly that the module holds itself. It is compiled while it is unpacked. */
export function asset(): WasmSource {
  const packed = Uint8Array.from(atob(THROUGHLINE_WASM), (character) => character.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(unpacked, { headers: { "content-type": "application/wasm" } });
}
