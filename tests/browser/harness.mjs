// Code that the browser and interop tests share: the program, browsers, and pages.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import bidi from "playwright-bidi";
import { chromium } from "playwright-core";

/** How many short streams a test makes. `STREAMS=100000` takes minutes. */
export const STREAMS = Number(process.env.STREAMS ?? 2000);

export const root = fileURLToPath(new URL("../..", import.meta.url));
const program =
  process.env.THROUGHLINE ?? `${process.env.CARGO_TARGET_DIR ?? `${root}target`}/debug/throughline`;

/**
 * The browsers of the pages, as BROWSER names them: `chromium`, `firefox`, or `both`. With `both`, every second page
 * of a test that calls `launchTwo` is in Firefox.
 */
export const BROWSER = process.env.BROWSER ?? "chromium";
const paths = {
  chromium: process.env.CHROMIUM ?? "/usr/bin/chromium",
  firefox: process.env.FIREFOX ?? "/usr/bin/firefox-esr",
};
const names = { chromium: ["chromium"], firefox: ["firefox"], both: ["chromium", "firefox"] }[BROWSER];
if (!names) throw new Error(`BROWSER=${BROWSER} is none of chromium, firefox and both`);

/** A test of what only Chromium has. With another browser it does not exist. */
export const chromiumTest = BROWSER === "chromium" ? test : () => {};

for (const [path, remedy] of [
  [program, "cargo build --all-features"],
  ...names.map((name) => [paths[name], "scripts/setup test"]),
  [`${root}js/dist/index.js`, "make wasm"],
]) {
  // These tests are not skipped, because they matter most, and one command makes each missing part.
  if (!existsSync(path)) throw new Error(`${path} is missing; run: ${remedy}`);
}

/** A running `throughline` program, which reports its JSON lines as events. */
export class Program {
  #child;
  #events = [];
  #waiting = new Set();
  #errors = "";

  constructor(...args) {
    this.#child = spawn(program, [...args, "--json"], { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
    this.#child.stderr.on("data", (text) => (this.#errors = (this.#errors + text).slice(-8000)));
    createInterface({ input: this.#child.stdout }).on("line", (line) => {
      this.#events.push(JSON.parse(line));
      for (const check of this.#waiting) check();
    });
    this.exited = once(this.#child, "exit").then(([code]) => code);
    this.exited.then(() => this.#waiting.forEach((check) => check()));
  }

  /** Resolves with the first event named `name` that `matches`, past or future. */
  event(name, matches = () => true) {
    return new Promise((resolve, reject) => {
      const check = () => {
        const found = this.#events.find((event) => event.event === name && matches(event));
        if (!found && this.#child.exitCode === null) return;
        this.#waiting.delete(check);
        if (found) resolve(found);
        else reject(new Error(`exited with ${this.#child.exitCode} before "${name}":\n${JSON.stringify(this.#events)}\n${this.#errors}`));
      };
      this.#waiting.add(check);
      check();
    });
  }

  async stop() {
    if (this.#child.exitCode === null) this.#child.kill("SIGINT");
    await this.exited;
  }
}

/** Makes a folder that exists as long as the test. */
export function temporary(t) {
  const folder = mkdtempSync(join(tmpdir(), "throughline-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Starts a relay on loopback that serves `www` and the npm package. `more` are further arguments. */
export async function serve(t, www = `${root}tests/browser/site`, ...more) {
  // Firefox does no ICE with a loopback address. `tests/browser/namespace` gives the machine another one.
  const { RELAY_IP } = process.env;
  if (RELAY_IP) more.push("--host", RELAY_IP);
  const data = temporary(t);
  const args = ["serve", "--host", "127.0.0.1", "--port", "0", "--data", data, "--www", www, "--npm", `${root}js`, ...more];
  const server = new Program(...args);
  t.after(() => server.stop());
  const { addresses, http, stun, peer_id } = await server.event("ready");
  const relay = addresses.find((address) => address.includes("/ws"));
  const webrtcDirect = addresses.find((address) => address.includes("/webrtc-direct") && address.includes(RELAY_IP ?? ""));
  return { http, relay, webrtcDirect, peerId: peer_id, iceServers: stun.map((urls) => ({ urls })), stun: stun[0], stop: () => server.stop() };
}

/** Runs `throughline token`, and returns the event that it prints. */
export async function token(t, ...args) {
  const program = new Program("token", ...args);
  t.after(() => program.stop());
  return program.event(args[0] === "key" ? "key" : "token");
}

/** Starts a native peer that is reached through `relay`. */
export async function listen(t, { relay, stun }, ...more) {
  const peer = new Program("listen", "--no-port-mapping", "--relay", relay, "--stun", stun, ...more);
  t.after(() => peer.stop());
  const ready = await peer.event("ready");
  return { ticket: ready.ticket, peerId: ready.peer_id, event: (...args) => peer.event(...args), stop: () => peer.stop() };
}

/** Starts `throughline connect`. `exited` resolves with its exit code. */
export async function connect(t, { relay, stun }, ticket, ...more) {
  const peer = new Program("connect", ticket, "--relay", relay, "--stun", stun, ...more);
  t.after(() => peer.stop());
  return { event: (...args) => peer.event(...args), exited: peer.exited };
}

/** Starts a fresh browser. Chromium gets `args` besides the flags that it needs without a display, a GPU and a user. */
export const launch = (t, ...args) => (names[0] === "firefox" ? launchFirefox(t) : launchWithout(t, [], ...args));

/** Starts a browser for each of two pages. It is the same one, unless both browsers are chosen. */
export async function launchTwo(t) {
  const first = launch(t);
  return Promise.all([first, names[1] ? launchFirefox(t) : first]);
}

/** Starts Chromium as `launch` does, but without the given ones of Playwright's flags. */
export async function launchWithout(t, ignoreDefaultArgs, ...args) {
  const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
  const instance = await chromium.launch({ executablePath: paths.chromium, ignoreDefaultArgs, args: [...flags, ...args] });
  t.after(() => instance.close());
  return instance;
}

/** Firefox on a machine without a network has candidates of its loopback interface only with this setting. */
async function launchFirefox(t) {
  const firefoxUserPrefs = { "media.peerconnection.ice.loopback": true };
  const instance = await bidi._bidiFirefox.launch({ executablePath: paths.firefox, firefoxUserPrefs });
  t.after(() => instance.close());
  return instance;
}

/** Opens `url` in its own context. The page's errors are shown if the test fails. */
export async function open(t, instance, url, ready = "peer") {
  const context = await instance.newContext();
  const page = await context.newPage();
  page.on("pageerror", (error) => t.diagnostic(`page: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && t.diagnostic(`console: ${message.text()}`));
  await page.goto(url);
  if (ready) await page.waitForFunction((name) => name in window, ready);
  return page;
}
