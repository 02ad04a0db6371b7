// A page that knows nothing of its relay but the address that it came from.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import { launch, listen, open, serve } from "./harness.mjs";

const limit = { timeout: 120_000 };

test("one address is enough for a page, and the page is told when its relay is gone", limit, async (t) => {
  const relay = await serve(t);
  const [native, browser] = await Promise.all([listen(t, { ...relay, relay: relay.http }, "--echo"), launch(t)]);
  const page = await open(t, browser, `${relay.http}/peer.html`);
  const { ticket } = await page.evaluate(() => peer.start({ relay: location.origin }));
  const status = await page.evaluate(() => peer.held.me.status);
  assert.equal(status.state, "reachable");
  assert.equal(status.ticket, ticket);
  assert.equal(status.relays[0].peerId, relay.peerId);
  assert.equal(status.relays[0].name, relay.http.replace("http://", ""));

  await page.evaluate((ticket) => peer.connect(ticket), native.ticket);
  await page.evaluate(() => peer.path("direct"));

  const told = page.evaluate(
    () =>
      new Promise((resolve) => {
        peer.held.me.addEventListener("status", ({ detail }) => {
          if (detail.state !== "reachable") resolve(detail);
        });
      }),
  );
  const first = await page.evaluate(async () => {
    for await (const status of peer.held.me.statusChanges()) return status.state;
  });
  assert.equal(first, "reachable", "the iterator begins with the present one");
  await relay.stop();
  const lost = await told;
  assert.ok(lost.ticket.length < ticket.length);
});

test("a page says what is wrong with the address of its relay", limit, async (t) => {
  const relay = await serve(t);
  const browser = await launch(t);
  const page = await open(t, browser, `${relay.http}/peer.html`);
  const answers = {
    "/none": (response) => response.writeHead(404).end(),
    "/elsewhere": (response) => response.writeHead(302, { location: "/" }).end(),
    "/huge": (response) => response.writeHead(200).end(" ".repeat(1_000_000)),
    "/other": (response) => response.writeHead(200).end("<html>"),
    "/silent": () => {},
  };
  let answer;
  const server = createServer((_, response) => {
    response.setHeader("access-control-allow-origin", "*");
    answers[answer](response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  t.after(() => server.closeAllConnections());
  const at = `127.0.0.1:${server.address().port}`;
  const tried = (relay) => page.evaluate((options) => peer.outcome(() => peer.start(options)), { relay, relayTimeoutMs: 1000 });
  for (const [path, why] of [
    ["/none", /status 404/],
    ["/elsewhere", /redirects/],
    ["/huge", /too long/],
    ["/other", /not that of a relay/],
    ["/silent", /no relay granted|in time/],
  ]) {
    answer = path;
    const { error } = await tried(at);
    assert.equal(error.code, "no_relay", path);
    assert.match(error.message, why);
  }
  const { error: pinned } = await tried(`${relay.http}/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN`);
  assert.match(pinned.message, /another relay is there/);
  const { error: plain } = await tried("http://relay.example.org");
  assert.equal(plain.code, "invalid_address");
});
