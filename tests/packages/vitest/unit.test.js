// This runs in the project of vitest, with jsdom in the place of a browser.
import { expect, test } from "vitest";
import { Connector, errorCodes, ThroughlineError } from "throughline";

test("the import works, and a use says what is missing", async () => {
  expect(errorCodes.length).toBeGreaterThan(10);
  const error = await Connector.create().catch((error) => error);
  expect(error).toBeInstanceOf(ThroughlineError);
  expect(error.code).toBe("unsupported_platform");
});
