// Runs before `npm pack` and `npm publish`. A package without its wasm or its compiled TypeScript would
// install, and then fail at the first import.
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const at = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const leaves = (value) => (typeof value === "string" ? [value] : Object.values(value).flatMap(leaves));
const { exports } = JSON.parse(readFileSync(at("package.json"), "utf8"));
const missing = leaves(exports).filter((path) => !existsSync(at(path)));
if (missing.length > 0) {
  console.error(`npm pack: ${missing.join(", ")} is missing; run \`make wasm\` first`);
  process.exit(1);
}
