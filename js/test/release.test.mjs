// Tests what a release refuses: a tree with changes, and a version that the changelog does not name.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

test("only a clean tree whose version the changelog names is released", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "throughline-"));
  t.after(() => rmSync(folder, { recursive: true }));
  for (const path of ["Cargo.toml", "CHANGELOG.md", "js/package.json", "scripts/release"]) {
    mkdirSync(join(folder, path, ".."), { recursive: true });
    cpSync(root + path, join(folder, path));
  }
  const git = (...args) => execFileSync("git", ["-c", "user.name=t", "-c", "user.email=t@t", ...args], { cwd: folder });
  const check = () => spawnSync("scripts/release", ["--check"], { cwd: folder, encoding: "utf8" });
  const change = (path, from, to) => writeFileSync(join(folder, path), readFileSync(join(folder, path), "utf8").replace(from, to));
  const commit = () => (git("add", "-A"), git("commit", "-qm", "x"));
  git("init", "-q");
  const { version } = JSON.parse(readFileSync(join(folder, "js/package.json"), "utf8"));
  change("CHANGELOG.md", /^## \[\d/gm, "## [was ");
  assert.match(check().stderr, /not committed/);
  commit();
  assert.match(check().stderr, /CHANGELOG\.md has no heading/);
  change("CHANGELOG.md", "## [Unreleased]", `## [Unreleased]\n\n## [${version}]`);
  assert.match(check().stderr, /not committed/);
  commit();
  assert.match(check().stdout, new RegExp(`may be released as ${version}`));
  change("js/package.json", `"${version}"`, '"9.9.9"');
  commit();
  assert.match(check().stderr, /another version/);
});
