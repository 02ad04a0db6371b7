// What is written down twice is the same: the build's record, the error codes, the versions.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { parse } from "smol-toml";
import { snakeCased } from "../dist/casing.js";
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
  assert.equal(custom["wasm-bindgen"]["omit-default-module-path"], record["omit-default-module-path"]);
  assert.equal(dependency.uses_default_features, record["default-features"]);
  assert.deepEqual(dependency.features, record.features);
  assert.ok(record.budget.brotli <= 350_000);
});

test("TypeScript and Rust have the same error codes, in the same order", () => {
  const kinds = read("src/error.rs").match(/\nkinds! \{[^]*?\n\}/)[0];
  assert.deepEqual(
    [...kinds.matchAll(/= "(\w+)"/g)].map(([, code]) => code),
    [...errorCodes],
  );
});

test("TypeScript and Rust have the same options", () => {
  const struct = read("src/config.rs").match(/\npub struct Config \{[^]*?\n\}/)[0];
  const field = /(?:#\[serde\(\s*(?:rename = "(\w+)")?[^\]]*\)\]\s*)?pub (\w+):/g;
  const rust = [...struct.matchAll(field)].map(([, renamed, name]) => renamed ?? name);
  const script = read("js/src/config.ts").match(/\nexport interface Config \{[^]*?\n\}/)[0];
  const typescript = [...script.matchAll(/readonly (\w+)\?:/g)].map(([, name]) => name);
  // RTCPeerConnection's form of server lists, the identity beside the configuration; pages have no sockets.
  const differ = { iceServers: ["stun", "turn"], identity: [] };
  const native = ["listen", "autonatRetryMs", "mdns", "birthday", "birthdaySockets", "birthdayProbes", "birthdayRate", "turnCa"];
  const names = [...typescript.flatMap((name) => differ[name] ?? [name]), ...native];
  const crossing = Object.keys(snakeCased(Object.fromEntries(names.map((name) => [name, true]))));
  assert.deepEqual(crossing.sort(), rust.sort());
});

test("TypeScript and Rust have the same strategies and causes", () => {
  const script = read("js/src/events.ts");
  const union = (name) => [...script.match(new RegExp(`type ${name} =([^;]*);`))[1].matchAll(/"(\w+)"/g)].map(([, n]) => n);
  const rust = read("src/event.rs");
  const causes = rust.match(/\ncauses! \{[^]*?\n\}/)[0];
  assert.deepEqual(union("Cause"), [...causes.matchAll(/= "(\w+)",/g)].map(([, name]) => name));
  const strategies = rust.match(/pub enum Strategy \{[^]*?\n\}/)[0];
  const snake = ([, name]) => name.replace(/(?!^)[A-Z]/g, (c) => `_${c}`).toLowerCase();
  assert.deepEqual(union("Strategy"), [...strategies.matchAll(/\n    ([A-Z]\w+),/g)].map(snake));
});

test("the crate and the npm package have one version and one licence", () => {
  assert.equal(npm.version, crate.version);
  assert.equal(npm.license, crate.license);
});

test("one address of the wasm, and no top-level await, in what a page loads", () => {
  const loaded = ["pkg/throughline.js", ...["index", "load", "connector", "connection"].map((m) => `dist/${m}.js`)];
  const text = loaded.map((path) => read(`js/${path}`)).join("\n");
  assert.equal(text.match(/new URL\(/g)?.length, 1);
  assert.doesNotMatch(text, /^await |^(const|let|export) .*= await /m);
});
