/** Rust's `snake_case` keys as JavaScript writes them, all the way down. Values are left alone. */
export function camelCased(value: unknown): unknown {
  return renamed(value, inCamelCase);
}

/** JavaScript's `camelCase` keys as Rust writes them, all the way down. Values are left alone. */
export function snakeCased(value: unknown): unknown {
  return renamed(value, (key) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
}

export function inCamelCase(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

function renamed(value: unknown, rename: (key: string) => string): unknown {
  if (Array.isArray(value)) return value.map((inner) => renamed(inner, rename));
  if (typeof value !== "object" || value === null || "toJSON" in value) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [rename(key), renamed(inner, rename)]));
}
