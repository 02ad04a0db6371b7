// `throughline/wasm` is the WebAssembly itself. What an import of it gives is the bundler's choice: mostly its
// address. `load` and `create` take every form.
import type { WasmSource } from "../dist/index.js";
declare const wasm: WasmSource;
export default wasm;
