// Drives Chromium on hosts of the lab: one JSON command a line on stdin, one JSON reply a line on stdout.
//
//   {"id":1,"op":"launch","browser":"a","executable":"/path/of/wrapper","http":"http://11.1.0.2:444"}
//   {"id":2,"op":"listen","browser":"a","options":{..}}                 -> {"ticket":"..","peerId":".."}
//   {"id":3,"op":"connect","browser":"b","options":{..},"ticket":"..","waitDirectMs":5000} -> {"events":[..]}
//   {"id":4,"op":"close","browser":"a"}                                 closes its peer, keeps the browser
//
// Arguments: the folder whose node_modules has playwright-core.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import path from "node:path";
import * as page from "./page.mjs";

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
      // The lab has no names and so no certificates; the page is trusted as localhost would be.
      `--unsafely-treat-insecure-origin-as-secure=${http}`,
    ],
  });
  const tab = await instance.newPage();
  tab.on("console", (message) => console.error(`[${browser}] ${message.text()}`));
  tab.on("pageerror", (error) => console.error(`[${browser}] ${error}`));
  // An empty page of the server's origin: the demo page would start a peer of its own.
  await tab.route(`${http}/lab`, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  await tab.goto(`${http}/lab`);
  await tab.evaluate(() => import("/npm/dist/index.js").then((m) => m.load()));
  browsers.set(browser, { instance, tab });
  return { version: instance.version() };
}

const run = (name) => ({ browser, ...argument }) => {
  const entry = browsers.get(browser);
  if (!entry) throw new Error(`no browser ${browser}`);
  return entry.tab.evaluate(page[name], argument);
};

const operations = {
  launch,
  listen: run("listen"),
  connect: run("connect"),
  send: run("send"),
  close: run("close"),
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
process.exit(0);
