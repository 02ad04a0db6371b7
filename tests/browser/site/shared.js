// The worker of tab.js. Its name has the options.
import { share } from "/npm/dist/tabs.js";

share(JSON.parse(self.name));
