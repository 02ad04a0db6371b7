// Tests a connection's datagrams over bindings in memory.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Connection } from "../dist/connection.js";
import { ThroughlineError } from "../dist/errors.js";

/** Makes the bindings' side of a connection, which hands out `datagrams` and records what is sent. */
function bindings({ datagrams = [], fault, path } = {}) {
  const sent = [];
  return {
    sent,
    peerId: () => "peer",
    closed: () => new Promise(() => {}),
    path: () => path,
    sendDatagram(datagram) {
      if (fault) throw fault;
      sent.push([...datagram]);
    },
    receiveDatagram: async () => datagrams.shift(),
  };
}

test("a datagram is any kind of bytes, and nothing else", () => {
  const raw = bindings();
  const connection = new Connection(raw);
  connection.sendDatagram(Uint8Array.of(1, 2));
  connection.sendDatagram(new DataView(Uint8Array.of(3, 4, 5).buffer, 1));
  connection.sendDatagram(Uint8Array.of(6).buffer);
  connection.sendDatagram(new Uint8Array());
  assert.deepEqual(raw.sent, [[1, 2], [4, 5], [6], []]);
  connection.sendDatagram(new Uint8Array(1 << 20));
  assert.equal(raw.sent.pop().length, 65_536);
  for (const wrong of ["text", 5, null, undefined, [1]]) {
    assert.throws(() => connection.sendDatagram(wrong), { code: "invalid_config", message: /^datagram: / });
  }
});

test("a refusal is a ThroughlineError with its code", () => {
  const connection = new Connection(bindings({ fault: { code: "unsupported", message: "no datagrams" } }));
  const refused = (error) => error instanceof ThroughlineError && error.code === "unsupported";
  assert.throws(() => connection.sendDatagram(Uint8Array.of(1)), refused);
});

test("datagrams are iterated over until the end, and return() leaves the rest to others", async () => {
  const connection = new Connection(bindings({ datagrams: [1, 2, 3].map((n) => Uint8Array.of(n)) }));
  for await (const datagram of connection.datagrams()) {
    assert.deepEqual([...datagram], [1]);
    break;
  }
  const rest = [];
  for await (const datagram of connection.datagrams()) rest.push(...datagram);
  assert.deepEqual(rest, [2, 3]);
});

test("the size of a datagram is that of the path", () => {
  assert.equal(new Connection(bindings()).maxDatagramSize, undefined);
  assert.equal(new Connection(bindings({ path: { path: "direct", max_datagram_size: 1120 } })).maxDatagramSize, 1120);
});
