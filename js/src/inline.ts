// This is the entry of `throughline/inline`. scripts/build.mjs makes one file of it, with the WebAssembly inside.
export * from "./index.js";
