// The page: one Connector, the room that it is in, the peers that connect to it, and those that it connects to.
import { Connector } from "/npm/dist/index.js";
import { Attempt } from "./attempt.js";
import { show } from "./connections.js";
import { copyButtons, el, find, shortId, size } from "./dom.js";
import { keepRoom, newRoom, readFragment, roomLink, ticketLink } from "./link.js";
import { log, saveLog } from "./log.js";
import { invite } from "./qr.js";
import { plain } from "./report.js";
import { announce, RoomView } from "./room.js";
import { settings, showSettings } from "./settings.js";

const restart = () => location.reload();
const given = readFragment();
const here = given.room ?? newRoom();
const room = new RoomView(here);
const attempt = new Attempt(find("#connect-attempt"));
let connector;
let program = "throughline";

async function main() {
  keepRoom(here);
  invite(roomLink(here));
  find("#room-cut").hidden = !given.cut;
  copyButtons(document);
  find("#log-save").addEventListener("click", saveLog);
  find("#hide-addresses").addEventListener("change", ({ target }) => document.body.classList.toggle("hide-addresses", target.checked));
  find("#diagnosis").addEventListener("toggle", report);
  find("#report-refresh").addEventListener("click", report);
  showSettings(restart);

  const start = performance.now();
  const [created, demo] = await Promise.all([Connector.create(settings()), demoPeer()]);
  connector = created;
  log("ready", { peer: connector.peerId, ms: Math.round(performance.now() - start) });
  showReady(demo);
  connector.addEventListener("status", showStatus);
  serve();
  // A page that the browser brings back from its history has lost its connections.
  addEventListener("pagehide", () => connector.close());
  addEventListener("pageshow", ({ persisted }) => persisted && restart());
  room.enter(connector);
  if (given.ticket) connect(given.ticket, "Peer");
}

/** The native peer of `throughline demo`, if this is the page of one. */
async function demoPeer() {
  try {
    return (await (await fetch("/config.json")).json()).demo;
  } catch {
    return undefined;
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
}

/** Shows whether others can reach this page, and by which ticket. Both change with the network. */
function showStatus() {
  const { state, reason, ticket } = connector.status;
  const [pill, label] = { reachable: ["ready", "Reachable"], connecting: ["wait", "Connecting"] }[state] ?? ["bad", "Not reachable"];
  status(pill, label, reason);
  room.reachable = state === "reachable";
  log("status", { state, reason, characters: ticket.length });
  find("#ticket").textContent = ticket;
  find("#terminal").textContent = `${program} connect ${ticket}`;
  find("#invite").textContent = find("#second-tab").href = ticketLink(ticket);
}

/** A member of the room has its own name, and every other peer one of these with its id. */
const titled = ({ peerId }, kind) => room.nameOf(peerId) ?? `${kind} ${shortId(peerId)}`;

/** Connects to the peer of `ticket`. What happens is shown beside `clicked`. */
async function connect(ticket, kind, clicked) {
  const connection = await attempt.run(clicked, (signal) => connector.connect(ticket, { signal }));
  if (!connection) return;
  log("connected", { peer: shortId(connection.peerId), path: connection.path?.path });
  show(connection, titled(connection, kind)).reveal();
}

async function serve() {
  for await (const connection of connector.incoming()) {
    log("incoming", { peer: shortId(connection.peerId) });
    show(connection, titled(connection, "From"));
    announce(`${titled(connection, "Peer")} has connected to you.`);
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

main().catch((error) => {
  status("bad", "Not started");
  room.fail(error, { again: restart });
});
