// Checks that what is written down twice is the same: the build's record, the error codes and the versions.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
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
  assert.equal(custom["wasm-bindgen"]["omit-default-module-path"], record["omit-default-module-path"]);
  assert.equal(dependency.uses_default_features, record["default-features"]);
  assert.deepEqual(dependency.features, record.features);
  assert.ok(record.budget.brotli <= 375_000);
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
  assert.deepEqual(own, ["iceServers", "identity"]);
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
  const loaded = ["pkg/throughline.js", ...["index", "load", "connector", "connection"].map((m) => `dist/${m}.js`)];
  const text = loaded.map((path) => read(`js/${path}`)).join("\n");
  assert.equal(text.match(/new URL\(/g)?.length, 1);
  assert.doesNotMatch(text, /^await |^(const|let|export) .*= await /m);
});
