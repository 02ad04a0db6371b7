// Measures the package in Chromium and prints Markdown: `node benches/browser/main.mjs`, where
// THROUGHLINE names the program (a release build, for figures).
//
//   --rounds N       how often data channels are measured, 3 if left out
//   --starts N       how often the start is, 15 if left out
//   --markdown FILE  writes it there, too
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

/** What the harness of the tests wants to have in place of a test. */
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
  // Addresses instead of mDNS names, which would add their resolution.
  const [relay, browser] = await Promise.all([serve(t, site), launch(t, "--disable-features=WebRtcHideLocalIpsWithMdns")]);
  const started = await start(t, relay, browser, site, Number(values.starts));
  const carried = await channels(t, relay, browser, Number(values.rounds));
  const text = `### Data channels

${carried}

Median (worst) of ${values.rounds}, and how many times the first row's.

### Start of a page

${started}

Median (worst) of ${values.starts}, each in a new browser context, from loopback; how many times faster or slower than js-libp2p.

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
