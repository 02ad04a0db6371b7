// Builds the npm package as ../wasm-pack.toml (the record) says. The wasm and its bindings go into pkg/,
// and the compiled TypeScript goes into dist/. Then it checks the result against the record's budget.
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { parse } from "smol-toml";
import { environment, run } from "./toolchain.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const js = join(root, "js");
const record = parse(readFileSync(join(root, "wasm-pack.toml"), "utf8"));

// The flags that make code smaller are not stable yet. RUSTC_BOOTSTRAP makes Rust accept them.
const flags = [...record.rustflags, ...withoutFeatures(), ...withoutPaths()];
const rust = {
  RUSTC_BOOTSTRAP: "1",
  RUSTC_WRAPPER: join(js, "scripts/rustc"),
  CARGO_ENCODED_RUSTFLAGS: flags.join("\x1f"),
};

run(
  "wasm-pack",
  [
    ...["build", join(root, record.crate), "--mode", "no-install", "--no-pack", "--no-gitignore"],
    ...["--target", record.target, "--profile", record["cargo-profile"]],
    ...["--out-dir", join(root, record["out-dir"]), "--out-name", record["out-name"]],
    ...["--", "--locked", ...record["cargo-flags"]],
  ],
  { cwd: root, env: { ...environment(), ...rust } },
);
run("tsc", [], { cwd: js });
// The demo page draws a QR code by this library, which has one file.
mkdirSync(join(root, "www/vendor"), { recursive: true });
cpSync(join(js, "node_modules/uqr/dist/index.mjs"), join(root, "www/vendor/qr.js"));
cpSync(join(js, "node_modules/uqr/LICENSE"), join(root, "www/vendor/LICENSE"));
for (const license of ["LICENSE-MIT", "LICENSE-APACHE"]) cpSync(join(root, license), join(js, license));

const wasm = readFileSync(join(root, record["out-dir"], `${record["out-name"]}_bg.wasm`));
const [brotli] = [`${record["out-name"]}_bg.wasm`, `${record["out-name"]}.js`].map(compressed);
const sizes = {
  raw: wasm.byteLength,
  gzip: gzipSync(wasm, { level: 9 }).byteLength,
  brotli: brotli.byteLength,
};
console.log(`wasm: ${Object.entries(sizes).map(([form, size]) => `${size} bytes ${form}`).join(", ")}`);

const faults = Object.entries(record.budget)
  .filter(([form, most]) => sizes[form] > most)
  .map(([form, most]) => `${sizes[form]} bytes ${form} is above the budget of ${most}`);
for (const { module, name } of WebAssembly.Module.imports(new WebAssembly.Module(wasm))) {
  if (record.check["forbid-imports"].includes(module)) faults.push(`the module imports ${name} from "${module}"`);
}
for (const fault of faults) console.error(`build: ${fault}`);
process.exitCode = faults.length ? 1 : 0;

/** Returns flags that tell scripts/rustc which features to leave out. They also tell cargo when these change. */
function withoutFeatures() {
  return Object.entries(record.without).flatMap(([crate, features]) =>
    features.map((feature) => `--cfg=without="${crate}/${feature}"`),
  );
}

/** Writes the compressed form of a file of pkg/ beside it. `throughline serve --npm` sends it. It is not published. */
function compressed(name) {
  const file = join(root, record["out-dir"], name);
  const bytes = brotliCompressSync(readFileSync(file));
  writeFileSync(`${file}.br`, bytes);
  return bytes;
}

/** Returns flags that keep this machine's folders, and their length, out of the panic messages in the wasm. */
function withoutPaths() {
  const registry = join(process.env.CARGO_HOME || join(homedir(), ".cargo"), "registry/src");
  const sources = existsSync(registry) ? readdirSync(registry).map((name) => join(registry, name)) : [];
  return [...sources, root].map((folder) => `--remap-path-prefix=${folder.replace(/\/$/, "")}/=`);
}
