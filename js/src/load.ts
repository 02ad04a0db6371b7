import init from "../pkg/throughline.js";
import { asset } from "./asset.js";
import { Binary } from "./binary.js";
import { wasm } from "./check.js";

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
 *
 * Rejects with `invalid_config` if `source` has a wrong type, or with `io`. Then `load` of the error has the
 * address, the status and the reason.
 */
export function load(source?: WasmSource): Promise<void> {
  try {
    wasm(source);
  } catch (error) {
    return Promise.reject(error);
  }
  loading ??= instantiate(source).catch((error: unknown) => {
    loading = undefined;
    throw error;
  });
  return loading;
}

async function instantiate(source: WasmSource | undefined): Promise<void> {
  const binary = new Binary();
  try {
    await init({ module_or_path: await binary.of(source ?? asset()) });
  } catch (cause) {
    throw await binary.failure(cause);
  } finally {
    binary.done();
  }
}
