import { fileURLToPath } from "node:url";

// Next is in the folder above the project's.
export default { output: "export", turbopack: { root: fileURLToPath(new URL("../..", import.meta.url)) } };
