// Gives values of every JavaScript type to every entry of the package, with the real WebAssembly. A wrong type
// gives a typed error that names the argument, and nothing traps.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { before, test } from "node:test";

// With these names, Node.js looks like a page. No test here meets a peer.
for (const name of ["document", "RTCPeerConnection", "WebSocket"]) globalThis[name] ??= class { close() {} };

const { Connection, Connector, generateIdentity, load } = await import("../dist/index.js");
const wasm = readFileSync(new URL("../pkg/throughline_bg.wasm", import.meta.url));

/** Values of every type, and values that only look like one of a type. */
const values = {
  undefined: [undefined],
  null: [null],
  boolean: [true, false],
  number: [0, 5, -1, 1.5, NaN, Infinity, 2 ** 53, -0],
  bigint: [0n, 2n ** 70n],
  string: ["", "x", "tl1AAAA", "\u0000", "\ud800", "a".repeat(10_000)],
  symbol: [Symbol("x"), Symbol.iterator],
  function: [() => {}, class {}, async () => {}],
  array: [[], [1], [null], [[]], ["x"], [undefined], new Array(3)],
  object: [{}, { a: 1 }, Object.create(null), cyclic(), new Date(0), new Map(), /x/, new Error("x"), new Proxy({}, {})],
  boxed: [new String("x"), new Number(5), new Boolean(true)],
  bytes: [new Uint8Array(3), new ArrayBuffer(3), new DataView(new ArrayBuffer(3)), new SharedArrayBuffer(3)],
  promise: [Promise.resolve("x"), { then() {} }],
  signal: [new AbortController().signal, { aborted: true }, new EventTarget()],
};
const all = Object.values(values).flat();

function cyclic() {
  const value = {};
  value.self = value;
  return value;
}

const shown = (value) => {
  try {
    return `${typeof value} ${String(JSON.stringify(value) ?? String(value)).slice(0, 40)}`;
  } catch {
    return typeof value;
  }
};

/** Returns the error of `call`, if there is one. It has to be a rejection with one of `codes`, and its message has to begin with `name`. */
async function refused(call, value, codes, name) {
  let work;
  try {
    work = call(value);
  } catch (error) {
    assert.fail(`thrown and not rejected for ${shown(value)}: ${error}`);
  }
  const error = await work.then(
    () => undefined,
    (error) => error,
  );
  if (error === undefined) return undefined;
  assert.equal(error.name, "ThroughlineError", `${name}, ${shown(value)}: ${error}`);
  assert.ok(codes.includes(error.code), `${name}, ${shown(value)}: ${error.code}: ${error.message}`);
  assert.ok(error.message.startsWith(name), `${name}, ${shown(value)}: ${error.message}`);
  return error;
}

const isString = (value) => typeof value === "string";
let me;

before(async () => {
  await load(wasm);
  me = await Connector.create();
});

test("a connector that is closed does not keep Node.js from ending", () => {
  const code = `
    // A browser that gathers candidates beforehand.
    globalThis.RTCPeerConnection = class {
      constructor(configuration) { this.getConfiguration = () => configuration; }
      close() {}
    };
    for (const name of ["document", "WebSocket"]) globalThis[name] ??= class { close() {} };
    const { readFileSync } = await import("node:fs");
    const { Connector, load } = await import("${new URL("../dist/index.js", import.meta.url)}");
    await load(readFileSync(new URL("${new URL("../pkg/throughline_bg.wasm", import.meta.url)}")));
    const me = await Connector.create();
    await new Promise((resolve) => setTimeout(resolve, 50)); // the connection for later is made in a task of its own
    await me.close();`;
  execFileSync(process.execPath, ["--input-type=module", "-e", code], { timeout: 30_000 });
});

test("a ticket is a string", async () => {
  for (const value of all.filter((value) => !isString(value))) {
    for (const call of [(ticket) => me.connect(ticket), (ticket) => me.open(ticket, "chat/1")]) {
      assert.ok(await refused(call, value, ["invalid_ticket"], "ticket: expected a string, got "));
    }
  }
  for (const value of values.string) assert.equal((await refused((ticket) => me.connect(ticket), value, ["invalid_ticket"], "")).code, "invalid_ticket");
});

test("a protocol is a string, and is looked at before anybody is dialled", async () => {
  for (const value of all.filter((value) => !isString(value))) {
    const error = await refused((protocol) => me.open(me.ticket, protocol), value, ["invalid_protocol"], "protocol: expected a string, got ");
    assert.ok(error);
  }
});

test("a room has a name and texts, and a member shows text or bytes", async () => {
  for (const value of all.filter((value) => !isString(value))) {
    assert.ok(await refused((name) => me.join(name), value, ["invalid_config"], "name: expected a string, got "));
    if (value === undefined) continue;
    for (const part of ["application", "secret"]) {
      const join = (text) => me.join("x", { [part]: text });
      assert.ok(await refused(join, value, ["invalid_config"], `${part}: expected a string, got `));
    }
  }
  for (const value of [null, 5, true, {}, [], new Uint8Array(1025), "é".repeat(513)]) {
    assert.ok(await refused((data) => me.join("x", { data }), value, ["invalid_config"], "data: "));
  }
});

test("a connection is asked for nothing but a string, with nothing but a signal", async () => {
  const entered = [];
  const raw = {
    peerId: () => "peer",
    closed: async () => "connection_closed",
    open: async (...given) => {
      entered.push(given);
      throw { code: "connection_closed", message: "closed" };
    },
  };
  const connection = new Connection(raw);
  for (const value of all) {
    const protocol = await refused((protocol) => connection.open(protocol), value, ["invalid_protocol", "connection_closed"], "");
    assert.equal(protocol.code, isString(value) ? "connection_closed" : "invalid_protocol", shown(value));
    const { code } = await refused((signal) => connection.open("chat/1", { signal }), value, ["invalid_config", "connection_closed"], "");
    assert.equal(code, value === undefined || value instanceof AbortSignal ? "connection_closed" : "invalid_config", shown(value));
  }
  for (const [protocol, signal] of entered) assert.ok(isString(protocol) && (signal === undefined || signal instanceof AbortSignal));
});

test("options are an object, and their signal is an AbortSignal", async () => {
  const isObject = (value) => value === undefined || (typeof value === "object" && value !== null && !Array.isArray(value));
  const isSignal = (value) => value === undefined || value instanceof AbortSignal;
  const calls = [(options) => me.connect("tl1", options), (options) => me.open("tl1", "chat/1", options)];
  for (const call of calls) {
    for (const value of all) {
      const error = await refused(call, value, ["invalid_config", "invalid_ticket"], "");
      assert.equal(error.code, isObject(value) ? "invalid_ticket" : "invalid_config", shown(value));
      if (!isObject(value)) assert.match(error.message, /^options: expected an object, got /);
      const withSignal = await refused((signal) => call({ signal }), value, ["invalid_config", "invalid_ticket"], "");
      assert.equal(withSignal.code, isSignal(value) ? "invalid_ticket" : "invalid_config", shown(value));
      if (!isSignal(value)) assert.match(withSignal.message, /^signal: expected an AbortSignal, got /);
    }
  }
  for (const value of all.filter((value) => !isObject(value))) {
    assert.ok(await refused((options) => Connector.create(options), value, ["invalid_config"], "options: expected an object, got "));
    assert.ok(await refused((options) => generateIdentity(options), value, ["invalid_config"], "options: expected an object, got "));
  }
});

test("every option has a type", async () => {
  const list = (value) => Array.isArray(value) && value.every(isString);
  const whole = (value) => Number.isSafeInteger(value) && value >= 0;
  const truth = (value) => typeof value === "boolean";
  const numbers =
    "relayReservations connectTimeoutMs strategyTimeoutMs acceptanceDelayMs relayTimeoutMs stunTimeoutMs portMappingTimeoutMs " +
    "upgradeTries upgradeBackoffMs resumeTimeoutMs idleTimeoutMs streamWindow maxCircuits maxConnections maxStreams";
  const fits = {
    relay: (value) => isString(value) || list(value),
    relays: list,
    protocols: list,
    iceServers: (value) => Array.isArray(value) && value.length === 0,
    startDelaysMs: (value) => typeof value === "object" && !Array.isArray(value),
    ...Object.fromEntries(numbers.split(" ").map((name) => [name, whole])),
    ...Object.fromEntries(["reserve", "direct", "directory", "dialPrivate", "portMapping"].map((name) => [name, truth])),
  };
  // Addresses and protocol names are checked one by one in Rust, with codes of their own. A name of a relay
  // may be one that leads nowhere.
  const codes = ["invalid_config", "invalid_address", "invalid_protocol", "no_relay"];
  for (const [name, ok] of Object.entries(fits)) {
    for (const value of all) {
      const error = await refused(create({ [name]: value }), undefined, codes, "");
      const accepted = value === undefined || (value !== null && ok(value));
      if (!accepted) assert.match(error?.message ?? "", new RegExp(`^${name}(\\[\\d+\\](\\.\\w+)?)?: expected `), shown(value));
    }
  }
  for (const name of ["direct", "stun", "upnp", "circuitRelay", "turn", "birthday"]) {
    for (const value of all.filter((value) => value !== undefined && !whole(value))) {
      assert.ok(await refused(create({ startDelaysMs: { [name]: value } }), undefined, ["invalid_config"], `startDelaysMs.${name}: expected `));
    }
  }
  for (const value of all.filter((value) => value !== undefined && !isString(value))) {
    assert.ok(await refused(create({ identity: value }), undefined, ["invalid_identity"], "identity: expected a string, got "));
    for (const part of ["username", "credential"]) {
      const server = { urls: "turn:h", [part]: value };
      assert.ok(await refused(create({ iceServers: [server] }), undefined, ["invalid_config"], `iceServers[0].${part}: expected a string, got `));
    }
    if (Array.isArray(value) && value.every(isString)) continue;
    assert.ok(await refused(create({ iceServers: [{ urls: value }] }), undefined, ["invalid_config"], "iceServers[0].urls"));
  }
});

/** Makes a connector, and closes it again if that succeeds. */
function create(options) {
  return async () => (await Connector.create(options)).close();
}

test("the source of the wasm has a type, also when it is loaded", async () => {
  const fits = (value) =>
    value === undefined || isString(value) || value instanceof ArrayBuffer || ArrayBuffer.isView(value) || typeof value?.then === "function";
  for (const value of all) {
    for (const call of [load, (wasm) => generateIdentity({ wasm }), (wasm) => create({ wasm })()]) {
      const error = await refused(call, value, ["invalid_config"], "wasm: expected ");
      assert.equal(error === undefined, fits(value), shown(value));
    }
  }
});

test("an unknown option says the nearest known one, with JavaScript's names, and nothing else", async () => {
  const told = async (options) => (await refused(create(options), undefined, ["invalid_config"], "unknown option ")).message;
  assert.equal(await told({ relais: [] }), 'unknown option "relais": did you mean "relays"?');
  assert.equal(await told({ connectTimeout: 5 }), 'unknown option "connectTimeout": did you mean "connectTimeoutMs"?');
  assert.equal(await told({ iceServer: [] }), 'unknown option "iceServer": did you mean "iceServers"?');
  assert.equal(await told({ startDelaysMs: { circuitRelays: 1 } }), 'unknown option "circuitRelays": did you mean "circuitRelay"?');
  for (const name of ["stun", "turn", "listen", "colour", "__proto__x", "constructor", "toString"]) {
    assert.equal(await told({ [name]: undefined }), `unknown option "${name}"`);
  }
});
