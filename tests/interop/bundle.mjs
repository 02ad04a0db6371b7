// Bundles the js-libp2p page. js-libp2p is written for bundlers. Our own package needs none.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

export async function bundle(folder, options = {}) {
  await build({
    entryPoints: [fileURLToPath(new URL("page.js", import.meta.url))],
    outfile: join(folder, "libp2p.js"),
    bundle: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    define: { "process.env.NODE_DEBUG": "undefined", global: "globalThis" },
    logLevel: "warning",
    ...options,
  });
  const page = (script) => `<!doctype html><meta charset="utf-8"><title>interop</title><link rel="icon" href="data:,"><script type="module">${script}</script>`;
  await writeFile(join(folder, "libp2p.html"), page('import "./libp2p.js"'));
}
