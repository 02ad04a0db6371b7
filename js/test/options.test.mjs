// Tests what the JavaScript layer decides before it asks the WebAssembly: options, errors, platforms and
// cancellation.
import assert from "node:assert/strict";
import { test } from "node:test";
import { cancellable } from "../dist/abort.js";
import { camelCased } from "../dist/casing.js";
import { toRawConfig } from "../dist/config.js";
import { toError } from "../dist/errors.js";
import { iterate } from "../dist/iterate.js";
import { assertSupported } from "../dist/platform.js";

test("ICE servers are sorted into STUN and TURN, the rest passes with Rust's names", () => {
  const config = toRawConfig({
    relays: ["/dns/relay"],
    identity: "secret",
    signal: AbortSignal.abort(),
    iceServers: [{ urls: ["stun:a", "turn:b"], username: "u", credential: "c" }, { urls: "turns:d" }],
    connectTimeoutMs: 250,
    startDelaysMs: { circuitRelay: 7 },
    anUnknown: 1,
  });
  assert.deepEqual(config, {
    relays: ["/dns/relay"],
    connect_timeout_ms: 250,
    start_delays_ms: { circuit_relay: 7 },
    an_unknown: 1,
    stun: ["stun:a"],
    turn: [
      { url: "turn:b", username: "u", credential: "c" },
      { url: "turns:d", username: "", credential: "" },
    ],
  });
  const both = { relay: "a.example", relays: ["/dns/relay"] };
  assert.deepEqual(toRawConfig(both).relays, ["a.example", "/dns/relay"]);
  assert.deepEqual(toRawConfig({ relay: ["a.example", "b.example"] }).relays, ["a.example", "b.example"]);
  assert.deepEqual(toRawConfig({}).relays, []);
  assert.throws(() => toRawConfig({ iceServers: [{ urls: "http://x" }] }), {
    code: "invalid_config",
    message: /iceServers\[0\]/,
  });
});

test("what the bindings reject with becomes one error type", () => {
  const error = toError({
    code: "unreachable",
    message: "no path",
    attempts: [{ strategy: "stun", outcome: "failed", started_ms: 1, ended_ms: 2.5, reason: "no answer" }],
    cause: "dial failed",
  });
  assert.ok(error instanceof Error);
  assert.equal(error.cause, "dial failed");
  assert.deepEqual(error.attempts, [
    { strategy: "stun", outcome: "failed", startedMs: 1, endedMs: 2.5, reason: "no answer" },
  ]);
  const cause = new RangeError("unreachable executed");
  assert.deepEqual([toError(cause).code, toError(cause).cause], ["internal", cause]);
  const panic = new WebAssembly.RuntimeError("unreachable");
  assert.deepEqual([toError(panic).code, toError(panic).cause], ["internal", panic]);
  assert.match(toError(panic).message, /has a bug.*please report.*unreachable/);
});

test("what is not known is undefined, whether Rust left it out or wrote null", () => {
  assert.deepEqual(camelCased({ rtt_ms: null, last_error: null, relays: [{ rtt_ms: 2 }] }), { relays: [{ rttMs: 2 }] });
});

test("the message of an invalid option begins with JavaScript's name of it", () => {
  const message = (code, message) => toError({ code, message }).message;
  assert.equal(message("invalid_config", "stun_timeout_ms: 1 is not"), "stunTimeoutMs: 1 is not");
  assert.equal(message("invalid_config", "start_delays_ms.circuit_relay: 1"), "startDelaysMs.circuitRelay: 1");
  assert.equal(message("invalid_config", "stun: `a_b` is"), "stun: `a_b` is");
  assert.equal(message("io", "a_b: c"), "a_b: c");
});

test("a worker, an insecure page and a place without WebRTC each get their own words", () => {
  const code = "unsupported_platform";
  assert.throws(() => assertSupported({ WorkerGlobalScope: class {}, isSecureContext: true }), { code, message: /worker/ });
  const RTCPeerConnection = class {};
  assert.throws(() => assertSupported({ RTCPeerConnection, isSecureContext: false }), { code, message: /https/ });
  assert.throws(() => assertSupported({ isSecureContext: true }), { code, message: /Rust crate/ });
  assertSupported({ RTCPeerConnection, isSecureContext: true });
});

test("importing in Node.js works, and using says why it cannot", async () => {
  const { Connector, errorCodes } = await import("throughline");
  assert.ok(errorCodes.includes("unsupported_platform"));
  await assert.rejects(Connector.create(), { code: "unsupported_platform", message: /Node\.js/ });
});

test("the node entry exports every value that the page's entry exports", async () => {
  const [page, node] = await Promise.all([import("../dist/index.js"), import("../dist/node.js")]);
  assert.deepEqual(Object.keys(node), Object.keys(page));
});

test("an abort rejects with the signal's reason and cancels the work", async () => {
  const controller = new AbortController();
  const reason = new Error("changed my mind");
  const work = cancellable(
    controller.signal,
    (signal) =>
      new Promise((_, reject) => {
        signal.addEventListener("abort", () => reject({ code: "aborted", message: "cancelled", attempts: [] }));
      }),
  );
  controller.abort(reason);
  await assert.rejects(work, (error) => error === reason);
  let started = false;
  await assert.rejects(cancellable(controller.signal, async () => (started = true)), (error) => error === reason);
  assert.equal(started, false);
});

test("iteration ends with undefined, with an error, and when it is left", async () => {
  const values = [1, 2];
  const seen = [];
  for await (const value of iterate(async () => values.shift())) seen.push(value);
  assert.deepEqual(seen, [1, 2]);
  const failing = iterate(() => Promise.reject({ code: "connector_closed", message: "", attempts: [] }));
  await assert.rejects(failing.next(), { code: "connector_closed" });
  assert.equal((await failing.next()).done, true);
  let asked = 0;
  for await (const _ of iterate(async () => ++asked)) break;
  assert.equal(asked, 1);
});
