// Tests meshes over connectors in memory.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Frames } from "../dist/frames.js";
import { iterate } from "../dist/iterate.js";
import { Mesh } from "../dist/mesh.js";
import { MeshKey } from "../dist/proof.js";

/** A queue that is iterated over until it is closed. An iterator that is returned takes nothing. */
function queue() {
  const items = [];
  const waiting = new Set();
  let over = false;
  const wake = () => waiting.forEach((check) => check());
  const next = (signal) =>
    new Promise((resolve, reject) => {
      const check = () => {
        if (!waiting.has(check)) return;
        if (signal.aborted) reject(signal.reason);
        else if (items.length) resolve(items.shift());
        else if (over) resolve(undefined);
        else return;
        waiting.delete(check);
      };
      waiting.add(check);
      signal.addEventListener("abort", check);
      check();
    });
  return {
    push(item) {
      items.push(item);
      wake();
    },
    close() {
      over = true;
      wake();
    },
    iterator: () => iterate(next),
  };
}

/** Two ends of a stream. */
function pair(protocol) {
  const controllers = [];
  const pipe = () => new TransformStream({ start: (controller) => controllers.push(controller) });
  const [there, back] = [pipe(), pipe()];
  const refuse = () => controllers.forEach((controller) => controller.error(new Error("refused")));
  const end = (readable, writable) => ({ protocol, readable, writable, refuse });
  return [end(back.readable, there.writable), end(there.readable, back.writable)];
}

/** Rooms in memory, whose members connect to each other. */
function world() {
  const all = new Map();
  const dials = [];
  const opened = [];
  const ends = (from, to) => {
    const [mine, theirs] = [queue(), queue()];
    const [inbox, outbox] = [queue(), queue()];
    const make = (peerId, streams, peers, datagrams, others) => ({
      peerId,
      async open(protocol) {
        const [here, there] = pair(protocol);
        opened.push({ protocol, there });
        peers.push(there);
        return here;
      },
      incomingStreams: streams.iterator,
      datagrams: datagrams.iterator,
      sendDatagram: (bytes) => others.push(bytes),
      close: async () => {},
    });
    return [make(to, mine, theirs, inbox, outbox), make(from, theirs, mine, outbox, inbox)];
  };
  const connect = (from, to) => {
    dials.push([from, to]);
    const [here, there] = ends(from, to);
    all.get(to).incoming.push(there);
    return here;
  };
  const member = (id, data = id) => ({ id, data: new TextEncoder().encode(data) });
  return {
    dials,
    opened,
    connect,
    /** What a member shows changes. */
    show(id, data) {
      const { name } = all.get(id);
      for (const other of all.values()) {
        if (other.id !== id && other.name === name) other.changes.push({ type: "changed", ...member(id, data) });
      }
    },
    connector(id) {
      const [changes, incoming] = [queue(), queue()];
      const own = { id, changes, incoming };
      all.set(id, own);
      const others = () => [...all.values()].filter((other) => other.name === own.name && other !== own);
      const room = {
        members: () => others().map((other) => member(other.id)),
        connect: async (to) => connect(id, to),
        leave() {
          changes.close();
          for (const other of others()) other.changes.push({ type: "left", id });
          own.name = undefined;
        },
        [Symbol.asyncIterator]: () => changes.iterator(),
      };
      const join = async (name) => {
        own.name = name;
        for (const other of others()) {
          other.changes.push({ type: "joined", ...member(id) });
          changes.push({ type: "joined", ...member(other.id) });
        }
        return room;
      };
      return { peerId: id, join, incoming: incoming.iterator };
    },
  };
}

/** Returns the next event of this type. */
async function next(mesh, type) {
  for await (const event of mesh) if (event.type === type) return event;
  assert.fail(`no ${type}`);
}

/** Lets everything happen that waits for no timer. Proofs are made by other threads, which have their turns here. */
async function settle() {
  for (let turn = 0; turn < 60; turn++) {
    await new Promise((resolve) => setImmediate(resolve));
    if (turn % 6 === 0) await crypto.subtle.digest("SHA-256", new Uint8Array(1));
  }
}

/** Returns the types of all events that wait. */
async function unread(mesh) {
  const types = [];
  const events = mesh[Symbol.asyncIterator]();
  for (;;) {
    const event = await Promise.race([events.next(), settle()]);
    if (!event) break;
    types.push(event.value?.type);
  }
  await events.return();
  return types;
}

/** Passes so many seconds of a test with mocked timers. */
async function pass(t, seconds) {
  for (let second = 0; second < seconds; second++) {
    t.mock.timers.tick(1_000);
    await settle();
  }
}

const text = (bytes) => new TextDecoder().decode(bytes);
const key = await MeshKey.of("", "room", "");

/** Answers the stream that `a` has opened as member `b`, and returns its writer and its reader. */
async function answer(place) {
  while (!place.opened.length) await settle();
  const { protocol, there } = place.opened.at(-1);
  assert.equal(protocol, "throughline-mesh/1");
  const frames = new Frames(there.readable);
  assert.ok(await key.isProof("a", "b", await frames.take(32)));
  const writer = there.writable.getWriter();
  writer.write(await key.proof("b", "a")).catch(() => {});
  return { writer, frames };
}

test("the lower id dials once, and what one says reaches all others in order", async () => {
  const place = world();
  const ids = ["b", "c", "a"];
  const meshes = [];
  for (const id of ids) meshes.push(await Mesh.join(place.connector(id), "room"));
  const [b, c, a] = meshes;
  for (const mesh of meshes) for (const _ of [1, 2]) await next(mesh, "joined");
  assert.deepEqual(place.dials.map(String).sort(), ["a,b", "a,c", "b,c"]);
  assert.deepEqual(a.peers, ["b", "c"]);
  await a.broadcast("one");
  await a.broadcast(Uint8Array.of(0x32));
  for (const mesh of [b, c]) {
    for (const said of ["one", "2"]) {
      const { from, data } = await next(mesh, "message");
      assert.deepEqual([from, text(data)], ["a", said]);
    }
  }
  assert.equal(await b.send("c", "psst"), true);
  assert.equal(await b.send("nobody", "psst"), false);
  assert.equal(text((await next(c, "message")).data), "psst");
  a.sendDatagram(Uint8Array.of(0x78));
  assert.equal(text((await next(b, "datagram")).data), "x");
  await assert.rejects(a.broadcast(new Uint8Array(65_537)), { code: "limit_exceeded" });
  await a.broadcast("bye");
  a.leave();
  for await (const _ of a) assert.fail("it has left");
  assert.equal((await next(b, "left")).id, "a");
  assert.deepEqual(b.peers, ["c"]);
  for (const mesh of meshes) mesh.leave();
});

test("a proof is for one room and one direction, as in Rust", async () => {
  const app = await MeshKey.of("app", "name", "secret");
  const proof = await app.proof("a", "b");
  assert.equal(Buffer.from(proof).toString("hex"), "2d77dec22dd4dea631b04f94a6ca57d61e8cb2fd3a5e3ec4aeb0c35a1fc70434");
  assert.ok(await app.isProof("a", "b", proof));
  assert.ok(!(await app.isProof("b", "a", proof)));
  assert.ok(!(await key.isProof("a", "b", proof)));
});

test("a message may come in pieces, and one that is too long ends the stream", async () => {
  const place = world();
  const a = await Mesh.join(place.connector("a"), "room");
  place.connector("b").join("room");
  const { writer } = await answer(place);
  await next(a, "joined");
  for (const piece of [[0, 0], [0, 2, 0x68], [0x69, 0, 0, 0, 0, 0, 0, 0, 1, 0x21]]) writer.write(Uint8Array.from(piece));
  for (const said of ["hi", "", "!"]) assert.equal(text((await next(a, "message")).data), said);
  writer.write(Uint8Array.of(0, 1, 0, 1)).catch(() => {});
  assert.equal((await next(a, "left")).id, "b");
  a.leave();
});

test("whose first stream is not for the mesh is a stranger", async () => {
  const place = world();
  const a = await Mesh.join(place.connector("a"), "room");
  place.connector("z");
  await place.connect("z", "a").open("echo/1");
  const { connection, stream } = await next(a, "stranger");
  assert.deepEqual([connection.peerId, stream.protocol], ["z", "echo/1"]);
  a.leave();
});

test("a slow member holds the sender back", async () => {
  const place = world();
  const [a, b] = [await Mesh.join(place.connector("a"), "room"), await Mesh.join(place.connector("b"), "room")];
  await next(a, "joined");
  await next(b, "joined");
  let sent = 0;
  const flood = (async () => {
    for (; sent < 500; sent++) await a.broadcast(String(sent));
  })();
  await settle();
  assert.ok(sent < 200, `${sent} were taken although nobody reads`);
  for (let number = 0; number < 500; number++) assert.equal(text((await next(b, "message")).data), String(number));
  await flood;
  for (const mesh of [a, b]) mesh.leave();
});

test("a member counts when it has proved itself, and others are asked ever less often", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  t.mock.method(Math, "random", () => 0.5);
  const place = world();
  const a = await Mesh.join(place.connector("a"), "room");
  const b = place.connector("b");
  b.join("room");
  let refuses = true;
  const refuse = async (connection) => {
    for await (const stream of connection.incomingStreams()) if (refuses) stream.refuse();
  };
  (async () => {
    for await (const connection of b.incoming()) refuse(connection);
  })();
  await pass(t, 60);
  // Each pause is twice as long as the one before: after 0, 1, 3, 7, 15 and 31 s, and then after 61.
  assert.equal(place.dials.length, 6);
  assert.deepEqual([a.peers, await unread(a)], [[], []]);
  refuses = false;
  await pass(t, 1);
  const before = place.opened.length;
  while (place.opened.length === before) await pass(t, 1);
  const { there } = place.opened.at(-1);
  there.writable.getWriter().write(await key.proof("a", "b")).catch(() => {});
  await settle();
  assert.deepEqual(a.peers, [], "it has said what it was told");
  const again = place.opened.length;
  while (place.opened.length === again) await pass(t, 1);
  await answer(place);
  assert.equal((await next(a, "joined")).id, "b");
  a.leave();
});

test("members of another room take no part", async () => {
  const place = world();
  const a = await Mesh.join(place.connector("a"), "one");
  const b = await Mesh.join(place.connector("b"), "two");
  const stream = await place.connect("a", "b").open("throughline-mesh/1");
  const other = await MeshKey.of("", "one", "");
  stream.writable.getWriter().write(await other.proof("a", "b")).catch(() => {});
  await assert.rejects(stream.readable.getReader().read(), /refused/);
  assert.deepEqual([a.peers, b.peers], [[], []]);
  for (const mesh of [a, b]) mesh.leave();
});

test("a connector is in one mesh at a time, and gives back what it does not take", async () => {
  const place = world();
  const connector = place.connector("a");
  const first = await Mesh.join(connector, "room");
  await assert.rejects(Mesh.join(connector, "other"), { code: "limit_exceeded" });
  place.connector("z");
  first.leave();
  place.connect("z", "a");
  const { value } = await connector.incoming().next();
  assert.equal(value.peerId, "z", "the connection is for whoever asks next");
  const second = await Mesh.join(connector, "other");
  second.leave();
});

test("strangers are let go, and their number is bounded", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const place = world();
  const a = await Mesh.join(place.connector("a"), "room");
  const silent = [];
  for (let number = 0; number < 40; number++) {
    const id = `z${number}`;
    place.connector(id);
    silent.push(place.connect(id, "a"));
  }
  for (let more = 0; more < 5; more++) place.connect("z0", "a");
  await settle();
  for (const connection of silent) await connection.open("echo/1");
  assert.equal((await unread(a)).length, 32);
  const late = place.connect("z0", "a");
  await pass(t, 11);
  await late.open("echo/1");
  assert.deepEqual(await unread(a), [], "it was let go");
  place.connect("z0", "a").open("echo/1");
  assert.deepEqual(await unread(a), ["stranger"], "there is room again");
  a.leave();
});

test("nothing of a member comes after it has left, and nothing before it has joined", async () => {
  const place = world();
  const a = await Mesh.join(place.connector("a"), "room");
  const b = place.connector("b");
  const room = await b.join("room");
  const { writer } = await answer(place);
  const hi = Uint8Array.of(0, 0, 0, 1, 0x21);
  writer.write(hi);
  await settle();
  for (const data of ["x", "y", "z"]) place.show("b", data);
  await settle();
  assert.deepEqual(await unread(a), ["joined", "message"]);
  for (let number = 0; number < 100; number++) place.show("b", String(number));
  writer.write(hi);
  await settle();
  room.leave();
  await settle();
  writer.write(hi).catch(() => {});
  assert.deepEqual(await unread(a), ["changed", "message", "left"], "many changes are one");
  await assert.rejects(writer.write(hi), "its stream is read no more");
  a.leave();
});

test("a member that takes a little now and then is put out", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const place = world();
  const a = await Mesh.join(place.connector("a"), "room");
  place.connector("b").join("room");
  // The pause before the first attempt is that of a timer, too.
  while (!place.opened.length) await pass(t, 1);
  const { frames } = await answer(place);
  await next(a, "joined");
  let clock = 0;
  t.mock.method(performance, "now", () => clock);
  let sent = 0;
  (async () => {
    while (await a.send("b", "!")) sent++;
  })();
  await settle();
  for (let time = 0; time < 3; time++) {
    if (a.peers.length) await frames.take(5).catch(() => {});
    clock += 9_900;
    t.mock.timers.tick(9_900);
    await settle();
  }
  assert.deepEqual(a.peers, [], `${sent} were taken`);
  assert.equal((await next(a, "left")).id, "b");
  a.leave();
});

test("the streams of a member that is linked are the page's", async () => {
  const place = world();
  const b = await Mesh.join(place.connector("b"), "room");
  const connector = place.connector("a");
  const before = place.connect("a", "b");
  await settle();
  const a = await Mesh.join(connector, "room");
  for (const mesh of [a, b]) await next(mesh, "joined");
  for (const connection of [before, a.connection("b")]) await connection.open("app/1");
  assert.deepEqual(await unread(b), []);
  assert.equal((await b.connection("a").incomingStreams().next()).value.protocol, "app/1");
  for (const mesh of [a, b]) mesh.leave();
});

test("small pieces of a long message are moved a few times at most", async (t) => {
  const [here, there] = pair("x");
  const writer = there.writable.getWriter();
  const length = 20_000;
  const taken = new Frames(here.readable).take(length);
  let moved = 0;
  const set = Uint8Array.prototype.set;
  t.mock.method(Uint8Array.prototype, "set", function (bytes, at) {
    moved += bytes.length;
    return set.call(this, bytes, at);
  });
  for (let at = 0; at < length; at++) await writer.write(Uint8Array.of(at));
  const bytes = await taken;
  assert.deepEqual([bytes.length, bytes[300]], [length, 300 % 256]);
  assert.ok(moved < 4 * length, `${moved} bytes were moved`);
});
