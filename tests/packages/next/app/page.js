// A server component. The import works here, and every use would be refused.
import { errorCodes } from "throughline";
import { Greeting } from "./greeting.js";

export default function Page() {
  return <Greeting codes={errorCodes.length} />;
}
