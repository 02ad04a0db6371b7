// Pages on a relay that admits only the holders of its operator's tokens.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { launch, open, serve, temporary, token } from "./harness.mjs";

const limit = { timeout: 120_000 };

test("a page needs a token, as text or by a function, and gets TURN with it", limit, async (t) => {
  const home = temporary(t);
  const key = ["--key", join(home, "key.pem")];
  const { key: known } = await token(t, "key", ...key);
  const settings = join(home, "relay.toml");
  writeFileSync(settings, `[access]\nmode = "token"\nkeys = ["${known}"]\n`);
  const relay = await serve(t, undefined, "--config", settings);
  const { token: alice } = await token(t, "new", "--for", "alice", ...key);
  const { token: over } = await token(t, "new", "--for", "bob", "--quota", "1B/day", ...key);

  const browser = await launch(t);
  const url = `${relay.http}/peer.html`;
  const options = { relays: [relay.relay], protocols: ["echo/1"] };
  const refused = await open(t, browser, url);
  const none = await refused.evaluate((options) => peer.outcome(() => peer.start(options)), options);
  assert.equal(none.error.code, "access_denied");

  const echo = await open(t, browser, url);
  const { ticket } = await echo.evaluate((options) => peer.start(options), { ...options, relayTokens: alice });
  echo.evaluate(() => peer.serveEcho()).catch(() => {}); // ends with the page
  const page = await open(t, browser, url);
  const calls = await page.evaluate(async ([options, token]) => {
    let calls = 0;
    const relayTokens = async () => {
      calls += 1;
      return token;
    };
    await peer.start({ ...options, relayTokens });
    return calls;
  }, [options, alice]);
  assert.equal(calls, 1);
  await page.evaluate((ticket) => peer.connect(ticket), ticket);
  const { bytes, sent, received } = await page.evaluate(() => peer.echoed("echo/1", 70_000));
  assert.deepEqual([bytes, received], [70_000, sent]);
  const strategies = await page.evaluate(async () => (await peer.held.me.report()).strategies);
  assert.ok(strategies.includes("turn"), strategies.join());

  // A page that stays on the relay uses up its quota with its first bytes.
  const poor = { ...options, relayTokens: over, direct: false };
  await refused.evaluate((options) => peer.start(options), poor);
  const cut = await refused.evaluate((ticket) => peer.outcome(() => peer.connect(ticket)), ticket);
  assert.ok(cut.error, "the circuit ends");
  const { error } = await refused.evaluate((options) => peer.outcome(() => peer.start(options)), poor);
  assert.equal(error.code, "quota_exceeded");
  assert.ok(error.retryAfterMs > 0, `${error.retryAfterMs}`);
});
