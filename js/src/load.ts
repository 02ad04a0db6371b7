import init from "../pkg/throughline.js";
import { wasm } from "./check.js";
import { ThroughlineError } from "./errors.js";

/** The source of the WebAssembly: its address, a response, its bytes, or a compiled module. */
export type WasmSource =
  | string
  | URL
  | Response
  | PromiseLike<Response>
  | BufferSource
  | WebAssembly.Module;

let loading: Promise<void> | undefined;

/**
 * Loads the WebAssembly once. Later calls return the same promise and ignore their argument, except after
 * a failure. `Connector.create` calls it. Call it yourself to load early, or to load from another address
 * if a bundler has moved the file.
 */
export function load(source?: WasmSource): Promise<void> {
  try {
    wasm(source);
  } catch (error) {
    return Promise.reject(error);
  }
  loading ??= instantiate(source).catch((cause: unknown) => {
    loading = undefined;
    throw new ThroughlineError(
      "io",
      "the WebAssembly of throughline could not be loaded: serve pkg/throughline_bg.wasm beside dist/, or pass `wasm`",
      { cause },
    );
  });
  return loading;
}

async function instantiate(source: WasmSource | undefined): Promise<void> {
  // Bundlers recognise this literal form. It must stay the only one in this package.
  const module_or_path = source ?? new URL("../pkg/throughline_bg.wasm", import.meta.url);
  await init({ module_or_path });
}
