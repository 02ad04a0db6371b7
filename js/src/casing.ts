/**
 * Converts Rust's `snake_case` keys to JavaScript's `camelCase`, at every depth. Values stay the same,
 * except that `null` is left out, so that an unknown value is `undefined`.
 */
export function camelCased(value: unknown): unknown {
  return renamed(value, inCamelCase);
}

/** Converts JavaScript's `camelCase` keys to Rust's `snake_case`, at every depth. Values stay the same. */
export function snakeCased(value: unknown): unknown {
  return renamed(value, (key) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
}

export function inCamelCase(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

function renamed(value: unknown, rename: (key: string) => string): unknown {
  if (Array.isArray(value)) return value.map((inner) => renamed(inner, rename));
  if (typeof value !== "object" || value === null || "toJSON" in value) return value;
  const known = Object.entries(value).filter(([, inner]) => inner !== null);
  return Object.fromEntries(known.map(([key, inner]) => [rename(key), renamed(inner, rename)]));
}
