// The demo page as a visitor uses it, with `throughline demo`, the native peer and a second tab.
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

test("the demo page talks to the native peer and to a second tab", { timeout: 300_000 }, async (t) => {
  const demo = new Program("demo", "--port", "0", "--data", temporary(t), "--www", `${root}www`, "--npm", `${root}js`);
  t.after(() => demo.stop());
  const { url } = await demo.event("demo");
  const browser = await launch(t);
  const context = await browser.newContext();
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.message));
  await page.goto(url);
  await page.waitForSelector('#status[data-state="ready"]');
  assert.equal(await page.locator("#settings-relays").inputValue(), new URL(url).origin, "one address says everything");
  await page.addScriptTag({ path: axe });

  await t.test("the page before there is a connection", async () => {
    await page.locator("#qr-details summary").click();
    await page.locator("#qr svg").waitFor();
    assert.match(await page.textContent("#invite"), /^http:.*#connect=tl1/);
    await look(page, "start");
  });

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
    // Only the state of the path and the chat are read aloud, and not each round trip.
    const live = await card.locator('[aria-live], [role="status"]').evaluateAll((all) => all.map((one) => one.querySelector(".rtt, figcaption")));
    assert.deepEqual([...new Set(live)], [null]);
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
    const opening = context.waitForEvent("page");
    await page.click("#second-tab");
    const tab = await opening;
    tab.on("pageerror", (error) => faults.push(error.message));
    const ours = page.locator(".connection", { hasText: "From" });
    const theirs = tab.locator(".connection").first();
    await Promise.all([ours, theirs].map((card) => card.locator('.badge[data-path="direct"]').waitFor()));

    const say = async (card, text) => {
      await card.getByLabel("Message").fill(text);
      await card.getByRole("button", { name: "Send" }).click();
    };
    await say(theirs, "Hello from the second tab");
    await ours.getByText("Hello from the second tab").waitFor();
    await say(ours, "Hello back");
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
    await page.getByText("relay circuit, after").first().waitFor();
    await look(page, "unreachable");
  });

  await t.test("the page says what is wrong with a bad ticket", async () => {
    await page.fill("#connect-ticket", "tl1nonsense!");
    await page.click("#connect-submit");
    const fault = page.locator("#connect .fault:not([hidden])");
    assert.match(await fault.textContent(), /invalid_ticket/);
    assert.equal(await page.evaluate(() => document.activeElement.id), "fault");
    await look(page, "fault");
    await fault.getByRole("button", { name: "Dismiss" }).click();
  });

  assert.deepEqual(faults, []);
});
