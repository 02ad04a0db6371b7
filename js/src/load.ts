import init from "../pkg/throughline.js";
import { ThroughlineError } from "./errors.js";

/** Where the WebAssembly comes from: its address, a response, its bytes, or a compiled module. */
export type WasmSource =
  | string
  | URL
  | Response
  | PromiseLike<Response>
  | BufferSource
  | WebAssembly.Module;

let loading: Promise<void> | undefined;

/**
 * Loads the WebAssembly once; later calls return the same promise and ignore their argument, except
 * after a failure. `Connector.create` calls it: call it yourself to load early, or to load from an
 * address of your own where a bundler moved the file.
 */
export function load(source?: WasmSource): Promise<void> {
  loading ??= instantiate(source).catch((cause: unknown) => {
    loading = undefined;
    throw new ThroughlineError(
      "io",
      "the WebAssembly of throughline could not be loaded: serve pkg/throughline_bg.wasm beside dist/ or pass `wasm`",
      { cause },
    );
  });
  return loading;
}

async function instantiate(source: WasmSource | undefined): Promise<void> {
  // The literal form is what bundlers recognise; it must stay the only one in this package.
  const module_or_path = source ?? new URL("../pkg/throughline_bg.wasm", import.meta.url);
  await init({ module_or_path });
}
