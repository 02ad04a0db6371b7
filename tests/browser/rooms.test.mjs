// Rooms and meshes of pages and of a native program, which is the example `room`.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { launch, open, root, serve } from "./harness.mjs";

const limit = { timeout: 120_000 };
const secret = "5f0c8a63b1d94e27";
const program = `${process.env.CARGO_TARGET_DIR ?? `${root}target`}/debug/examples/room`;
if (!existsSync(program)) throw new Error(`${program} is missing; run: cargo build --all-features --examples`);

/** Starts the native program, and resolves when it is in the room. */
async function native(t, relay, room, name) {
  const env = { ...process.env, SECRET: secret };
  const child = spawn(program, [relay, room, name], { env, stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(child, "exit");
  const lines = [];
  const waiting = new Set();
  createInterface({ input: child.stdout }).on("line", (line) => {
    lines.push(line);
    for (const check of waiting) check();
  });
  exited.then(() => waiting.forEach((check) => check()));
  /** Resolves with the first line that begins with `start`. */
  const line = (start) =>
    new Promise((resolve, reject) => {
      const check = () => {
        const found = lines.find((line) => line.startsWith(start));
        if (!found && child.exitCode === null) return;
        waiting.delete(check);
        if (found) resolve(found);
        else reject(new Error(`it has exited before "${start}":\n${lines.join("\n")}`));
      };
      waiting.add(check);
      check();
    });
  const leave = () => {
    child.stdin.end();
    return exited;
  };
  t.after(() => {
    if (child.exitCode === null) child.kill();
    return exited;
  });
  const id = (await line("in the room as ")).split(" ").at(-1);
  return { id, line, leave, say: (text) => child.stdin.write(`${text}\n`) };
}

/** Opens a page with a peer of its own. */
async function member(t, browser, relay) {
  const page = await open(t, browser, `${relay.http}/peer.html`);
  const { peerId } = await page.evaluate((options) => peer.start(options), { relays: [relay.relay] });
  return { page, id: peerId };
}

/** Resolves when a page has seen this. */
const sees = ({ page }, type, id, text) =>
  page.waitForFunction(
    ([type, id, text]) => peer.held.seen.some((seen) => seen.type === type && seen.id === id && (text === undefined || seen.text === text)),
    [type, id, text],
  );

test("two pages and a program see each other come, change and go in a room, and connect", limit, async (t) => {
  const relay = await serve(t);
  const browser = await launch(t);
  const [ada, bob, eve] = await Promise.all([1, 2, 3].map(() => member(t, browser, relay)));
  const enter = ({ page }, data, key = secret) =>
    page.evaluate(([secret, data]) => peer.enter("tea party", { secret, data }), [key, data]);
  await enter(ada, "Ada");
  await enter(eve, "Eve", "a guess");
  await enter(bob, "Bob");
  const nat = await native(t, relay.relay, "tea party", "Nat");
  const all = [[ada, "Ada"], [bob, "Bob"], [nat, "Nat"]];
  for (const here of [ada, bob]) {
    for (const [other, name] of all) if (other !== here) await sees(here, "joined", other.id, name);
  }

  await ada.page.evaluate(() => peer.held.room.show("Ada, away"));
  await sees(bob, "changed", ada.id, "Ada, away");

  for (const other of [bob, nat]) {
    const met = await ada.page.evaluate(async (id) => (await peer.held.room.connect(id)).peerId, other.id);
    assert.equal(met, other.id);
  }

  // Whoever does not leave is seen for half a minute.
  const began = performance.now();
  await bob.page.evaluate(() => peer.held.room.leave());
  await sees(ada, "left", bob.id);
  await nat.leave();
  await sees(ada, "left", nat.id);
  const took = performance.now() - began;
  assert.ok(took < 10_000, `${took} ms`);
  assert.deepEqual(await ada.page.evaluate(() => peer.held.room.members()), []);

  const outside = await eve.page.evaluate(() => [peer.held.seen, peer.held.room.members()]);
  assert.deepEqual(outside, [[], []], "who does not know the secret sees nobody");
});

test("a mesh of two pages and a program carries what one says to all others", limit, async (t) => {
  const relay = await serve(t);
  const browser = await launch(t);
  const nat = await native(t, relay.relay, "chat", "Nat");
  const [ada, bob] = await Promise.all([1, 2].map(() => member(t, browser, relay)));
  for (const [{ page }, data] of [[ada, "Ada"], [bob, "Bob"]]) {
    await page.evaluate(([secret, data]) => peer.mesh("chat", { secret, data }), [secret, data]);
  }
  for (const [here, others] of [[ada, [bob, nat]], [bob, [ada, nat]]]) {
    for (const other of others) await sees(here, "joined", other.id);
  }
  await Promise.all([nat.line(`joined ${ada.id} Ada`), nat.line(`joined ${bob.id} Bob`)]);

  await ada.page.evaluate(() => peer.held.mesh.broadcast("hello"));
  await sees(bob, "message", ada.id, "hello");
  await nat.line(`message ${ada.id} hello`);
  nat.say("good day");
  await sees(ada, "message", nat.id, "good day");
  await sees(bob, "message", nat.id, "good day");

  // A datagram may be lost, so it is sent until it has arrived.
  await ada.page.evaluate(() => {
    peer.held.ticks = setInterval(() => peer.held.mesh.sendDatagram(new TextEncoder().encode("tick")), 20);
  });
  await sees(bob, "datagram", ada.id, "tick");
  await ada.page.evaluate(() => clearInterval(peer.held.ticks));

  // What is more than the queue and the windows hold waits until it is taken, and arrives in order.
  const count = 200;
  await ada.page.evaluate(async ([count, id]) => {
    const message = new Uint8Array(60_000).fill(120);
    for (let number = 0; number < count; number++) {
      new DataView(message.buffer).setUint8(0, 48 + (number % 10));
      await peer.held.mesh.send(id, message);
    }
  }, [count, bob.id]);
  await bob.page.waitForFunction((count) => peer.held.seen.filter(({ text }) => text?.length === 60_000).length === count, count);
  const order = await bob.page.evaluate(() => peer.held.seen.flatMap(({ text }) => (text?.length === 60_000 ? [Number(text[0])] : [])));
  assert.deepEqual(order, Array.from({ length: count }, (_, number) => number % 10));
  const long = await ada.page.evaluate(() => peer.outcome(() => peer.held.mesh.broadcast(new Uint8Array(65_537))));
  assert.equal(long.error.code, "limit_exceeded");
  const second = await ada.page.evaluate(() => peer.outcome(() => peer.mesh("another", {})));
  assert.equal(second.error.code, "limit_exceeded", "a connector is in one mesh at a time");

  await ada.page.evaluate(() => peer.held.mesh.room.show("Ada, away"));
  await nat.line(`changed ${ada.id} Ada, away`);
  await bob.page.evaluate(() => peer.held.mesh.leave());
  await sees(ada, "left", bob.id);
  await nat.line(`left ${bob.id}`);
  assert.deepEqual(await ada.page.evaluate(() => peer.held.mesh.peers), [nat.id]);

  // What the mesh waited for is left for whoever asks next, and so it is with every iterator that is returned.
  await bob.page.evaluate(() => {
    peer.held.incoming = peer.held.me.incoming().next();
  });
  const eve = await member(t, browser, relay);
  await eve.page.evaluate((id) => peer.connect(id), bob.id);
  const came = await bob.page.evaluate(async () => {
    const { value: connection } = await peer.held.incoming;
    const returned = connection.incomingStreams();
    const waits = returned.next();
    await returned.return();
    peer.held.stream = connection.incomingStreams().next();
    return [connection.peerId, (await waits).done];
  });
  assert.deepEqual(came, [eve.id, true]);
  await eve.page.evaluate(() => peer.held.connection.open("app/1").then(() => {}));
  assert.equal(await bob.page.evaluate(async () => (await peer.held.stream).value.protocol), "app/1");
});
