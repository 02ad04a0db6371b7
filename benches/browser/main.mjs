// Measures the package in Chromium and prints Markdown: `node benches/browser/main.mjs`. THROUGHLINE
// names the program, which should be a release build for figures.
//
//   --rounds N       how often data channels are measured; defaults to 3
//   --starts N       how often the start is measured; defaults to 15
//   --markdown FILE  also writes the result to this file
import { copyFileSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { launch, root, serve, temporary } from "../../tests/browser/harness.mjs";
import { bundle } from "../../tests/interop/bundle.mjs";
import { channels } from "./channels.mjs";
import { load } from "./measure.mjs";
import { start } from "./start.mjs";

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "3" }, starts: { type: "string", default: "15" }, markdown: { type: "string" } },
});

/** Stands for a test, which the harness of the tests expects. */
const ends = [];
const t = { after: (end) => ends.unshift(end), diagnostic: (text) => console.error(text) };

try {
  const before = load();
  const site = temporary(t);
  await bundle(site, { minify: true });
  for (const folder of [`${root}tests/browser/site`, `${root}benches/browser/site`]) {
    for (const file of readdirSync(folder)) copyFileSync(join(folder, file), join(site, file));
  }
  writeFileSync(join(site, "blank.html"), '<!doctype html><link rel="icon" href="data:,">');
  // All pages come from one address, several at once, and each loads some fifty files.
  const config = join(temporary(t), "serve.toml");
  writeFileSync(config, "[connections]\nshare_per_address = 50\n[http]\nrequests_per_source = 500\n");
  // Pages show their addresses instead of mDNS names, which would have to be resolved.
  const [relay, browser] = await Promise.all([serve(t, site, "--config", config), launch(t, "--disable-features=WebRtcHideLocalIpsWithMdns")]);
  const started = await start(t, relay, browser, site, Number(values.starts));
  const carried = await channels(t, relay, browser, Number(values.rounds));
  const text = `### Data channels

${carried}

Each cell has the median of ${values.rounds}, the worst in brackets, and how many times better than the first row it is.

### Start of a page

${started}

Each cell has the median of ${values.starts}, the worst in brackets, and how many times faster than js-libp2p it is. Each start has a new browser context and loads from loopback.

Chromium ${browser.version()}, Node.js ${process.versions.node}. Load averages ${before} before, ${load()} after.
`;
  console.log(text);
  if (values.markdown) {
    mkdirSync(dirname(values.markdown), { recursive: true });
    writeFileSync(values.markdown, text);
  }
} finally {
  for (const end of ends) await end();
}
