// Code that the measurements share: turns, medians and tables.
import { loadavg } from "node:os";

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/**
 * Lets all contenders measure in turn, so that other work of the machine affects all of them alike. Each
 * round begins with another contender. A contender returns numbers by name, and this returns all of them.
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
 * Returns a table in Markdown. `columns` has, for each measured value, a `heading`, the number of `digits`
 * after the point, and whether `more` is better. Ratios are to the row `reference`. A ratio above 1 is better.
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
