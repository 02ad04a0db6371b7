// Turns the output of `cargo metadata` into a bill of materials (CycloneDX 1.5) of the crates that are linked.
import { readFileSync } from "node:fs";

const { packages, resolve } = JSON.parse(readFileSync(0, "utf8"));
const byId = new Map(packages.map((found) => [found.id, found]));
const nodes = new Map(resolve.nodes.map((node) => [node.id, node]));

const linked = new Set([resolve.root]);
for (const id of linked) {
  for (const { pkg, dep_kinds } of nodes.get(id).deps) if (dep_kinds.some(({ kind }) => kind === null)) linked.add(pkg);
}
const component = ({ name, version, license }) => ({
  type: "library",
  name,
  version,
  purl: `pkg:cargo/${name}@${version}`,
  ...(license && { licenses: [{ expression: license.replaceAll("/", " OR ") }] }),
});
const found = [...linked].map((id) => byId.get(id)).sort((a, b) => a.name.localeCompare(b.name) || a.version.localeCompare(b.version));
const root = byId.get(resolve.root);
const components = found.filter(({ id }) => id !== root.id).map(component);
const metadata = { component: { ...component(root), type: "application" } };
console.log(JSON.stringify({ bomFormat: "CycloneDX", specVersion: "1.5", version: 1, metadata, components }, null, 2));
