// Drives Chromium on hosts of the lab. It reads one JSON command per line on stdin, and writes one JSON
// reply per line on stdout.
//
//   {"id":1,"op":"launch","browser":"a","executable":"/path/of/wrapper","http":"http://11.1.0.2:444"}
//   {"id":2,"op":"listen","browser":"a","options":{..}}                 -> {"ticket":"..","peerId":".."}
//   {"id":3,"op":"connect","browser":"b","options":{..},"ticket":"..","waitDirectMs":5000,"restMs":0} -> {"events":[..]}
//   With "stock":true among the options, the page has js-libp2p instead of our package.
//   {"id":4,"op":"converse","browser":"b","options":{..},"ticket":".."}   {"event":"pong",..} and other events, again and again
//   {"id":5,"op":"close","browser":"a"}                                 closes its peer and keeps the browser
//
// The argument is the folder whose node_modules has playwright-core.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import * as page from "./page.mjs";
import * as stockPage from "./stock_page.mjs";

const { chromium } = createRequire(path.join(path.resolve(process.argv[2]), "package.json"))("playwright-core");
const browsers = new Map();

async function launch({ browser, executable, http }) {
  const instance = await chromium.launch({
    executablePath: executable,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      // The lab has no names, and so no certificates. The page is trusted as if it were on localhost.
      `--unsafely-treat-insecure-origin-as-secure=${http}`,
    ],
  });
  const tab = await instance.newPage();
  tab.on("console", (message) => console.error(`[${browser}] ${message.text()}`));
  tab.on("pageerror", (error) => console.error(`[${browser}] ${error}`));
  // This is an empty page of the server's origin. The demo page would start its own peer.
  await tab.route(`${http}/lab`, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  await tab.exposeFunction("report", (event) => console.log(JSON.stringify(event)));
  await tab.goto(`${http}/lab`);
  await tab.evaluate(() => import("/npm/dist/index.js").then((m) => m.load()));
  browsers.set(browser, { instance, tab, http });
  return { version: instance.version() };
}

function find(browser) {
  const entry = browsers.get(browser);
  if (!entry) throw new Error(`no browser ${browser}`);
  return entry;
}

const run = (name) => ({ browser, ...argument }) =>
  argument.options?.stock ? runStock(name, browser, argument) : find(browser).tab.evaluate(page[name], argument);

// Bundles js-libp2p in one file, when it is first needed.
let bundled;
async function bundle() {
  const { bundle } = await import("../../interop/bundle.mjs");
  const folder = await mkdtemp(path.join(tmpdir(), "throughline-"));
  await bundle(folder);
  return folder;
}

/** Runs in its own page, because the bundle's node cannot be stopped. */
async function runStock(name, browser, argument) {
  const entry = find(browser);
  const folder = await (bundled ??= bundle());
  await entry.stock?.close();
  entry.stock = await entry.instance.newPage();
  await entry.stock.route(`${entry.http}/lab`, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  await entry.stock.goto(`${entry.http}/lab`);
  await entry.stock.addScriptTag({ path: path.join(folder, "libp2p.js"), type: "module" });
  await entry.stock.waitForFunction(() => "node" in window);
  return entry.stock.evaluate(stockPage[name], argument);
}

async function close({ browser }) {
  const entry = find(browser);
  await entry.stock?.close();
  entry.stock = undefined;
  return entry.tab.evaluate(page.close);
}

const operations = {
  launch,
  listen: run("listen"),
  connect: run("connect"),
  converse: run("converse"),
  send: run("send"),
  close,
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, op, ...argument } = JSON.parse(line);
  Promise.resolve()
    .then(() => operations[op](argument))
    .then(
      (result) => ({ event: "reply", id, result: result ?? null }),
      (error) => ({ event: "reply", id, error: String(error?.message ?? error) }),
    )
    .then((reply) => console.log(JSON.stringify(reply)));
}
await Promise.all([...browsers.values()].map(({ instance }) => instance.close()));
if (bundled) await rm(await bundled, { recursive: true, force: true });
process.exit(0);
