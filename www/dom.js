// The few functions of a view library that the page needs.
export const find = (selector, root = document) => root.querySelector(selector);

/** Makes an element with properties (`data-*` under `data`) and children. */
export function el(tag, properties = {}, ...children) {
  const { data = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

export function copyButtons(root) {
  for (const button of root.querySelectorAll("[data-copy]")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(find(`#${button.dataset.copy}`).textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed"; // by the browser
      }
      setTimeout(() => (button.textContent = label), 1200);
    });
  }
}

export const shortId = (peerId) => `${peerId.slice(0, 4)}…${peerId.slice(-6)}`;

export function ms(value) {
  if (value === undefined || value === null) return "";
  return value < 10 ? `${value.toFixed(1)} ms` : value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

/** A time for people, from seconds. */
export function duration(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 60 ? `${whole} s` : whole < 3600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  const power = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), units.length - 1);
  return `${(bytes / 1024 ** power).toFixed(power && bytes < 100 * 1024 ** power ? 1 : 0)} ${units[power]}`;
}
