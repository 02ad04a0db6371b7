// Tests a room over bindings in memory.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Room } from "../dist/room.js";
import { ThroughlineError } from "../dist/errors.js";

/** Makes the bindings' side of a room, which hands out `events` and records what is asked of it. */
function bindings({ events = [], members = [], fault } = {}) {
  const calls = [];
  return {
    calls,
    members: () => members,
    next: async () => events.shift(),
    show(data) {
      if (fault) throw fault;
      calls.push(["show", [...data]]);
    },
    async connect(id) {
      calls.push(["connect", id]);
      return { peerId: () => id, closed: () => new Promise(() => {}) };
    },
    leave: () => calls.push(["leave"]),
  };
}

test("events are iterated over until this peer has left", async () => {
  const data = Uint8Array.of(7);
  const raw = bindings({ events: [["joined", "a", data], ["changed", "a", data], ["left", "a"]] });
  const seen = [];
  for await (const event of new Room(raw)) seen.push(event);
  assert.deepEqual(seen, [
    { type: "joined", id: "a", data },
    { type: "changed", id: "a", data },
    { type: "left", id: "a" },
  ]);
});

test("members have an id and data, and are connected to by either form", async () => {
  const raw = bindings({ members: [["joined", "a", Uint8Array.of(1)]] });
  const room = new Room(raw);
  const [member] = room.members();
  assert.deepEqual(member, { id: "a", data: Uint8Array.of(1) });
  assert.equal((await room.connect(member)).peerId, "a");
  assert.equal((await room.connect("b")).peerId, "b");
  for (const wrong of [5, null, undefined, {}]) {
    await assert.rejects(room.connect(wrong), ThroughlineError);
  }
});

test("what is shown is text or bytes, and too much of it is refused by the bindings", () => {
  const raw = bindings();
  const room = new Room(raw);
  room.show("é");
  room.show(Uint8Array.of(1, 2));
  room.show(new Uint8Array(5000));
  assert.deepEqual(raw.calls.slice(0, 2), [
    ["show", [0xc3, 0xa9]],
    ["show", [1, 2]],
  ]);
  assert.equal(raw.calls[2][1].length, 1025);
  assert.throws(() => room.show(5), { code: "invalid_config", message: /^data: / });
  const refused = new Room(bindings({ fault: { code: "invalid_config", message: "data: too much" } }));
  assert.throws(() => refused.show("x"), ThroughlineError);
  room.leave();
  assert.deepEqual(raw.calls.at(-1), ["leave"]);
});
