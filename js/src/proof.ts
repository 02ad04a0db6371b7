/** What the members of a mesh prove themselves with, as `core/mesh.rs` makes it. It needs a secure context. */

const encoder = new TextEncoder();

async function hmacKey(bytes: BufferSource): Promise<CryptoKey> {
  return crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
}

/** The length of a proof. */
export const PROOF = 32;

/** The key of one mesh. */
export class MeshKey {
  readonly #key: CryptoKey;

  private constructor(key: CryptoKey) {
    this.#key = key;
  }

  static async of(application: string, name: string, secret: string): Promise<MeshKey> {
    const first = encoder.encode(application);
    const second = encoder.encode(name);
    // The length keeps the two texts apart.
    const texts = new Uint8Array(8 + first.length + second.length);
    new DataView(texts.buffer).setUint32(4, first.length);
    texts.set(first, 8);
    texts.set(second, 8 + first.length);
    const key = await hmacKey(await crypto.subtle.digest("SHA-256", encoder.encode(secret)));
    const root = await hmacKey(await crypto.subtle.sign("HMAC", key, texts));
    return new MeshKey(await hmacKey(await crypto.subtle.sign("HMAC", root, encoder.encode("mesh"))));
  }

  /**
   * What shows `to` that `from` knows the room. Every path proves the ids, so a proof is of no use to anybody else.
   */
  async proof(from: string, to: string): Promise<Uint8Array<ArrayBuffer>> {
    return new Uint8Array(await crypto.subtle.sign("HMAC", this.#key, encoder.encode(`${from} ${to}`)));
  }

  /** Whether this is the proof. */
  async isProof(from: string, to: string, bytes: Uint8Array<ArrayBuffer>): Promise<boolean> {
    return crypto.subtle.verify("HMAC", this.#key, bytes, encoder.encode(`${from} ${to}`));
  }
}
