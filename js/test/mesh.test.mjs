// Tests meshes over connectors in memory.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Mesh } from "../dist/mesh.js";

/** A queue that is iterated over until it is closed. */
function queue() {
  const items = [];
  let wake = () => {};
  let over = false;
  return {
    push(item) {
      items.push(item);
      wake();
    },
    close() {
      over = true;
      wake();
    },
    async *[Symbol.asyncIterator]() {
      for (;;) {
        if (items.length) yield items.shift();
        else if (over) return;
        else await new Promise((resolve) => (wake = resolve));
      }
    },
  };
}

/** Two ends of a stream. */
function pair(protocol) {
  const [there, back] = [new TransformStream(), new TransformStream()];
  const refused = [];
  const end = (readable, writable) => ({ protocol, readable, writable, refuse: () => refused.push(protocol) });
  return [end(back.readable, there.writable), end(there.readable, back.writable), refused];
}

/** A room in memory, whose members connect to each other. */
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
      incomingStreams: () => streams[Symbol.asyncIterator](),
      datagrams: () => datagrams[Symbol.asyncIterator](),
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
  const member = (id) => ({ id, data: new TextEncoder().encode(id) });
  return {
    dials,
    opened,
    connect,
    connector(id) {
      const [changes, incoming] = [queue(), queue()];
      const room = {
        members: () => [...all.values()].filter((other) => other.room && other.id !== id).map((other) => member(other.id)),
        connect: async (to) => connect(id, to),
        leave() {
          all.delete(id);
          changes.close();
          for (const other of all.values()) other.changes.push({ type: "left", id });
        },
        [Symbol.asyncIterator]: () => changes[Symbol.asyncIterator](),
      };
      all.set(id, { id, changes, incoming });
      const join = async () => {
        for (const other of all.values()) {
          if (other.id === id || !other.room) continue;
          other.changes.push({ type: "joined", ...member(id) });
          changes.push({ type: "joined", ...member(other.id) });
        }
        all.get(id).room = room;
        return room;
      };
      return { peerId: id, join, incoming: () => incoming[Symbol.asyncIterator]() };
    },
  };
}

/** Returns the next event of this type. */
async function next(mesh, type) {
  for await (const event of mesh) if (event.type === type) return event;
  assert.fail(`no ${type}`);
}

const text = (bytes) => new TextDecoder().decode(bytes);

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
  a.leave();
  assert.equal((await next(b, "left")).id, "a");
  assert.deepEqual(b.peers, ["c"]);
  for await (const _ of a) assert.fail("it has left");
  for (const mesh of meshes) mesh.leave();
});

test("a message may come in pieces, and one that is too long ends the stream", async () => {
  const place = world();
  const a = await Mesh.join(place.connector("a"), "room");
  place.connector("b").join();
  await next(a, "joined");
  const [{ protocol, there }] = place.opened;
  assert.equal(protocol, "throughline-mesh/1");
  const writer = there.writable.getWriter();
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
  for (let turn = 0; turn < 200; turn++) await new Promise((resolve) => setImmediate(resolve));
  assert.ok(sent < 200, `${sent} were taken although nobody reads`);
  for (let number = 0; number < 500; number++) assert.equal(text((await next(b, "message")).data), String(number));
  await flood;
  for (const mesh of [a, b]) mesh.leave();
});
