// Runs before `npm pack` and `npm publish`. A package without its wasm or its compiled TypeScript would
// install, and then fail at the first import.
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const js = fileURLToPath(new URL("..", import.meta.url));
const leaves = (value) => (typeof value === "string" ? [value] : Object.values(value).flatMap(leaves));
const { exports, main, types } = JSON.parse(readFileSync(join(js, "package.json"), "utf8"));
// Tools that do not read `exports` find the other entries by these.
const folders = ["inline/package.json", "wasm/package.json"];

// Everything that is exported, and what that imports.
const files = new Set(leaves([exports, main, types, folders]).map((path) => join(js, path)));
const missing = [];
for (const file of files) {
  if (!existsSync(file)) missing.push(file.slice(js.length));
  else if (/\.(js|d\.ts)$/.test(file)) {
    // The type of a module is beside it.
    const name = (path) => (file.endsWith(".d.ts") ? path.replace(/\.js$/, ".d.ts") : path);
    for (const [, path] of readFileSync(file, "utf8").matchAll(/(?:from|new URL\() ?"(\.[^"]+)"/g)) files.add(join(dirname(file), name(path)));
  }
}
if (missing.length > 0) {
  console.error(`npm pack: ${missing.join(", ")} ${missing.length > 1 ? "are" : "is"} missing; run \`make wasm\` first`);
  process.exit(1);
}
