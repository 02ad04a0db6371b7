// Compresses the demo page and what it loads of the npm package into ../page. The crate's feature `demo` puts
// that into the program. All browsers take gzip, also over http.
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const root = fileURLToPath(new URL("../..", import.meta.url));
const page = join(root, "page");

/** Returns the files below a folder. */
function files(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? files(path) : [path];
  });
}

rmSync(page, { recursive: true, force: true });
let total = 0;
for (const [folder, prefix] of [["www", ""], ["js/dist", "npm/dist"], ["js/pkg", "npm/pkg"]]) {
  for (const path of files(join(root, folder)).filter((path) => /\.(html|js|css|svg|wasm)$/.test(path))) {
    const target = join(page, prefix, `${path.slice(join(root, folder).length + 1)}.gz`);
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, gzipSync(readFileSync(path), { level: 9 }));
    total += statSync(target).size;
  }
}
console.log(`page: ${total} bytes, compressed`);
