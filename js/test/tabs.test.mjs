// Tests tabs that share a peer over ports and bindings in memory.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Connector } from "../dist/connector.js";
import { ThroughlineError } from "../dist/errors.js";
import { Feed } from "../dist/tabs-feed.js";
import { Line } from "../dist/tabs-line.js";
import { MAX_CALLS, MAX_HANDLES, MAX_TABS, pack, unpack } from "../dist/tabs-protocol.js";
import { RemoteConnector } from "../dist/tabs-remote.js";
import { Tab } from "../dist/tabs-session.js";
import { Sharing } from "../dist/tabs-worker.js";

/** A queue of the bindings. `next` ends with its signal, and gives `undefined` once the queue is closed. */
function queue() {
  const items = [];
  const waiting = new Set();
  let over = false;
  const wake = () => waiting.forEach((check) => check());
  return {
    waiting,
    push: (item) => (items.push(item), wake()),
    close: () => ((over = true), wake()),
    next: (signal) =>
      new Promise((resolve, reject) => {
        const check = () => {
          if (!waiting.has(check)) return;
          if (signal?.aborted) reject({ code: "aborted", message: "aborted" });
          else if (items.length) resolve(items.shift());
          else if (over) resolve(undefined);
          else return;
          waiting.delete(check);
        };
        waiting.add(check);
        signal?.addEventListener("abort", check);
        check();
      }),
  };
}

/** A stream of the bindings that echoes, and records what is done to it. */
function rawStream(protocol = "echo/1") {
  const echo = queue();
  const log = [];
  let fault;
  return {
    log,
    protocol: () => protocol,
    isEarly: () => false,
    async read(max) {
      log.push(["read", max]);
      const bytes = await echo.next();
      if (fault) throw fault;
      return bytes;
    },
    async write(bytes) {
      log.push(["write", bytes.byteLength]);
      echo.push(bytes);
    },
    async finish() {
      log.push(["finish"]);
      echo.close();
    },
    stop: (code) => log.push(["stop", code]),
    reset(code) {
      log.push(["reset", code]);
      fault ??= { code: "stream_reset", message: "reset", resetCode: code };
      echo.close();
    },
    refuse: () => log.push(["refuse"]),
  };
}

/** A session with a peer, of which several handles exist. */
function session(peerId, name) {
  const watchers = new Set();
  const made = {
    streams: [],
    datagrams: [],
    incoming: queue(),
    path: { path: "relayed", rtt_ms: 5, max_datagram_size: 1120 },
    sends: async () => {},
    tell(event) {
      watchers.forEach((watcher) => watcher.push(event));
    },
    end(code) {
      if (made.code) return;
      made.code = code;
      made.path = undefined;
      made.incoming.close();
      made.tell({ event: "closed", code });
      watchers.forEach((watcher) => watcher.close());
    },
    raw: () => ({
      peerId: () => peerId,
      path: () => made.path,
      attempts: () => [{ strategy: "circuit_relay", outcome: "succeeded", started_ms: 0, ended_ms: 7 }],
      pathEvents() {
        const events = queue();
        watchers.add(events);
        return events;
      },
      closed: () => new Promise(() => {}),
      close: async () => made.end("connection_closed"),
      async open(protocol) {
        if (protocol === "nobody/1") throw { code: "protocol_refused", message: "nobody serves it" };
        made.streams.push(rawStream(protocol));
        return made.streams.at(-1);
      },
      acceptStream: (signal) => made.incoming.next(signal),
      sendDatagram: (bytes) => made.sends().then(() => made.datagrams.push(bytes[0])),
      waitDirect: (ms, signal) =>
        new Promise((_, reject) => signal.addEventListener("abort", () => reject({ code: "aborted", message: String(ms) }))),
    }),
    name,
  };
  return made;
}

/** The bindings of a connector, and what they are made to do. */
function world() {
  const sessions = new Map();
  const incoming = queue();
  const statuses = new Set();
  const events = queue();
  const rooms = [];
  const made = {
    sessions,
    incoming,
    events,
    rooms,
    closes: 0,
    state: "connecting",
    become(state) {
      made.state = state;
      statuses.forEach((changes) => changes.push({ state }));
    },
    raw: {
      peerId: () => "me",
      ticket: () => `ticket ${made.state}`,
      shortTicket: () => "short",
      status: () => ({ state: made.state, ticket: `ticket ${made.state}` }),
      statusChanges() {
        const changes = queue();
        statuses.add(changes);
        changes.push({ state: made.state });
        return changes;
      },
      events: () => events,
      report: async () => ({ connections: sessions.size, listening: [] }),
      async connect(ticket, signal) {
        if (ticket === "never") return new Promise((_, reject) => signal.addEventListener("abort", () => reject({ code: "aborted", message: "aborted" })));
        if (ticket === "nowhere") {
          const attempt = { strategy: "stun", outcome: "failed", started_ms: 1, ended_ms: 2, cause: "no_pair" };
          throw { code: "unreachable", message: "no path", attempts: [attempt], cause: new Error("first", { cause: new Error("second") }) };
        }
        if (!sessions.has(ticket) || sessions.get(ticket).code) sessions.set(ticket, session(ticket));
        return sessions.get(ticket).raw();
      },
      async open(ticket, protocol) {
        const connection = await made.raw.connect(ticket);
        return [connection, await connection.open(protocol)];
      },
      accept: (signal) => incoming.next(signal),
      async join(name, application, secret, data) {
        const changes = queue();
        const room = { changes, name, application, secret, data, shown: [], left: 0 };
        rooms.push(room);
        return {
          members: () => [["joined", "a", Uint8Array.of(1)]],
          next: () => changes.next(),
          show: (data) => room.shown.push([...data]),
          connect: (member) => made.raw.connect(member),
          leave: () => ((room.left += 1), changes.close()),
        };
      },
      async close() {
        made.closes += 1;
        for (const one of sessions.values()) one.end("connector_closed");
        incoming.close();
        statuses.forEach((changes) => changes.close());
        events.close();
      },
    },
  };
  return made;
}

/** That of a worker. */
const PRESENCE = { held: Promise.resolve(), lock: "lock of the worker" };

/** A worker whose peers are the given worlds, one after the other. */
function worker(...worlds) {
  const left = [...worlds];
  return new Sharing(async () => {
    const next = left.shift();
    if (next instanceof Error || !next) throw next ?? new Error("there is no other world");
    return { raw: next.raw };
  }, PRESENCE);
}

/** A tab that has not joined yet. `crash` is what the worker does when the lock of the tab is free. */
function approach(t, sharing) {
  const { port1, port2 } = new MessageChannel();
  const line = new Line(port1, () => {});
  const tab = new Tab(port2, sharing);
  t.after(() => (line.end(new ThroughlineError("connector_closed", "the test is over")), port2.close()));
  return { line, tab, crash: () => tab.end(), see: (visible) => line.see(visible) };
}

async function join(t, sharing, visible = true) {
  const met = approach(t, sharing);
  const joined = await met.line.call(0, "join", [visible]);
  return { ...met, joined, me: new Connector(new RemoteConnector(met.line, joined)) };
}

/** Resolves when the worker has heard all that a tab has said, and the tab the answers. */
const settled = (tab) => tab.line.call(0, "report");
const code = (promise) => promise.then(() => undefined, (error) => error.code);

test("a tab is the peer of the worker, with its status and its events", async (t) => {
  const one = world();
  const { me, joined } = await join(t, worker(one));
  assert.ok(me instanceof Connector);
  assert.deepEqual([me.peerId, me.ticket, me.shortTicket], ["me", "ticket connecting", "short"]);
  const changes = me.statusChanges();
  assert.equal((await changes.next()).value.state, "connecting");
  const heard = [];
  me.addEventListener("status", ({ detail }) => heard.push(detail.state));
  one.become("reachable");
  assert.equal((await changes.next()).value.state, "reachable");
  assert.equal(me.ticket, "ticket reachable");
  assert.deepEqual(heard, ["reachable"]);
  const events = me.events();
  one.events.push({ event: "quota", ends_ms: 3 });
  assert.deepEqual((await events.next()).value, { event: "quota", endsMs: 3 });
  assert.deepEqual(await me.report(), { connections: 0, listening: [] });
  assert.throws(() => me.metrics(), { code: "unsupported" });
  await me.close();
  assert.deepEqual([(await changes.next()).done, (await events.next()).done], [true, true]);
});

test("streams move bytes with back-pressure in both directions", async (t) => {
  const one = world();
  const { me } = await join(t, worker(one));
  const connection = await me.connect("peer");
  const { readable, writable } = await connection.open("echo/1");
  const [stream] = one.sessions.get("peer").streams;
  const writer = writable.getWriter();
  const given = Uint8Array.from({ length: 600 * 1024 }, (_, at) => at % 251);
  await writer.write(given);
  assert.equal(given.length, 600 * 1024, "the caller keeps its bytes");
  // Nothing has been read, because nobody has asked.
  assert.deepEqual(stream.log, [["write", 262144], ["write", 262144], ["write", 90112]]);
  await writer.close();
  const back = new Uint8Array(await new Response(readable).arrayBuffer());
  assert.deepEqual(back, given);
  assert.deepEqual(stream.log.filter(([what]) => what === "read").length, 4);
});

test("reset codes, refusals and typed errors cross", async (t) => {
  const one = world();
  const { me } = await join(t, worker(one));
  const connection = await me.connect("peer");
  const { streams } = one.sessions.get("peer");
  const { readable, writable } = await connection.open("echo/1");
  const reading = readable.getReader().read();
  await writable.abort({ resetCode: 7 });
  await assert.rejects(reading, { name: "ThroughlineError", code: "stream_reset", resetCode: 7 });
  const other = await connection.open("echo/1");
  await other.readable.cancel({ resetCode: 9 });
  await me.report();
  assert.deepEqual(streams.map(({ log }) => log.at(-1)), [["reset", 7], ["stop", 9]]);
  assert.equal(await code(connection.open("nobody/1")), "protocol_refused");
  const served = rawStream("served/1");
  one.sessions.get("peer").incoming.push(served);
  const { value } = await connection.incomingStreams().next();
  assert.deepEqual([value.protocol, value.early], ["served/1", false]);
  value.refuse();
  await me.report();
  assert.deepEqual(served.log, [["refuse"]]);
  await assert.rejects(me.connect("nowhere"), (error) => {
    assert.ok(error instanceof ThroughlineError);
    assert.deepEqual([error.code, error.message], ["unreachable", "no path"]);
    assert.deepEqual(error.attempts, [{ strategy: "stun", outcome: "failed", startedMs: 1, endedMs: 2, cause: "no_pair" }]);
    assert.deepEqual([error.cause.message, error.cause.cause.message], ["first", "second"]);
    return true;
  });
  const load = { reason: "status", url: "/x.wasm", status: 404 };
  const whole = unpack(structuredClone(pack(new ThroughlineError("quota_exceeded", "used up", { retryAfterMs: 5, load }))));
  assert.deepEqual([whole.code, whole.retryAfterMs, whole.resetCode, whole.load, "cause" in whole], ["quota_exceeded", 5, undefined, load, false]);
});

test("a signal ends a call in the worker, and rejects with its reason", async (t) => {
  const one = world();
  const { me, line } = await join(t, worker(one));
  for (const call of [(signal) => me.connect("never", { signal }), async (signal) => (await me.connect("peer")).waitDirect(60_000, { signal })]) {
    const stop = new AbortController();
    const calling = call(stop.signal);
    await line.call(0, "report");
    stop.abort(new Error("mine"));
    await assert.rejects(calling, { message: "mine" });
  }
});

test("a connection tells of its paths and its end, and its path is the newest known", async (t) => {
  const one = world();
  const tab = await join(t, worker(one));
  const connection = await tab.me.connect("peer");
  const other = one.sessions.get("peer");
  assert.deepEqual([connection.peerId, connection.path.path, connection.maxDatagramSize], ["peer", "relayed", 1120]);
  assert.equal(connection.attempts[0].endedMs, 7);
  const events = connection.paths();
  other.path = { path: "direct", rtt_ms: 1 };
  other.tell({ event: "path", path: "direct", reason: "better" });
  assert.equal((await events.next()).value.reason, "better");
  await settled(tab);
  assert.deepEqual(connection.path, { path: "direct", rttMs: 1 });
  // A round trip is measured without an event. Whoever looks again sees it.
  other.path = { path: "direct", rtt_ms: 2 };
  assert.equal(connection.path.rttMs, 1);
  await settled(tab);
  assert.equal(connection.path.rttMs, 2);
  other.end("connection_lost");
  assert.deepEqual((await events.next()).value, { event: "closed", code: "connection_lost" });
  assert.equal((await events.next()).done, true);
  assert.deepEqual(await connection.closed, { code: "connection_lost" });
  assert.equal(connection.path, undefined);
  assert.equal(await code(connection.open("echo/1")), "connection_lost");
  assert.equal((await connection.incomingStreams().next()).done, true);
  assert.equal((await connection.paths().next()).value.event, "closed");
});

test("an incoming connection goes to one tab: one that is seen, or else the oldest that waits", async (t) => {
  const one = world();
  const sharing = worker(one);
  const tabs = [await join(t, sharing, false), await join(t, sharing, false), await join(t, sharing, true)];
  assert.equal(one.incoming.waiting.size, 0, "the worker takes none while no tab waits");
  const waits = tabs.map(({ me }) => me.incoming().next());
  const got = (index) => waits[index].then(({ value }) => value.peerId);
  for (const tab of tabs) await settled(tab);
  one.incoming.push(session("first").raw());
  assert.equal(await got(2), "first");
  one.incoming.push(session("second").raw());
  assert.equal(await got(0), "second");
  const iterator = tabs[2].me.incoming();
  const late = iterator.next();
  await settled(tabs[2]);
  // The user looks at the tab in the middle now.
  tabs[2].see(false);
  tabs[1].see(true);
  await settled(tabs[1]);
  await settled(tabs[2]);
  one.incoming.push(session("third").raw());
  assert.equal(await got(1), "third");
  // One that waits no more leaves the next one to the others, and to the script of the worker.
  await iterator.return();
  assert.equal((await late).done, true);
  assert.equal(one.incoming.waiting.size, 0);
  one.incoming.push(session("fourth").raw());
  assert.equal((await tabs[0].me.incoming().next()).value.peerId, "fourth");
});

test("a tab that closes its connection leaves that of another tab with the same peer", async (t) => {
  const one = world();
  const sharing = worker(one);
  const [a, b] = [await join(t, sharing), await join(t, sharing)];
  const [mine, yours] = [await a.me.connect("peer"), await b.me.connect("peer")];
  const streams = [await mine.open("a/1"), await yours.open("b/1")];
  const readers = streams.map(({ readable }) => readable.getReader());
  const reading = code(readers[0].read());
  const accepting = mine.incomingStreams().next();
  await settled(a);
  await mine.close();
  const other = one.sessions.get("peer");
  assert.equal(other.code, undefined);
  assert.deepEqual(await mine.closed, { code: "connection_closed" });
  assert.equal(mine.path, undefined);
  assert.equal(await reading, "connection_closed");
  assert.equal((await accepting).done, true);
  assert.equal(await code(mine.open("a/1")), "connection_closed");
  assert.deepEqual(other.streams[0].log.slice(-2), [["stop", 0], ["reset", 0]]);
  // The other tab notices nothing.
  await streams[1].writable.getWriter().write(Uint8Array.of(5));
  assert.deepEqual([...(await readers[1].read()).value], [5]);
  assert.equal(yours.path.path, "relayed");
  await yours.close();
  assert.equal(other.code, "connection_closed");
});

test("a tab that leaves or crashes takes its own connections along, and the last one the peer", async (t) => {
  const [first, second] = [world(), world()];
  const sharing = worker(first, second);
  const tabs = [await join(t, sharing), await join(t, sharing), await join(t, sharing)];
  const names = ["a", "b", "c"];
  const connections = await Promise.all(tabs.map(({ me }, index) => me.connect(names[index])));
  const ends = () => names.map((name) => first.sessions.get(name).code);
  await tabs[0].me.close();
  assert.deepEqual(ends(), ["connection_closed", undefined, undefined]);
  assert.equal((await connections[0].closed).code, "connector_closed");
  assert.equal(await code(tabs[0].me.connect("d")), "connector_closed");
  assert.equal((await tabs[0].me.incoming().next()).done, true);
  const waits = tabs[1].me.incoming().next();
  await settled(tabs[1]);
  await tabs[1].crash();
  assert.deepEqual(ends(), ["connection_closed", "connection_closed", undefined]);
  assert.equal(first.incoming.waiting.size, 0);
  await waits;
  assert.equal(first.closes, 0);
  await tabs[2].me.close();
  await tabs[2].me.close();
  assert.equal(first.closes, 1);
  const next = await join(t, sharing);
  second.become("reachable");
  assert.equal((await next.me.connect("peer")).peerId, "peer");
  assert.equal(second.sessions.size, 1);
});

test("a worker says that it is there before it makes the peer", async (t) => {
  const { line } = approach(t, new Sharing(() => new Promise(() => {}), PRESENCE));
  const joining = line.call(0, "join", [true]);
  joining.catch(() => {});
  assert.deepEqual(await line.call(0, "greet"), { lock: PRESENCE.lock });
});

test("tabs that come while the peer is made share it, and what fails is tried again by the next one", async (t) => {
  const one = world();
  const sharing = worker(new ThroughlineError("no_relay", "no relay answers"), one);
  const failed = approach(t, sharing);
  assert.equal(await code(failed.line.call(0, "join", [true])), "no_relay");
  const both = await Promise.all([join(t, sharing), join(t, sharing)]);
  await both[0].me.close();
  assert.equal(one.closes, 0);
  await both[1].me.close();
  assert.equal(one.closes, 1);
  const wrong = approach(t, new Sharing(async () => ({}), PRESENCE));
  assert.equal(await code(wrong.line.call(0, "join", [true])), "invalid_config");
});

test("a tab that leaves before the peer is there leaves no peer behind", async (t) => {
  const one = world();
  let make;
  const sharing = new Sharing(() => new Promise((resolve) => (make = () => resolve({ raw: one.raw }))), PRESENCE);
  const { line, crash } = approach(t, sharing);
  const joining = code(line.call(0, "join", [true]));
  while (!make) await new Promise((resolve) => setImmediate(resolve));
  await crash();
  assert.equal(await joining, "connector_closed");
  make();
  while (!one.closes) await new Promise((resolve) => setImmediate(resolve));
});

test("a peer that its worker closes ends for its tabs, and the next tab gets another one", async (t) => {
  const [first, second] = [world(), world()];
  const sharing = worker(first, second);
  const old = await join(t, sharing);
  const connection = await old.me.connect("peer");
  await first.raw.close();
  assert.equal((await connection.closed).code, "connector_closed");
  assert.equal((await old.me.incoming().next()).done, true);
  const young = await join(t, sharing);
  await young.me.connect("peer");
  assert.deepEqual([first.sessions.size, second.sessions.size], [1, 1]);
  await old.me.close();
  assert.deepEqual([first.closes, second.closes], [2, 0]);
});

test("datagrams wait for a slow worker, the newest of them, and say what is wrong at once", async (t) => {
  const one = world();
  const tab = await join(t, worker(one));
  const connection = await tab.me.connect("peer");
  const other = one.sessions.get("peer");
  let go;
  const gate = new Promise((resolve) => (go = resolve));
  other.sends = () => gate;
  const kept = Uint8Array.of(0);
  for (let number = 0; number < 1000; number++) connection.sendDatagram(((kept[0] = number % 256), kept));
  go();
  while (other.datagrams.length < 320) await settled(tab);
  await settled(tab);
  // The first were on their way, and of the others the last have taken the places of the oldest.
  const expected = [...Array(64).keys(), ...Array.from({ length: 256 }, (_, at) => 744 + at)].map((number) => number % 256);
  assert.deepEqual(other.datagrams, expected);
  assert.throws(() => connection.sendDatagram(new Uint8Array(1121)), { code: "limit_exceeded", message: /1121 bytes.* 1120/ });
  other.path = { path: "relayed" };
  const events = connection.paths();
  other.tell({ event: "datagram_size" });
  await events.next();
  assert.throws(() => connection.sendDatagram(kept), { code: "unsupported" });
  other.end("connection_lost");
  await connection.closed;
  assert.throws(() => connection.sendDatagram(kept), { code: "connection_lost" });
});

test("a room is one tab's, with its members and what changes", async (t) => {
  const one = world();
  const sharing = worker(one);
  const [a, b] = [await join(t, sharing), await join(t, sharing)];
  const room = await a.me.join("lobby", { application: "app", secret: "s", data: "me" });
  const [made] = one.rooms;
  assert.deepEqual([made.name, made.application, made.secret, String.fromCharCode(...made.data)], ["lobby", "app", "s", "me"]);
  assert.deepEqual(room.members(), [{ id: "a", data: Uint8Array.of(1) }]);
  assert.equal(await code(b.me.join("lobby", { application: "app", secret: "s" })), "limit_exceeded");
  await b.me.join("lobby", { application: "other" });
  for (const change of [["joined", "a", Uint8Array.of(1)], ["joined", "b", Uint8Array.of(2)], ["changed", "b", Uint8Array.of(3)], ["joined", "c", Uint8Array.of(4)], ["left", "c"]]) {
    made.changes.push(change);
  }
  while (made.changes.waiting.size === 0 || room.members().length !== 2) await settled(a);
  assert.deepEqual(room.members().map(({ id, data }) => [id, data[0]]), [["a", 1], ["b", 3]]);
  const events = room[Symbol.asyncIterator]();
  // What was not read in time has become one.
  assert.deepEqual((await events.next()).value, { type: "joined", id: "a", data: Uint8Array.of(1) });
  assert.deepEqual((await events.next()).value, { type: "joined", id: "b", data: Uint8Array.of(3) });
  made.changes.push(["left", "a"]);
  assert.deepEqual((await events.next()).value, { type: "left", id: "a" });
  room.show("new");
  assert.throws(() => room.show("x".repeat(1025)), { code: "invalid_config" });
  assert.equal((await room.connect("b")).peerId, "b");
  assert.deepEqual(made.shown, [[110, 101, 119]]);
  room.leave();
  assert.equal((await events.next()).done, true);
  await settled(a);
  assert.equal(made.left, 1);
  // Another tab may enter now, and what it has entered it leaves when it closes.
  await b.me.join("lobby", { application: "app", secret: "s" });
  await b.me.close();
  assert.deepEqual(one.rooms.map(({ left }) => left), [1, 1, 1]);
});

test("a listener that is slow misses the oldest events, and learns how many", async () => {
  const feed = new Feed(2, (missed) => ({ missed }));
  const [slow, quick] = [feed.listen(), feed.listen()];
  const next = quick.next();
  for (const number of [1, 2, 3, 4]) feed.push(number);
  assert.deepEqual(await next, { missed: 2 }, "one that waits is as slow, if all comes at once");
  feed.end();
  const all = [];
  for (let value; (value = await slow.next()) !== undefined; ) all.push(value);
  assert.deepEqual(all, [{ missed: 2 }, 3, 4]);
});

test("tabs, what a tab has, and its calls are bounded, and another tab goes on", async (t) => {
  const one = world();
  const sharing = worker(one);
  const [busy, quiet] = [await join(t, sharing), await join(t, sharing)];
  const connection = await busy.me.connect("peer");
  // The connector and the connection have a handle each.
  const streams = [];
  for (let at = 2; at < MAX_HANDLES + 1; at++) streams.push(connection.open("echo/1"));
  const opened = await Promise.all(streams);
  assert.equal(await code(connection.open("echo/1")), "limit_exceeded");
  const [{ readable, writable }] = opened;
  await writable.getWriter().close();
  for await (const _ of readable);
  await connection.open("echo/1");
  assert.equal((await quiet.me.connect("peer")).peerId, "peer");
  // Two calls wait for what the connector says, and one for an event of the connection.
  const waits = Array.from({ length: MAX_CALLS - 3 }, () => code(busy.me.connect("never", {})).catch(() => {}));
  assert.equal(await code(busy.me.report()), "limit_exceeded");
  await quiet.me.report();
  await busy.crash();
  await Promise.all(waits);
  const more = [];
  for (let at = 1; at < MAX_TABS; at++) more.push(await join(t, sharing));
  assert.equal(await code(approach(t, sharing).line.call(0, "join", [true])), "limit_exceeded");
});
