// Builds the npm package as ../wasm-pack.toml (the record) says. The wasm and its bindings go into pkg/,
// and the compiled TypeScript goes into dist/. Then it checks the result against the record's budget.
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, deflateRawSync, gzipSync } from "node:zlib";
import { build } from "esbuild";
import { parse } from "smol-toml";
import { environment, run } from "./toolchain.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const js = join(root, "js");
const record = parse(readFileSync(join(root, "wasm-pack.toml"), "utf8"));

// The flags that make code smaller are not stable yet. RUSTC_BOOTSTRAP makes Rust accept them.
const flags = [...record.rustflags, ...withoutFeatures(), ...insteadOfCrates(), ...withoutPaths()];
const rust = {
  RUSTC_BOOTSTRAP: "1",
  RUSTC_WRAPPER: join(js, "scripts/rustc"),
  CARGO_ENCODED_RUSTFLAGS: flags.join("\x1f"),
};

const target = "wasm32-unknown-unknown";
const folder = join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), target, record["cargo-profile"]);
const linked = join(folder, "throughline_npm.wasm");
const named = join(folder, `${record["out-name"]}.wasm`);
const bound = join(root, record["out-dir"], `${record["out-name"]}_bg.wasm`);

// These are the steps of wasm-pack, which would be one more tool to compile.
run(
  "cargo",
  [
    ...["build", "--locked", "--manifest-path", join(root, record.crate, "Cargo.toml"), "--lib"],
    ...["--target", target, "--profile", record["cargo-profile"], ...record["cargo-flags"]],
  ],
  { cwd: root, env: { ...environment(), ...rust } },
);
rmSync(join(root, record["out-dir"]), { recursive: true, force: true });
// Without this section, wasm-bindgen keeps JavaScript's values in a table of its own. References in WebAssembly
// would take more code.
writeFileSync(named, withoutSection(readFileSync(linked), "target_features"));
run("wasm-bindgen", [named, ...["--out-dir", join(root, record["out-dir"]), "--out-name", record["out-name"]], ...record["wasm-bindgen"]]);
run("wasm-opt", [bound, "--output", bound, ...record["wasm-opt"]]);
rmSync(join(js, "dist"), { recursive: true, force: true });
run("tsc", [], { cwd: js });
// The demo page draws a QR code by this library, which has one file.
mkdirSync(join(root, "www/vendor"), { recursive: true });
cpSync(join(js, "node_modules/uqr/dist/index.mjs"), join(root, "www/vendor/qr.js"));
cpSync(join(js, "node_modules/uqr/LICENSE"), join(root, "www/vendor/LICENSE"));
for (const license of ["LICENSE-MIT", "LICENSE-APACHE"]) cpSync(join(root, license), join(js, license));

const wasm = readFileSync(bound);
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
if (faults.length) process.exit(1);
// Make takes this file as the sign of a whole build, so it comes last.
await inline();

/** Makes dist/inline.js one file with the wasm inside, for bundlers that do not copy the wasm. */
async function inline() {
  const entry = join(js, "dist/inline.js");
  const packed = JSON.stringify(deflateRawSync(wasm, { level: 9 }).toString("base64"));
  await build({
    entryPoints: [entry],
    outfile: entry,
    allowOverwrite: true,
    bundle: true,
    format: "esm",
    target: "es2022",
    define: { THROUGHLINE_WASM: packed },
    plugins: [
      {
        name: "inlined",
        setup: ({ onResolve }) => onResolve({ filter: /^\.\/asset\.js$/ }, () => ({ path: join(js, "dist/inlined.js") })),
      },
    ],
  });
  for (const left of ["inline.js.map", "inlined.js", "inlined.js.map", "inlined.d.ts", "inlined.d.ts.map"]) rmSync(join(js, "dist", left), { force: true });
  const whole = readFileSync(entry);
  console.log(`inline.js: ${whole.byteLength} bytes raw, ${gzipSync(whole, { level: 9 }).byteLength} bytes gzip, ${brotliCompressSync(whole).byteLength} bytes brotli`);
}

/** Returns a module without the custom section of this name. */
function withoutSection(module, name) {
  const kept = [module.subarray(0, 8)];
  let at = 8;
  const number = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = module[at++];
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < module.length) {
    const start = at;
    const isCustom = module[at++] === 0;
    const end = number() + at;
    const own = isCustom ? module.subarray(at + 1, at + 1 + module[at]).toString() : "";
    if (own !== name) kept.push(module.subarray(start, end));
    at = end;
  }
  return Buffer.concat(kept);
}

/** Returns flags that tell scripts/rustc which features to leave out. They also tell cargo when these change. */
function withoutFeatures() {
  return Object.entries(record.without).flatMap(([crate, features]) =>
    features.map((feature) => `--cfg=without="${crate}/${feature}"`),
  );
}

/** Returns flags that tell scripts/rustc which files to compile in the place of crates. The hashes tell cargo of changes. */
function insteadOfCrates() {
  return Object.entries(record.instead).map(([crate, file]) => {
    const hash = createHash("sha256").update(readFileSync(join(root, file))).digest("hex").slice(0, 16);
    return `--cfg=instead="${crate}=${join(root, file)}#${hash}"`;
  });
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
