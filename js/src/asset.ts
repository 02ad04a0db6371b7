import type { WasmSource } from "./load.js";

/**
 * Returns where this package's WebAssembly is. Bundlers recognise this literal form, so it must stay the
 * only one in this package. `throughline/inline` has src/inlined.ts in the place of this module.
 */
export function asset(): WasmSource {
  return new URL("../pkg/throughline_bg.wasm", import.meta.url);
}
