// Checks that what is written down twice is the same: the build's record, the error codes and the versions.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { parse } from "smol-toml";
import { errorCodes } from "../dist/errors.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const read = (path) => readFileSync(root + path, "utf8");
const { packages } = JSON.parse(
  execFileSync("cargo", ["metadata", "--format-version=1", "--no-deps", "--locked"], { cwd: root, encoding: "utf8" }),
);
const [crate, wasm] = ["throughline", "throughline-npm"].map((wanted) => packages.find(({ name }) => name === wanted));
const npm = JSON.parse(read("js/package.json"));

test("wasm-pack.toml says what wasm-pack reads in Cargo.toml", () => {
  const record = parse(read("wasm-pack.toml"));
  const { custom } = wasm.metadata["wasm-pack"].profile;
  const dependency = wasm.dependencies.find(({ name }) => name === "throughline");
  assert.deepEqual(custom["wasm-opt"], record["wasm-opt"]);
  assert.equal(custom["wasm-bindgen"]["omit-default-module-path"], record["wasm-bindgen"].includes("--omit-default-module-path"));
  assert.equal(dependency.uses_default_features, record["default-features"]);
  assert.deepEqual(dependency.features, record.features);
  assert.ok(record.budget.brotli <= 375_000);
});

test("the binding generator has the version of wasm-bindgen", () => {
  const version = (lock) => read(lock).match(/name = "wasm-bindgen-shared"\nversion = "(.*)"/)[1];
  assert.equal(version("js/bindgen/Cargo.lock"), version("Cargo.lock"));
  assert.match(read("js/bindgen/Cargo.toml"), new RegExp(`^version = "${version("Cargo.lock")}"`, "m"));
});

test("TypeScript and Rust have the same error codes, in the same order", () => {
  const kinds = read("src/error.rs").match(/\nkinds! \{[^]*?\n\}/)[0];
  assert.deepEqual(
    [...kinds.matchAll(/= "(\w+)"/g)].map(([, code]) => code),
    [...errorCodes],
  );
});

test("TypeScript's own options are those that Rust has otherwise", () => {
  // The others are written from Rust's table, and a test there compares them (src/config/documents.rs).
  const script = read("js/src/config.ts").match(/\nexport interface Config extends Options \{[^]*?\n\}/)[0];
  const own = [...script.matchAll(/readonly (\w+)\?:/g)].map(([, name]) => name);
  assert.deepEqual(own, ["relay", "iceServers", "identity"]);
});

test("TypeScript and Rust have the same strategies, causes and reasons of a change", () => {
  const script = read("js/src/events.ts");
  const union = (name) => [...script.match(new RegExp(`type ${name} =([^;]*);`))[1].matchAll(/"(\w+)"/g)].map(([, n]) => n);
  const rust = read("src/event.rs");
  const causes = rust.match(/\ncauses! \{[^]*?\n\}/)[0];
  assert.deepEqual(union("Cause"), [...causes.matchAll(/= "(\w+)",/g)].map(([, name]) => name));
  const strategies = rust.match(/pub enum Strategy \{[^]*?\n\}/)[0];
  const snake = ([, name]) => name.replace(/(?!^)[A-Z]/g, (c) => `_${c}`).toLowerCase();
  assert.deepEqual(union("Strategy"), [...strategies.matchAll(/\n    ([A-Z]\w+),/g)].map(snake));
  const reasons = rust.match(/pub enum ChangeReason \{[^]*?\n\}/)[0];
  assert.deepEqual(union("ChangeReason"), [...reasons.matchAll(/\n    ([A-Z]\w+),/g)].map(snake));
});

test("the crate and the npm package have one version and one licence", () => {
  assert.equal(npm.version, crate.version);
  assert.equal(npm.license, crate.license);
});

test("one address of the wasm, and no top-level await, in what a page loads", () => {
  const loaded = ["pkg/throughline.js", ...["index", "load", "asset", "connector", "connection"].map((m) => `dist/${m}.js`)];
  const text = loaded.map((path) => read(`js/${path}`)).join("\n");
  assert.equal(text.match(/import\.meta\.url/g)?.length, 1);
  assert.doesNotMatch(text, /^await |^(const|let|export) .*= await /m);
});

test("the inline file is one file, and exports the same", async () => {
  const text = read("js/dist/inline.js");
  assert.doesNotMatch(text, /import\.meta|^import |\bfrom "/m);
  const [inline, plain] = await Promise.all(["inline", "index"].map((name) => import(`../dist/${name}.js`)));
  assert.deepEqual(Object.keys(inline).sort(), Object.keys(plain).sort());
});

test("Node.js finds the same names, which refuse and say what to do", async () => {
  const [node, plain] = await Promise.all(["node", "index"].map((name) => import(`../dist/${name}.js`)));
  assert.deepEqual(Object.keys(node).sort(), Object.keys(plain).sort());
  for (const call of [node.Connector.create, node.generateIdentity, node.load]) {
    await assert.rejects(call, { name: "ThroughlineError", code: "unsupported_platform", message: /`throughline` program/ });
  }
});

test("a package with a part missing is not packed, and says what is missing", () => {
  const packed = mkdtempSync(join(tmpdir(), "throughline-"));
  try {
    for (const part of ["package.json", "scripts", "dist", "pkg", "inline", "wasm", "node_modules"]) {
      cpSync(`${root}js/${part}`, join(packed, part), { recursive: true, filter: (path) => !path.includes("node_modules/") });
    }
    const pack = () => spawnSync("node", ["scripts/packable.mjs"], { cwd: packed, encoding: "utf8" });
    assert.equal(pack().status, 0);
    for (const part of ["dist/streams.js", "dist/connection.d.ts", "pkg/throughline.js", "pkg/throughline_bg.wasm", "inline/package.json", "dist", "pkg"]) {
      rmSync(join(packed, part), { recursive: true });
      const { status, stderr } = pack();
      assert.equal(status, 1, part);
      assert.match(stderr, new RegExp(`npm pack: .*${part}.*make wasm`));
      cpSync(`${root}js/${part}`, join(packed, part), { recursive: true });
    }
  } finally {
    rmSync(packed, { recursive: true });
  }
});
