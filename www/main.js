// The page: one Connector, the peers that connect to it, and the peers that it connects to.
import { Connector } from "/npm/dist/index.js";
import { ConnectionView } from "./connection.js";
import { copyButtons, el, find, hideFault, shortId, showFault, size } from "./dom.js";
import { log, saveLog } from "./log.js";
import { invite } from "./qr.js";
import { plain } from "./report.js";
import { settings, showSettings } from "./settings.js";

const restart = () => location.reload();
let connector;
let program = "throughline";

async function main() {
  copyButtons(document);
  find("#log-save").addEventListener("click", saveLog);
  find("#hide-addresses").addEventListener("change", ({ target }) => document.body.classList.toggle("hide-addresses", target.checked));
  find("#diagnosis").addEventListener("toggle", report);
  find("#report-refresh").addEventListener("click", report);

  const { demo } = await (await fetch("/config.json")).json();
  showSettings(restart);
  const start = performance.now();
  connector = await Connector.create(settings());
  log("ready", { peer: connector.peerId, ms: Math.round(performance.now() - start) });
  showReady(demo);
  connector.addEventListener("status", showStatus);
  serve();
  addEventListener("pagehide", () => connector.close());

  const invited = new URLSearchParams(location.hash.slice(1)).get("connect");
  if (invited) {
    history.replaceState(null, "", location.pathname);
    await connect(invited, "Tab");
  }
}

function showReady(demo) {
  find("#peer-id").textContent = connector.peerId;
  program = demo?.program ?? program;
  showStatus();
  const wasm = performance.getEntriesByType("resource").find(({ name }) => name.endsWith("_bg.wasm"));
  if (wasm) find("#build").textContent = `WebAssembly: ${size(wasm.decodedBodySize)}`;
  find("#second-tab").removeAttribute("aria-disabled");
  find("#connect-submit").disabled = false;
  find("#connect-form").addEventListener("submit", (event) => {
    event.preventDefault();
    connect(find("#connect-ticket").value, "Peer", find("#connect-submit"));
  });
  const native = find("#connect-native");
  native.disabled = !demo;
  native.addEventListener("click", () => connect(demo.ticket, "Native peer", native));
  find("#connect-cancel").addEventListener("click", () => attempt?.abort());
}

/** Shows whether others can reach this page, and by which ticket. Both change with the network. */
function showStatus() {
  const { state, reason, ticket } = connector.status;
  const [pill, label] = { reachable: ["ready", "Reachable"], connecting: ["wait", "Connecting"] }[state] ?? ["bad", "Not reachable"];
  status(pill, label, reason);
  log("status", { state, reason, characters: ticket.length });
  find("#ticket").textContent = ticket;
  find("#terminal").textContent = `${program} connect ${ticket}`;
  find("#second-tab").href = `#connect=${ticket}`;
  invite(ticket);
}

let attempt;

/** Connects to the peer of `ticket`. What happens is shown beside `clicked`, which gets the focus back. */
async function connect(ticket, title, clicked) {
  attempt?.abort();
  const aborting = (attempt = new AbortController());
  hideFault(find("#fault"));
  const start = performance.now();
  const waiting = setInterval(() => say(`Connecting, ${Math.round((performance.now() - start) / 1000)} s`), 1000);
  const say = (text) => (find("#connecting span").textContent = text);
  find("#connecting").hidden = false;
  say("Connecting");
  try {
    const connection = await connector.connect(ticket, { signal: aborting.signal });
    log("connected", { peer: shortId(connection.peerId), path: connection.path?.path, ms: Math.round(performance.now() - start) });
    new ConnectionView(connection, title);
  } catch (error) {
    if (aborting.signal.aborted) clicked?.focus();
    else fail(error);
  } finally {
    clearInterval(waiting);
    if (attempt === aborting) find("#connecting").hidden = true;
  }
}

async function serve() {
  for await (const connection of connector.incoming()) {
    log("incoming", { peer: shortId(connection.peerId) });
    new ConnectionView(connection, "From");
  }
  status("bad", "Stopped");
}

async function report() {
  if (!connector) return;
  const report = await connector.report();
  find("#report").textContent = JSON.stringify(report, null, 2);
  find("#plain-report").replaceChildren(...plain(report).map((text) => el("li", {}, text)));
}

function status(state, text, why = "") {
  const pill = find("#status");
  pill.title = why;
  pill.dataset.state = state;
  pill.textContent = text;
}

function fail(error) {
  log("error", { code: error.code, message: error.message, attempts: error.attempts });
  showFault(find("#fault"), error);
}

main().catch((error) => {
  status("bad", "Not started");
  fail(error);
});
