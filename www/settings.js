// Relays and ICE servers. The relay is this server, which names its own ICE servers, until the visitor edits them.
// Edits are kept in localStorage.
import { el, find } from "./dom.js";

const KEY = "throughline.settings";

const defaults = { relays: [location.origin], iceServers: [], direct: true };

export function settings() {
  try {
    const stored = JSON.parse(localStorage.getItem(KEY));
    if (stored) return { ...defaults, ...stored };
  } catch {
    localStorage.removeItem(KEY);
  }
  return defaults;
}

export function showSettings(restart) {
  const { relays, iceServers, direct } = settings();
  const servers = find("#settings-ice");
  const add = ({ urls = "", username = "", credential = "" } = {}) => {
    const field = (name, label, value, placeholder, type = "text") =>
      el("input", { name, value, placeholder, type, ariaLabel: label, autocomplete: "off", spellcheck: false });
    const remove = el("button", { type: "button", className: "quiet", onclick: () => row.remove() }, "Remove");
    const row = el(
      "div",
      {},
      field("urls", "Address of the server", [urls].flat().join(" "), "stun:host:port or turn:host:port"),
      field("username", "User name", username, "user (TURN)"),
      field("credential", "Password", credential, "password (TURN)", "password"),
      remove,
    );
    servers.append(row);
  };

  find("#settings-relays").value = relays.join("\n");
  find("#settings-direct").checked = direct;
  iceServers.forEach(add);
  find("#settings-add").addEventListener("click", () => add());
  find("#settings-reset").addEventListener("click", () => {
    localStorage.removeItem(KEY);
    restart();
  });
  find("#settings-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const value = (row, name) => row.querySelector(`[name=${name}]`).value.trim();
    const edited = {
      relays: find("#settings-relays").value.split("\n").map((line) => line.trim()).filter(Boolean),
      direct: find("#settings-direct").checked,
      iceServers: [...servers.children]
        .map((row) => {
          const urls = value(row, "urls").split(/\s+/).filter(Boolean);
          const [username, credential] = [value(row, "username"), value(row, "credential")];
          return { urls, ...(username ? { username, credential } : {}) };
        })
        .filter(({ urls }) => urls.length),
    };
    localStorage.setItem(KEY, JSON.stringify(edited));
    restart();
  });
}
