// Tests the packed package in fresh projects of the tools that people use. Each makes its production build, and a
// page of it connects to a peer in Chromium. The tools are those of this folder's package.json.
import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { environment as toolchain } from "../../js/scripts/toolchain.mjs";
import { launch, listen, root, serve } from "../browser/harness.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const limit = { timeout: 240_000 };
const environment = { ...process.env, NODE_ENV: "production", NEXT_TELEMETRY_DISABLED: "1" };
const require = createRequire(import.meta.url);
let folder, tarball, started;

/** What the tests share ends after the last test. */
const ends = [];
const whole = { after: (end) => ends.unshift(end) };

before(async () => {
  // The projects are below the tools, because Turbopack follows no link out of its root.
  folder = mkdtempSync(join(here, "made-"));
  ends.push(() => rmSync(folder, { recursive: true, force: true }));
  const [packed] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", folder], { cwd: `${root}js`, encoding: "utf8" }));
  tarball = { path: join(folder, packed.filename), files: packed.files.map(({ path }) => path) };
});

/** Starts the browser, a relay, and the peer that is to be greeted, at the first call. */
function world() {
  return (started ??= (async () => {
    const relay = await serve(whole);
    return { relay, peer: await listen(whole, relay, "--echo"), browser: await launch(whole) };
  })());
}

after(async () => {
  for (const end of ends) await end();
});

/** Makes a project with the packed package and the files of a folder, in which `edits` replaces parts. */
function project(name, source, edits = []) {
  const made = join(folder, name);
  const installed = join(made, "node_modules/throughline");
  mkdirSync(installed, { recursive: true });
  execFileSync("tar", ["-xzf", tarball.path, "-C", installed, "--strip-components=1"]);
  cpSync(join(here, source), made, { recursive: true });
  writeFileSync(join(made, "package.json"), JSON.stringify({ name, private: true, type: "module", dependencies: { throughline: "*" } }));
  for (const [file, from, to] of edits) {
    const text = readFileSync(join(made, file), "utf8");
    assert.ok(text.includes(from), `${file} has ${from}`);
    writeFileSync(join(made, file), text.replaceAll(from, to));
  }
  return made;
}

const inline = ["greet.js", '"throughline"', '"throughline/inline"'];

/** Runs a tool of this folder in a project. */
async function run(cwd, tool, ...args) {
  const program = tool === "node" ? process.execPath : join(here, "node_modules/.bin", tool);
  const { stdout, stderr } = await promisify(execFile)(program, args, { cwd, env: environment, maxBuffer: 1 << 26 });
  return stdout + stderr;
}

const types = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm", ".css": "text/css" };

/** Serves a folder, as a server for files does. */
async function files(t, folder) {
  const server = createServer((request, response) => {
    const path = join(folder, decodeURIComponent(new URL(request.url, "http://h").pathname));
    const file = existsSync(path) && statSync(path).isDirectory() ? join(path, "index.html") : path;
    if (!existsSync(file)) return response.writeHead(404).end();
    response.setHeader("content-type", types[extname(file)] ?? "application/octet-stream").end(readFileSync(file));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  return `http://127.0.0.1:${server.address().port}/`;
}

async function open(t, url) {
  const { browser } = await world();
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  for (const event of ["pageerror", "console"]) page.on(event, (said) => t.diagnostic(said.message ?? said.text()));
  await page.goto(url);
  return page;
}

/** Opens a page that greets the peer, and returns its title: the answer or the error. */
async function title(t, url) {
  const { relay, peer } = await world();
  const page = await open(t, `${url}#${new URLSearchParams({ relay: relay.relay, ticket: peer.ticket })}`);
  await page.waitForFunction(() => document.title !== "waiting", null, { timeout: 60_000 }).catch(() => {});
  return page.title();
}

async function greets(t, url) {
  assert.equal(await title(t, url), "hello");
}

test("the tarball has what it exports, and nothing of the build", limit, () => {
  const wanted = ["dist/index.js", "dist/inline.js", "dist/inline.d.ts", "inline/package.json", "dist/mesh.d.ts", "mesh/package.json", "dist/bridge.js", "dist/bridge.d.ts", "bridge/package.json", "dist/tabs.js", "dist/tabs.d.ts", "tabs/package.json", "wasm/index.d.ts", "pkg/throughline_bg.wasm"];
  for (const path of wanted) assert.ok(tarball.files.includes(path), path);
  const strange = tarball.files.filter((path) => !/^(dist|pkg|src|inline|mesh|bridge|tabs|wasm)\/[\w.-]+\.(js|ts|wasm|map|json)$|^(package\.json|README\.md|LICENSE-\w+)$/.test(path));
  assert.deepEqual(strange, []);
  assert.deepEqual(tarball.files.filter((path) => /(^|\/)\.|\.br$/.test(path)), []);
});

for (const [version, name] of [["vite", "the newest"], ["vite-7", "the one before"]]) {
  const vite = () => import(join(here, "node_modules", version, "dist/node/index.js"));
  test(`Vite, ${name}: a build`, limit, async (t) => {
    const made = project(`${version}-build`, "app");
    await (await vite()).build({ root: made, logLevel: "warn", build: { target: "es2022" } });
    await greets(t, await files(t, join(made, "dist")));
  });
  // The optimizer of Vite 7 moves modules away from the wasm.
  const excluded = { optimizeDeps: { exclude: ["throughline"] } };
  for (const config of version === "vite" ? [{}] : [excluded, {}]) {
    const needs = version !== "vite" && config !== excluded;
    test(`Vite, ${name}: the development server${needs ? ", where the error names the option" : ""}`, limit, async (t) => {
      const made = project(`${version}-dev${needs ? "-plain" : ""}`, "app");
      const server = await (await vite()).createServer({
        root: made,
        logLevel: "warn",
        cacheDir: join(made, ".vite"),
        server: { port: 0, host: "127.0.0.1", fs: { strict: false } },
        ...config,
      });
      t.after(() => server.close());
      await server.listen();
      const [url] = server.resolvedUrls.local;
      if (needs) assert.match(await title(t, url), /^io: .*HTML page.*optimizeDeps: \{ exclude: \["throughline"\] \}/);
      else await greets(t, url);
    });
  }
}

test("Vite with React: a build", limit, async (t) => {
  const made = project("vite-react", "app", [["index.html", "main.js", "react.jsx"]]);
  const { build } = await import("vite");
  await build({ root: made, logLevel: "warn" });
  await greets(t, await files(t, join(made, "dist")));
});

test("webpack", limit, async (t) => {
  const made = project("webpack", "app");
  const webpack = require("webpack");
  const stats = await promisify(webpack)({ context: made, mode: "production", entry: "./main.js", output: { path: join(made, "dist") } });
  assert.deepEqual(stats.toJson({ errors: true, warnings: true }).errors, []);
  cpSync(join(made, "index.html"), join(made, "dist/index.html"));
  await greets(t, await files(t, join(made, "dist")));
});

for (const [bundler, ...more] of [["Turbopack"], ["webpack", "--webpack"]]) {
  test(`Next with ${bundler}: a server component, a client component, and an export`, limit, async (t) => {
    const made = project(`next-${bundler}`, "next");
    cpSync(join(here, "app/greet.js"), join(made, "app/greet.js"));
    await run(made, "next", "build", ...more);
    await greets(t, await files(t, join(made, "out")));
  });
}

test("esbuild, inline", limit, async (t) => {
  const made = project("esbuild", "app", [inline]);
  await run(made, "esbuild", "main.js", "--bundle", "--format=esm", "--minify", "--outfile=dist/main.js");
  cpSync(join(made, "index.html"), join(made, "dist/index.html"));
  await greets(t, await files(t, join(made, "dist")));
});

test("esbuild without the inline file: the error names the missing file and the remedy", limit, async (t) => {
  const made = project("esbuild-plain", "app");
  await run(made, "esbuild", "main.js", "--bundle", "--format=esm", "--outfile=dist/main.js");
  cpSync(join(made, "index.html"), join(made, "dist/index.html"));
  assert.match(await title(t, await files(t, join(made, "dist"))), /^io: .*throughline_bg\.wasm \(status 404\).*throughline\/inline/);
});

test("esbuild with the address of its own copy", limit, async (t) => {
  const made = project("esbuild-file", "app", [
    ["greet.js", 'import { Connector } from "throughline";', 'import { Connector } from "throughline";\nimport wasm from "throughline/wasm";'],
    ["greet.js", "create({", "create({ wasm,"],
  ]);
  await run(made, "esbuild", "main.js", "--bundle", "--format=esm", "--loader:.wasm=file", "--public-path=/", "--outfile=dist/main.js");
  cpSync(join(made, "index.html"), join(made, "dist/index.html"));
  await greets(t, await files(t, join(made, "dist")));
});

test("Rollup, inline", limit, async (t) => {
  const made = project("rollup", "app", [inline]);
  await run(made, "rollup", "main.js", "--dir", "dist", "--plugin", join(here, "node_modules/@rollup/plugin-node-resolve/dist/es/index.js"));
  cpSync(join(made, "index.html"), join(made, "dist/index.html"));
  await greets(t, await files(t, join(made, "dist")));
});

for (const [name, ...edits] of [["Parcel"], ["Parcel, inline", inline]]) {
  test(name, limit, async (t) => {
    const made = project(name.replace(", ", "-"), "app", edits);
    await run(made, "parcel", "build", "index.html", "--no-cache", "--cache-dir", ".cache", "--public-url", "/");
    await greets(t, await files(t, join(made, "dist")));
  });
}

for (const file of ["index", "inline"]) {
  test(`no bundler: a module and an import map, ${file}`, limit, async (t) => {
    const map = `<script type="importmap">{ "imports": { "throughline": "/node_modules/throughline/dist/${file}.js" } }</script>`;
    const made = project(`map-${file}`, "app", [["index.html", "<script type", `${map}\n  <script type`]]);
    await greets(t, await files(t, made));
  });
}

test("Node.js: import and require work, and a use says what to run", limit, async () => {
  const made = project("node", "app");
  const used = 'Connector.create().catch(({ code, message }) => console.log(code, message))';
  for (const entry of ["throughline", "throughline/inline"]) {
    for (const program of [`import { Connector } from "${entry}"; ${used}`, `const { Connector } = require("${entry}"); ${used}`]) {
      const type = program.startsWith("import") ? "module" : "commonjs";
      assert.match(await run(made, "node", `--input-type=${type}`, "--eval", program), /^unsupported_platform .*`throughline` program/);
    }
  }
});

// `make packages` has compiled it.
test("Rust with Yew: the page of examples/yew", limit, async (t) => {
  const made = join(folder, "yew");
  const target = process.env.CARGO_TARGET_DIR ?? `${root}examples/yew/target`;
  mkdirSync(made);
  cpSync(`${root}examples/yew/index.html`, join(made, "index.html"));
  execFileSync("wasm-bindgen", ["--target", "web", "--out-dir", join(made, "pkg"), join(target, "wasm32-unknown-unknown/debug/throughline-yew.wasm")], { env: toolchain() });
  const { peer } = await world();
  const page = await open(t, `${await files(t, made)}#${peer.ticket}`);
  await page.getByLabel("Text").fill("hello from Rust");
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByText("hello from Rust", { exact: true }).waitFor();
  await page.locator("#path", { hasText: "direct" }).waitFor();
});

test("vitest with jsdom", limit, async () => {
  const made = project("vitest", "vitest");
  assert.match(await run(made, "vitest", "run", "--environment", "jsdom"), /1 passed/);
});

test("TypeScript checks the types of every entry, with the library of ES2022", limit, async () => {
  const made = project("types", "types");
  const newest = `${root}js/node_modules/typescript/bin/tsc`;
  const oldest = join(here, "node_modules/typescript/bin/tsc");
  for (const [tsc, module, resolution] of [
    [newest, "esnext", "bundler"],
    [newest, "nodenext", "nodenext"],
    [oldest, "esnext", "bundler"],
    [oldest, "nodenext", "nodenext"],
    [oldest, "esnext", "node10"],
  ]) {
    const options = { module, moduleResolution: resolution, target: "es2022", lib: ["es2022", "dom"], types: [], strict: true, noEmit: true };
    writeFileSync(join(made, "tsconfig.json"), JSON.stringify({ compilerOptions: options, include: ["*.ts"] }));
    await run(made, "node", tsc).catch((error) => assert.fail(`${resolution}: ${error.stdout}`));
  }
});

test("TypeScript checks the JavaScript of every document", limit, async () => {
  const made = project("documents", "types");
  rmSync(join(made, "use.ts"));
  const documents = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"], { cwd: root, encoding: "utf8" }).trim().split("\n");
  let blocks = 0;
  for (const document of documents) {
    for (const [, type, text] of readFileSync(root + document, "utf8").matchAll(/^```(jsx?)\n([^]*?)^```/gm)) {
      // Each block is a module. A name that it does not define is one of globals.d.ts.
      writeFileSync(join(made, `${document.replaceAll("/", "-")}-${++blocks}.${type}`), `${text}\nexport {};\n`);
    }
  }
  assert.ok(blocks > 10, `${blocks} blocks`);
  const globals = ["const me: import('throughline').Connector", "const ticket: string"];
  writeFileSync(join(made, "globals.d.ts"), globals.map((name) => `declare ${name};\n`).join(""));
  const options = {
    module: "esnext", moduleResolution: "bundler", target: "es2022", lib: ["es2022", "dom", "dom.iterable", "dom.asynciterable"],
    types: ["node"], allowJs: true, checkJs: true, jsx: "react-jsx", noEmit: true, skipLibCheck: true,
  };
  writeFileSync(join(made, "tsconfig.json"), JSON.stringify({ compilerOptions: options, include: ["*"] }));
  await run(made, "tsc").catch((error) => assert.fail(error.stdout));
});
