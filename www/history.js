// The chart of a connection: its round trips over the last two minutes, above the paths that carried them.
const POINTS = 120;
const WIDTH = 600;
const HEIGHT = 96;
const BAND = 10;
const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, kind) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (kind) element.dataset.kind = kind;
  return element;
}

export class History {
  #svg;
  #text;
  #samples = [];

  /** `figure` has an `svg` and a `figcaption`, which says in words what the chart shows. */
  constructor(figure) {
    this.#svg = figure.querySelector("svg");
    this.#text = figure.querySelector("figcaption");
  }

  /** Adds a round trip in milliseconds, over a path of this kind. */
  add(rtt, kind) {
    this.#samples.push({ rtt, kind });
    if (this.#samples.length > POINTS) this.#samples.shift();
    this.#draw();
  }

  #draw() {
    const times = this.#samples.map(({ rtt }) => rtt);
    const [least, most] = [Math.min(...times), Math.max(...times)];
    const top = most * 1.1 || 1;
    const step = WIDTH / POINTS;
    const x = (at) => at * step;
    const y = (rtt) => HEIGHT - BAND - 4 - ((HEIGHT - BAND - 8) * rtt) / top;
    const bands = this.#samples.map(({ kind }, at) =>
      shape("rect", { x: x(at), y: HEIGHT - BAND, width: step + 0.5, height: BAND }, kind ?? "lost"),
    );
    const points = times.map((rtt, at) => `${x(at + 0.5).toFixed(1)},${y(rtt).toFixed(1)}`).join(" ");
    this.#svg.replaceChildren(...bands, shape("polyline", { points }));
    const round = (value) => (value < 10 ? value.toFixed(1) : Math.round(value));
    this.#text.textContent = `Round trips, once a second: ${round(least)} to ${round(most)} ms in the last ${times.length} s`;
  }
}
