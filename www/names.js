// What the page calls the ways to a path. A path that is direct may have been found in several of them.

const names = {
  circuit_relay: "relay circuit",
  direct: "own address",
  stun: "hole punching",
  upnp: "port mapping",
  turn: "TURN server",
  birthday: "guessed ports",
};

export const strategyName = (strategy) => names[strategy] ?? strategy;

export const pathNames = { none: "connecting", direct: "direct", relayed: "relayed", turn: "relayed by TURN", lost: "path lost, waiting", closed: "closed" };
