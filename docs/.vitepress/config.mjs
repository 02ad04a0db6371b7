// The site that `make docs` builds. Its pages are the documents of the repository, where they stand. VitePress
// fails on a link to a page that is not there, and links.mjs checks the links to files and headings of the whole repository.
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitepress";

const module = (name) => fileURLToPath(import.meta.resolve(name));
const page = (text, link) => ({ text, link });

/** Makes text of links to files of the repository, which are no pages of the site. */
function withoutFiles(md) {
  md.core.ruler.push("files", ({ tokens }) => {
    for (const token of tokens.filter(({ children }) => children)) {
      let isFile = false;
      token.children = token.children.filter((part) => {
        if (part.type === "link_open") isFile = /^(\.\.\/)+(benches|examples|src|tests)\/|\.toml$/.test(part.attrGet("href"));
        return !(isFile && part.type.startsWith("link_"));
      });
    }
  });
}

export default defineConfig({
  title: "throughline",
  description: "Connect two peers behind NATs and firewalls",
  srcDir: "..",
  srcExclude: ["**/node_modules/**", "README.md", "{benches,examples,fuzz,js,packaging,src,target,tests,www}/**"],
  rewrites: { "docs/index.md": "index.md" },
  outDir: "dist",
  cacheDir: "node_modules/.vitepress",
  cleanUrls: false,
  // The API is made by other tools.
  ignoreDeadLinks: [/^\/(js|rust)\//],
  // Pages beside this folder find Vue here.
  vite: { resolve: { alias: { "vue/server-renderer": module("vue/server-renderer"), vue: module("vue") } } },
  markdown: { theme: { light: "github-light", dark: "github-dark" }, config: withoutFiles },
  themeConfig: {
    search: { provider: "local" },
    outline: [2, 3],
    nav: [page("Start", "/docs/start"), page("Concepts", "/docs/concepts"), page("API", "/docs/api"), page("Changes", "/CHANGELOG")],
    sidebar: [
      { text: "Start", items: [page("Five minutes", "/docs/start"), page("Concepts", "/docs/concepts")] },
      {
        text: "Guides",
        items: [
          page("A relay for a page on https", "/docs/guides/relay"),
          page("Vite and other bundlers", "/docs/guides/bundlers"),
          page("A React hook", "/docs/guides/react"),
          page("A Rust service", "/docs/guides/service"),
          page("A game with datagrams", "/docs/guides/game"),
          page("A file drop", "/docs/guides/files"),
          page("Rooms", "/docs/guides/rooms"),
          page("In a worker", "/docs/guides/worker"),
          page("Many tabs, one peer", "/docs/guides/tabs"),
          page("Am I relayed, and why?", "/docs/guides/relayed"),
          page("Coming from another library", "/docs/guides/coming-from"),
        ],
      },
      { text: "Operating", items: [page("A server", "/docs/operating"), page("Many relays as one", "/docs/fleet"), page("Options", "/docs/options"), page("Systems", "/docs/systems"), page("Security model", "/SECURITY")] },
      {
        text: "Reference",
        items: [page("API", "/docs/api"), page("Architecture", "/docs/architecture"), page("Contributing", "/CONTRIBUTING"), page("Changes", "/CHANGELOG")],
      },
      {
        text: "Figures",
        items: [
          page("Overview", "/docs/figures"),
          page("Benchmarks", "/docs/benchmarks"),
          page("NATs of the lab", "/docs/connectivity"),
          page("Mobility", "/docs/mobility"),
          page("Load", "/docs/load"),
        ],
      },
    ],
  },
});
