// Compares our streams, between two pages and between a page and a native program, with an
// RTCDataChannel between two pages of the same browser.
import { listen, open } from "../../tests/browser/harness.mjs";
import { inTurn, table } from "./measure.mjs";

const MS = 2000;
const ROUND_TRIPS = 300;
const SMALL = 32;
/** The largest frame of libp2p, and the largest message that our native peers and Chromium take. */
const [FRAME, LARGE] = [16_384, 65_536];

export async function channels(t, relay, browser, rounds) {
  const page = () => open(t, browser, `${relay.http}/bench.html`, "ready");
  const config = { relays: [relay.relay], iceServers: relay.iceServers };
  const connected = async (ticket) => {
    const dialler = await page();
    await dialler.evaluate((config) => peer.start(config), config);
    await dialler.evaluate((ticket) => peer.connect(ticket), ticket);
    await dialler.evaluate(() => peer.path("direct"));
    return dialler;
  };

  const [caller, callee] = await Promise.all([page(), page()]);
  await caller.evaluate((answer) => bare.accept(answer), await callee.evaluate((offer) => bare.answer(offer), await caller.evaluate(() => bare.offer())));
  const listener = await page();
  const { ticket } = await listener.evaluate((config) => peer.start(config), config);
  listener.evaluate(() => ours.serve()).catch(() => {}); // ends with the page
  const native = await listen(t, relay, "--echo");
  const [toPage, toNative] = [await connected(ticket), await connected(native.ticket)];

  const measured = (page, sdk, size) => async () => ({
    up: await page.evaluate(([sdk, ...args]) => window[sdk].upload(...args), [sdk, MS, size]),
    down: await page.evaluate(([sdk, ...args]) => window[sdk].download(...args), [sdk, MS, size]),
    trip: await page.evaluate(([sdk, ...args]) => window[sdk].roundTrip(...args), [sdk, ROUND_TRIPS, SMALL]),
  });
  const bareName = "RTCDataChannel, page and page, 16 KiB messages";
  const results = await inTurn(rounds, {
    [bareName]: measured(caller, "bare", FRAME),
    "RTCDataChannel, page and page, 64 KiB messages": measured(caller, "bare", LARGE),
    "throughline, page and page": measured(toPage, "ours"),
    "throughline, page and program": measured(toNative, "ours"),
  });
  return table(results, bareName, {
    up: { heading: "there, Mbit/s", digits: 0, more: true },
    down: { heading: "back, Mbit/s", digits: 0, more: true },
    trip: { heading: `round trip of ${SMALL} bytes, ms`, digits: 2 },
  });
}
