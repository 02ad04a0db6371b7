// The cost of a page before it has a peer: the bytes, and the time until the first `Connector` exists. It is
// compared with js-libp2p with the same transports, bundled and minified.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { open, root } from "../../tests/browser/harness.mjs";
import { inTurn, table } from "./measure.mjs";

const OURS = "throughline";
const THEIRS = "js-libp2p";

/** Measures starts. `site` is the folder with the bundle. */
export async function start(t, relay, browser, site, rounds) {
  // Each start has its own context, so nothing is in a cache.
  const inPage = (work) => async () => {
    const page = await open(t, browser, `${relay.http}/blank.html`, false);
    const times = await page.evaluate(work);
    await page.context().close();
    return times;
  };
  const results = await inTurn(rounds, {
    [OURS]: inPage(async () => {
      const start = performance.now();
      const { Connector, load } = await import("/npm/dist/index.js");
      await load();
      const loaded = performance.now();
      await Connector.create();
      return { loaded: loaded - start, created: performance.now() - loaded, total: performance.now() - start };
    }),
    [THEIRS]: inPage(async () => {
      const start = performance.now();
      await import("/libp2p.js");
      const loaded = performance.now();
      await node.start({});
      return { loaded: loaded - start, created: performance.now() - loaded, total: performance.now() - start };
    }),
  });
  // This measures the compiler alone, with the bytes already loaded.
  const { compiled } = (
    await inTurn(rounds, {
      wasm: inPage(async () => {
        const bytes = await (await fetch("/npm/pkg/throughline_bg.wasm")).arrayBuffer();
        const start = performance.now();
        await WebAssembly.compile(bytes);
        return { compiled: performance.now() - start };
      }),
    })
  ).wasm;
  results[OURS].compiled = compiled;

  const times = table(results, THEIRS, {
    loaded: { heading: "fetched, compiled, instantiated, ms", digits: 1 },
    compiled: { heading: "of which compiling alone, ms", digits: 1 },
    created: { heading: "first peer created, ms", digits: 1 },
    total: { heading: "in all, ms", digits: 1 },
  });
  return `${sizes(site)}\n\n${times}`;
}

function sizes(site) {
  const files = (folder, suffix) => readdirSync(folder).filter((name) => name.endsWith(suffix)).map((name) => join(folder, name));
  const rows = {
    "throughline, wasm": [`${root}js/pkg/throughline_bg.wasm`],
    "throughline, wasm and scripts": [`${root}js/pkg/throughline_bg.wasm`, `${root}js/pkg/throughline.js`, ...files(`${root}js/dist`, ".js").filter((file) => !file.endsWith("inline.js"))],
    "js-libp2p, minified bundle": [join(site, "libp2p.js")],
  };
  const lines = Object.entries(rows).map(([name, paths]) => {
    const contents = paths.map((path) => readFileSync(path));
    const sum = (form) => contents.reduce((sum, bytes) => sum + form(bytes).byteLength, 0);
    return `| ${name} | ${[(bytes) => bytes, (bytes) => gzipSync(bytes, { level: 9 }), brotliCompressSync].map(sum).join(" | ")} |`;
  });
  return ["| | bytes | gzip | brotli |", "| --- | ---: | ---: | ---: |", ...lines].join("\n");
}
