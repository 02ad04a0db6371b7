// Tests a WebAssembly that does not load: the error says which address, which status, and why. Also tests the
// file that holds the WebAssembly itself.
import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";
import { chromiumTest, launch, root } from "./harness.mjs";

const limit = { timeout: 60_000 };
const types = { js: "text/javascript", wasm: "application/wasm" };
const page = "<!doctype html><title>fallback</title>";

/** Serves the package. `wasm` answers requests for the WebAssembly, and `policy` is the page's. */
async function site(t, { wasm, policy } = {}) {
  const server = createServer((request, response) => {
    const path = request.url.slice(1);
    const file = `${root}js/${path}`;
    if (path === "") {
      if (policy) response.setHeader("content-security-policy", policy);
      return response.setHeader("content-type", "text/html").end(page);
    }
    if (path.endsWith(".wasm") && wasm) return wasm(response);
    if (!existsSync(file)) return response.writeHead(404).end();
    response.setHeader("content-type", types[path.split(".").at(-1)]).end(readFileSync(file));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  return `http://127.0.0.1:${server.address().port}/`;
}

/** Loads the package in a page of `url`, and resolves with what the error says. */
async function outcome(t, url, { entry = "index", source, times = 1 } = {}) {
  const tab = await (await launch(t)).newPage();
  await tab.goto(url);
  return tab.evaluate(
    async ([entry, source, times]) => {
      const { load, generateIdentity } = await import(`/dist/${entry}.js`);
      try {
        for (let time = 1; time < times; time++) await load(source).catch(() => {});
        await load(source);
        return { identity: await generateIdentity() };
      } catch ({ name, code, message, load, cause }) {
        return { name, code, message, load, cause: String(cause) };
      }
    },
    [entry, source, times],
  );
}

const cases = [
  ["a missing file", { wasm: (r) => r.writeHead(404).end() }, { reason: "status", status: 404 }, /404.*throughline\/inline/s],
  ["a server's page", { wasm: (r) => r.writeHead(200, { "content-type": "text/html" }).end(page) }, { reason: "page", status: 200, contentType: "text/html" }, /HTML page.*optimizeDeps/s],
  ["other bytes", { wasm: (r) => r.writeHead(200, { "content-type": "application/octet-stream" }).end("version https") }, { reason: "not_wasm", status: 200, contentType: "application/octet-stream" }, /no WebAssembly/],
  ["a broken file", { wasm: (r) => r.writeHead(200, { "content-type": "application/wasm" }).end("\0asm\x01\0\0\0\x01") }, { reason: "invalid", status: 200, contentType: "application/wasm" }, /could not compile/],
  ["no answer", { wasm: (r) => r.destroy() }, { reason: "network" }, /nothing answered/],
  ["a policy against the address", { policy: "connect-src 'none'" }, { reason: "content_security_policy" }, /connect-src/],
  ["a policy against WebAssembly", { policy: "script-src 'self'" }, { reason: "content_security_policy", status: 200, contentType: "application/wasm" }, /wasm-unsafe-eval/],
];
for (const [name, served, expected, message] of cases) {
  // The driver of Firefox calls `eval`, which a policy against scripts forbids.
  const ours = served.policy?.includes("script-src") ? chromiumTest : test;
  ours(`a WebAssembly that does not load: ${name}`, limit, async (t) => {
    const url = await site(t, served);
    const error = await outcome(t, url);
    assert.deepEqual([error.name, error.code], ["ThroughlineError", "io"], JSON.stringify(error));
    assert.deepEqual(error.load, { url: `${url}pkg/throughline_bg.wasm`, ...expected });
    assert.match(error.message, message);
    assert.ok(error.message.includes(`${url}pkg/throughline_bg.wasm`), error.message);
    assert.notEqual(error.cause, "undefined");
  });
}

test("a later try may succeed, also with a type that is not that of WebAssembly", limit, async (t) => {
  let asked = 0;
  const bytes = readFileSync(`${root}js/pkg/throughline_bg.wasm`);
  const wasm = (response) => (++asked === 1 ? response.writeHead(503).end() : response.end(bytes));
  assert.equal(typeof (await outcome(t, await site(t, { wasm }), { times: 2 })).identity, "string");
  assert.equal(asked, 2);
});

chromiumTest("the inline file fetches nothing, and a strict policy lets it run", limit, async (t) => {
  let asked = 0;
  const policy = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'";
  const url = await site(t, { policy, wasm: (response) => (asked++, response.writeHead(404).end()) });
  assert.equal(typeof (await outcome(t, url, { entry: "inline" })).identity, "string");
  assert.equal(asked, 0);
});
