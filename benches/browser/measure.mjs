// What the measurements share: turns, medians, tables.
import { loadavg } from "node:os";

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/**
 * Lets all contenders measure in turn, each round another one first, so that whatever the machine
 * does meanwhile happens to all of them. Each gives numbers by name; this gives all of them.
 */
export async function inTurn(rounds, contenders) {
  const names = Object.keys(contenders);
  const results = Object.fromEntries(names.map((name) => [name, {}]));
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < names.length; turn++) {
      const name = names[(round + turn) % names.length];
      const measured = await contenders[name]();
      console.error(`${name}: ${Object.entries(measured).map(([what, value]) => `${what} ${value.toFixed(2)}`).join(", ")}`);
      for (const [what, value] of Object.entries(measured)) (results[name][what] ??= []).push(value);
    }
  }
  return results;
}

/**
 * A table in Markdown. `columns` has, by what was measured, a heading, decimals, and whether more is
 * `better`. The ratio is to `reference`, turned so that more than 1 speaks for the row.
 */
export function table(results, reference, columns) {
  const entries = Object.entries(columns);
  const cell = (of, what, { digits, more }) => {
    if (!of[what]) return "-";
    const value = median(of[what]);
    const worst = more ? Math.min(...of[what]) : Math.max(...of[what]);
    const figure = `${value.toFixed(digits)} (${worst.toFixed(digits)})`;
    if (of === results[reference] || !results[reference][what]) return figure;
    const ratio = value / median(results[reference][what]);
    return `${figure}, x${(more ? ratio : 1 / ratio).toFixed(2)}`;
  };
  const rows = Object.entries(results).map(([name, of]) => `| ${name} | ${entries.map(([what, column]) => cell(of, what, column)).join(" | ")} |`);
  return [`| | ${entries.map(([, { heading }]) => heading).join(" | ")} |`, `| --- |${" ---: |".repeat(entries.length)}`, ...rows].join("\n");
}

export const load = () => loadavg().map((value) => value.toFixed(2)).join(" ");
