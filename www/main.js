// The page: one Connector, the peers that connect to it, and the peers that it connects to.
import { Connector } from "/npm/dist/index.js";
import { ConnectionView } from "./connection.js";
import { copyButtons, find, shortId, showFault, size } from "./dom.js";
import { log, saveLog } from "./log.js";
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
    connect(find("#connect-ticket").value.trim(), "Peer");
  });
  const native = find("#connect-native");
  native.disabled = !demo;
  native.addEventListener("click", () => connect(demo.ticket, "Native peer"));
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
}

async function connect(ticket, title) {
  find("#fault").hidden = true;
  const start = performance.now();
  try {
    const connection = await connector.connect(ticket);
    log("connected", { peer: shortId(connection.peerId), path: connection.path?.path, ms: Math.round(performance.now() - start) });
    new ConnectionView(connection, title);
  } catch (error) {
    fail(error);
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
  if (connector) find("#report").textContent = JSON.stringify(await connector.report(), null, 2);
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
