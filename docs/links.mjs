// Checks every link of every document of the repository: the file is there, and so is the heading. The build of
// the site checks the links between its pages once more.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const documents = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"], { cwd: root, encoding: "utf8" });

/** Returns the text without blocks of code, where brackets are no links. */
const prose = (file) => readFileSync(file, "utf8").replace(/^```[^]*?^```/gm, "");

/** Returns the names under which the headings of a document are linked. */
function headings(file) {
  const texts = [...prose(file).matchAll(/^#+ (.*)$/gm)].map(([, text]) => text);
  return texts.map((text) => text.toLowerCase().replace(/[`*]|\[|\]\([^)]*\)/g, "").replace(/[^\p{L}\p{N} -]/gu, "").replaceAll(" ", "-"));
}

const faults = [];
let links = 0;
for (const name of documents.trim().split("\n")) {
  const file = join(root, name);
  for (const [, link] of prose(file).matchAll(/\]\(([^)\s]+)\)/g)) {
    if (/^(https?|mailto):|^\/(js|rust)\//.test(link)) continue;
    links++;
    const [path, heading] = link.split("#");
    const target = path ? join(dirname(file), path) : file;
    if (!existsSync(target)) faults.push(`${name}: ${link}: there is no ${relative(root, target)}`);
    else if (heading && !(statSync(target).isFile() && headings(target).includes(heading))) faults.push(`${name}: ${link}: there is no such heading`);
  }
}
for (const fault of faults) console.error(fault);
console.log(`links: ${links} are right, ${faults.length} are wrong`);
process.exitCode = faults.length ? 1 : 0;
