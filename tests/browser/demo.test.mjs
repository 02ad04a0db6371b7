// The demo page as a visitor uses it, with `throughline demo`, the native peer and a second tab.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { launch, Program, root, temporary } from "./harness.mjs";

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
  });

  await t.test("the page says what is wrong with a bad ticket", async () => {
    await page.fill("#connect-ticket", "tl1nonsense!");
    await page.click("#connect-submit");
    assert.match(await page.locator("#fault:not([hidden])").textContent(), /invalid_ticket/);
  });

  assert.deepEqual(faults, []);
});
