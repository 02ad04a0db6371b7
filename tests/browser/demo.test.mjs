// The demo page as visitors use it, with `throughline demo`: a room, the native peer and a second tab.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { launch, Program, root, temporary } from "./harness.mjs";

const axe = fileURLToPath(import.meta.resolve("axe-core/axe.min.js"));
/** Pictures of the page go into this folder, for people to look at. */
const pictures = process.env.SCREENSHOTS;

/** Looks at the page in each size and scheme: axe finds nothing, and nothing is wider than the screen. */
async function look(page, name) {
  for (const [width, height] of [[320, 640], [1280, 900], [3840, 2160]]) {
    for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize({ width, height });
      await page.emulateMedia({ colorScheme });
      const { violations } = await page.evaluate(() => window.axe.run());
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target).join(", ")}`);
      assert.deepEqual(found, [], `${name}, ${width} px, ${colorScheme}`);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.equal(wide, 0, `${name}: wider than ${width} px`);
      if (!pictures) continue;
      mkdirSync(pictures, { recursive: true });
      await page.screenshot({ path: join(pictures, `${name}-${width}-${colorScheme}.png`), fullPage: true });
    }
  }
  await page.setViewportSize({ width: 1280, height: 900 });
}

/**
 * Starts the demo and a browser. `visit` opens a link as another visitor, whose page first runs `before`, and is
 * `without` one of its files.
 */
async function start(t) {
  const demo = new Program("demo", "--port", "0", "--data", temporary(t), "--www", `${root}www`, "--npm", `${root}js`);
  t.after(() => demo.stop());
  const { url } = await demo.event("demo");
  const browser = await launch(t);
  const faults = [];
  const watch = (page) => page.on("pageerror", (error) => faults.push(error.message));
  const visit = async (link = url, { before = () => {}, without } = {}) => {
    const context = await browser.newContext();
    if (without) await context.route(without, (route) => route.abort());
    const page = watch(await context.newPage());
    await page.addInitScript(before);
    await page.goto(link);
    await page.addScriptTag({ path: axe });
    return page;
  };
  return { demo, url, watch, visit, faults };
}

const says = async (card, text) => {
  await card.getByLabel("Message").fill(text);
  await card.getByRole("button", { name: "Send" }).click();
};

const link = (page) => page.locator("#room-link").textContent();
const rename = async (page, name) => {
  await page.getByLabel("You, as the others see you").fill(name);
  await page.keyboard.press("Enter");
};
const member = (page, name) => page.locator(".member:not(.me)", { hasText: name });

test("visitors of one room see each other, and connect by a click", { timeout: 300_000 }, async (t) => {
  const { demo, url, visit, faults } = await start(t);
  const ada = await visit();
  const requests = [];
  ada.on("request", (request) => requests.push(request.url(), JSON.stringify(request.headers())));

  await t.test("a visitor who is alone is told what to do", async () => {
    await ada.getByText("Nobody else is here yet").waitFor();
    await ada.locator("#qr svg").waitFor();
    assert.match(ada.url(), /#room=[a-z]+-[a-z]+\.[\w-]{22}$/);
    assert.equal(await link(ada), ada.url());
    await look(ada, "alone");
  });

  const bob = await visit(await link(ada));

  await t.test("they see each other, and a change of a name", async () => {
    await Promise.all([ada, bob].map((page) => page.getByText("you and 1 other").waitFor()));
    await ada.locator("#news", { hasText: "is here." }).waitFor();
    await rename(bob, "Bob\u202e's phone");
    await member(ada, "Bob 's phone").waitFor();
    await rename(ada, "Ada");
    await member(bob, "Ada").waitFor();
    const own = await bob.locator("#own-name").inputValue();
    await bob.reload();
    assert.equal(await bob.locator("#own-name").inputValue(), own, "the name outlives a reload");
    await ada.getByText("you and 1 other", { exact: true }).waitFor();
    await member(bob, "Ada").waitFor();
    await look(ada, "room");
  });

  await t.test("both connect at the same time, and each has one card", async () => {
    // One of the buttons may be gone as soon as the other was clicked, so nothing waits for it to be seen.
    const click = (page, name) => member(page, name).getByRole("button", { name: `Connect to ${name}` }).evaluate((button) => button.click());
    await Promise.all([click(ada, "Bob"), click(bob, "Ada")]);
    const cards = [ada.locator(".connection", { hasText: "Bob" }), bob.locator(".connection", { hasText: "Ada" })];
    await Promise.all(cards.map((card) => card.locator('.badge[data-path="direct"]').waitFor()));
    assert.deepEqual([await ada.locator(".connection").count(), await bob.locator(".connection").count()], [1, 1]);
    await says(cards[0], "Hello Bob");
    await cards[1].getByText("Hello Bob").waitFor();
    await says(cards[1], "Hello Ada");
    await cards[0].getByText("Hello Ada").waitFor();
    await rename(bob, "Robert");
    await ada.locator(".connection h2", { hasText: "Robert" }).waitFor();
    await member(ada, "Robert").getByRole("button", { name: "Show the connection to Robert" }).click();
    assert.equal(await ada.evaluate(() => document.activeElement.textContent), "Robert");
    // What is read aloud: who comes and leaves, and the chat.
    const live = await ada.locator("[aria-live], [role=status], [role=alert], [role=log]").evaluateAll((all) => all.map((one) => one.id || one.className));
    assert.deepEqual(live, ["news", "lines"]);
    await look(ada, "connected");
  });

  await t.test("who leaves is gone at once", async () => {
    await bob.close({ runBeforeUnload: true });
    await ada.locator("#news", { hasText: "Robert has left." }).waitFor({ timeout: 5_000 });
    assert.equal(await ada.locator(".member:not(.me)").count(), 0);
    await ada.locator(".connection", { hasText: "has left the room" }).waitFor();
    await ada.getByText("Nobody else is here yet").waitFor();
  });

  await t.test("another room is empty, and a link that was cut says so", async () => {
    const carol = await visit(`${(await link(ada)).slice(0, -1)}`);
    await carol.getByText("Nobody else is here yet").waitFor();
    await carol.getByText("The link that you opened is incomplete").waitFor();
    assert.notEqual(await link(carol), await link(ada));
    assert.ok(await ada.getByText("only you").isVisible());
    const whole = await link(ada);
    await carol.evaluate((whole) => (location.href = whole), whole);
    await carol.getByText("you and 1 other").waitFor();
    assert.equal(await link(carol), whole);
    await carol.context().close();
  });

  await t.test("what keeps a visitor out is said beside the room", async () => {
    const fast = () => {
      const now = Date.now;
      Date.now = () => now() + 3_600_000;
    };
    const late = await visit(url, { before: fast });
    await late.locator("#room-fault", { hasText: "Set the clock of this device" }).waitFor();
    await look(late, "clock");
    const noRelay = () => localStorage.setItem("throughline.settings", JSON.stringify({ relays: ["http://127.0.0.1:9"] }));
    const lost = await visit(url, { before: noRelay });
    await lost.locator("#room-fault", { hasText: "no_relay" }).waitFor({ timeout: 60_000 });
    await look(lost, "no-relay");
    await lost.getByRole("button", { name: "Try again" }).click();
    await lost.locator("#room-fault", { hasText: "no_relay" }).waitFor({ timeout: 60_000 });
    const broken = await visit(url, { without: "**/words.js" });
    await broken.getByText("This page has not loaded. Reload it.").waitFor();
    await Promise.all([late, lost, broken].map((page) => page.context().close()));
  });

  await t.test("visitors from one address come at once", async () => {
    const there = await link(ada);
    const others = await Promise.all(Array.from({ length: 5 }, () => visit(there)));
    await Promise.all([ada, ...others].map((page) => page.getByText("you and 5 others").waitFor()));
    await look(ada, "many");
    await Promise.all(others.map((page) => page.context().close()));
    await ada.getByText("only you").waitFor({ timeout: 40_000 });
  });

  const secret = new URL(await link(ada)).hash.split(".").at(-1);
  assert.deepEqual(requests.filter((request) => request.includes(secret)), [], "the secret is sent to no server");

  await t.test("a relay that stops is missed", async () => {
    await demo.stop();
    await ada.getByText("The relay does not answer").waitFor({ timeout: 60_000 });
    await look(ada, "lost");
  });

  assert.deepEqual(faults, []);
});

test("the demo page talks to the native peer and to a second tab", { timeout: 300_000 }, async (t) => {
  const { demo, url, watch, visit, faults } = await start(t);
  const page = await visit();
  await page.waitForSelector('#status[data-state="ready"]');
  assert.equal(await page.locator("#settings-relays").inputValue(), new URL(url).origin, "one address says everything");
  assert.match(await page.textContent("#invite"), /^http:.*#connect=tl1/);

  await t.test("the native peer, directly", async () => {
    await page.click("#connect-native");
    const card = page.locator(".connection").first();
    await card.locator('.badge[data-path="direct"]').waitFor();
    await card.locator(".timeline .whole .bar").first().waitFor();
    await card.locator(".rtt:not(:empty)").waitFor();

    const file = { name: "sample.bin", mimeType: "application/octet-stream", buffer: randomBytes(5 << 20) };
    await card.locator('.drop input[type="file"]').setInputFiles(file);
    await card.locator('.transfers [data-state="done"]').waitFor();
    assert.match(await card.locator(".transfers .verdict").textContent(), /SHA-256 equal at both ends: [0-9a-f]{64}/);

    await card.getByRole("button", { name: "Download for 3 s" }).click();
    await card.getByText(/^Received [0-9.]+ Mbit\/s, direct$/).waitFor();
    await page.locator("#diagnosis summary").click();
    await page.getByText("Every peer with this page's ticket can reach it").waitFor();
    await look(page, "direct");
  });

  await t.test("a transfer is cancelled, and those after it go on", async () => {
    const card = page.locator(".connection").first();
    const big = { name: "big.bin", mimeType: "application/octet-stream", buffer: Buffer.alloc(20 << 20) };
    const small = { name: "small.txt", mimeType: "text/plain", buffer: Buffer.from("small") };
    await card.locator('.drop input[type="file"]').setInputFiles([big, small]);
    const row = card.locator(".transfers li", { hasText: "big.bin" });
    await row.getByRole("button", { name: "Cancel" }).click();
    await row.getByText("cancelled").waitFor();
    await card.locator('.transfers li[data-state="done"]', { hasText: "small.txt" }).waitFor();
  });

  await t.test("a second tab, with chat and a file", async () => {
    const opening = page.context().waitForEvent("page");
    await page.click("#second-tab");
    const tab = watch(await opening);
    const ours = page.locator(".connection", { hasText: "From" });
    const theirs = tab.locator(".connection").first();
    await Promise.all([ours, theirs].map((card) => card.locator('.badge[data-path="direct"]').waitFor()));

    await says(theirs, "Hello from the second tab");
    await ours.getByText("Hello from the second tab").waitFor();
    await says(ours, "Hello back");
    await theirs.getByText("Hello back").waitFor();

    const file = { name: "photo.jpg", mimeType: "image/jpeg", buffer: randomBytes(2 << 20) };
    await theirs.locator('.drop input[type="file"]').setInputFiles(file);
    const verdicts = await Promise.all(
      [ours, theirs].map(async (card) => {
        await card.locator('.transfers [data-state="done"]').waitFor();
        return card.locator(".transfers .verdict").textContent();
      }),
    );
    assert.equal(verdicts[0], verdicts[1]);

    // A page that closes may not manage to tell its peer. Then the peer waits for the resume timeout of
    // 2 min, after the 10 s that the death of a path may take.
    await tab.close();
    await ours.locator('.badge[data-path="closed"]').waitFor({ timeout: 150_000 });
    await look(page, "closed");
    await ours.locator(".dismiss").click();
    await ours.waitFor({ state: "detached" });
  });

  await t.test("a peer that is gone is waited for until the visitor cancels, or fails with its attempts", async () => {
    const relay = new Program("listen", "--no-port-mapping", "--relay", (await demo.event("ready")).addresses[0], "--echo");
    const { ticket } = await relay.event("ready");
    await relay.stop();
    await page.fill("#connect-ticket", ticket);
    await page.click("#connect-submit");
    await page.locator("#connect .fault details summary").click();
    const ways = page.locator("#connect .fault li");
    // The circuit is tried twice, because a peer that has moved comes back soon.
    await ways.getByText(/^relay circuit, (2 tries, )?after/).waitFor();
    assert.equal(await ways.filter({ hasText: "relay circuit" }).count(), 1, "each way has one line");
    await look(page, "unreachable");
  });

  await t.test("the page says what is wrong with a bad ticket", async () => {
    await page.fill("#connect-ticket", "tl1nonsense!");
    await page.click("#connect-submit");
    const fault = page.locator("#connect .fault:not([hidden])");
    assert.match(await fault.textContent(), /invalid_ticket/);
    assert.ok(await fault.evaluate((fault) => fault === document.activeElement));
    await look(page, "fault");
    await fault.getByRole("button", { name: "Dismiss" }).click();
    assert.equal(await page.evaluate(() => document.activeElement.id), "connect-submit");
  });

  assert.deepEqual(faults, []);
});
