import { greet } from "./greet.js";

document.title = await greet().catch((error) => `${error.code}: ${error.message}`);
