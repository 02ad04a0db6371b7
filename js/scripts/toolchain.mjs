// The environment in which wasm32 is compiled. The tools that scripts/setup put into the cache come first
// on the PATH. As a program, it runs its arguments in this environment:
//   node js/scripts/toolchain.mjs cargo clippy --target wasm32-unknown-unknown
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

const js = fileURLToPath(new URL("..", import.meta.url));

export function environment() {
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "throughline");
  const path = [join(cache, "bin"), join(js, "node_modules/.bin")];
  if (!rustupHasTarget()) path.unshift(join(cache, "wasm-toolchain/bin"));
  return { ...process.env, PATH: [...path, process.env.PATH].join(delimiter) };
}

function rustupHasTarget() {
  if (process.env.THROUGHLINE_STD === "debian") return false;
  const ask = (...query) => execFileSync("rustc", query, { encoding: "utf8" }).trim();
  const library = ask("--print", "target-libdir", "--target", "wasm32-unknown-unknown");
  return existsSync(library) && existsSync(join(ask("--print", "sysroot"), "lib/rustlib/src/rust/library"));
}

export function run(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", env: environment(), ...options });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [command, ...args] = process.argv.slice(2);
  run(command, args);
}
