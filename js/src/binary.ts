import { ThroughlineError, type LoadFailure, type LoadFailureReason } from "./errors.js";
import type { WasmSource } from "./load.js";

/** What to do about each reason. A function gets the directive of the policy that forbade the loading. */
const advice: { readonly [R in LoadFailureReason]: (directive: string) => string } = {
  status: () =>
    "the file is not there: let the bundler copy pkg/throughline_bg.wasm, import `throughline/inline`, or pass `wasm`",
  page: () =>
    "an HTML page is there in its place, as servers answer for what they do not have: with Vite, add " +
    '`optimizeDeps: { exclude: ["throughline"] }`; with others, import `throughline/inline`, or pass `wasm`',
  content_security_policy: (directive) =>
    directive === "connect-src"
      ? "the page's Content-Security-Policy forbids the address: add its origin to `connect-src`"
      : "the page's Content-Security-Policy forbids WebAssembly: add 'wasm-unsafe-eval' to `script-src`",
  network: () => "nothing answered there: check that the address can be reached from this page",
  not_wasm: () => "what is there is no WebAssembly: check what the bundler or the server makes of .wasm files",
  invalid: () => "the browser could not compile it: check that the file is whole and from this version of the package",
};

/** One try to get the WebAssembly, which knows why it has failed. */
export class Binary {
  /** Where the browser tells of violations of the policy. */
  readonly #scope: EventTarget = globalThis.document ?? globalThis;
  #url: string | undefined;
  #status: number | undefined;
  #contentType: string | undefined;
  #reason: LoadFailureReason = "invalid";
  /** The directive of the page's policy that has forbidden something in the meantime. */
  #directive: string | undefined;

  constructor() {
    // Some test environments have a document without events.
    this.#scope.addEventListener?.("securitypolicyviolation", this.#violation as EventListener);
  }

  done(): void {
    this.#scope.removeEventListener?.("securitypolicyviolation", this.#violation as EventListener);
  }

  readonly #violation = (event: SecurityPolicyViolationEvent): void => {
    const isOurs = event.blockedURI === "wasm-eval" || event.blockedURI === this.#url;
    if (event.disposition === "enforce" && isOurs) this.#directive = event.effectiveDirective;
  };

  /** Returns what can be instantiated, or fails. */
  async of(source: WasmSource): Promise<Response | BufferSource | WebAssembly.Module> {
    let found = await source;
    if (typeof found === "string" || found instanceof URL) {
      this.#url = new URL(found, globalThis.document?.baseURI ?? globalThis.location?.href).href;
      this.#reason = "network";
      found = await fetch(found);
    }
    if (found instanceof WebAssembly.Module) return found;
    if (found instanceof Response) {
      this.#url = found.url || this.#url;
      this.#status = found.status;
      this.#contentType = found.headers.get("content-type") ?? undefined;
      this.#reason = "status";
      if (!found.ok) throw new Error(`status ${found.status}`);
      this.#reason = "invalid";
      // The browser compiles it while it arrives.
      if (this.#contentType?.startsWith("application/wasm")) return found;
      found = await found.arrayBuffer();
    }
    const whole = found as BufferSource;
    const bytes = ArrayBuffer.isView(whole) ? new Uint8Array(whole.buffer, whole.byteOffset, whole.byteLength) : new Uint8Array(whole);
    this.#reason = startsLikePage(bytes) ? "page" : "not_wasm";
    if (![0, 0x61, 0x73, 0x6d].every((byte, at) => bytes[at] === byte)) throw new Error("not WebAssembly");
    this.#reason = "invalid";
    return whole;
  }

  /** Returns the error for what `of` or the instantiation has thrown. */
  async failure(cause: unknown): Promise<ThroughlineError> {
    // The event about a policy comes in a task of its own, about when the request fails.
    if (this.#reason === "network") await new Promise((resolve) => setTimeout(resolve));
    const forbidden = this.#directive ?? (/content security policy|unsafe-eval|\bCSP\b/i.test(String(cause)) ? "script-src" : undefined);
    const reason = forbidden === undefined ? this.#reason : "content_security_policy";
    const load: LoadFailure = {
      reason,
      ...(this.#url === undefined ? {} : { url: this.#url }),
      ...(this.#status === undefined ? {} : { status: this.#status }),
      ...(this.#contentType === undefined ? {} : { contentType: this.#contentType }),
    };
    const from = load.url === undefined ? "" : ` from ${load.url}`;
    const status = load.status === undefined ? "" : ` (status ${load.status}${load.contentType ? `, ${load.contentType}` : ""})`;
    const message = `the WebAssembly of throughline could not be loaded${from}${status}: ${advice[reason](forbidden ?? "")}`;
    return new ThroughlineError("io", message, { cause, load });
  }
}

/** Whether bytes start as HTML does. */
function startsLikePage(bytes: Uint8Array): boolean {
  return new TextDecoder().decode(bytes.subarray(0, 64)).trimStart().startsWith("<");
}
