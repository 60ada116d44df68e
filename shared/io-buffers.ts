/** Arrays as an IoPool knows them: their buffers' numbers, each made known when it is first met. */
import type { IoPool } from "../native/index.js";

export class IoBuffers {
  /** What `numberOf` found: where in its buffer the array begins. */
  start = 0;
  readonly #pool: Pick<IoPool, "add" | "remove">;
  /** A few arrays, the pieces of a window above all, so looking through them is quick. */
  readonly #bytes: Uint8Array[] = [];
  readonly #numbers: number[] = [];
  readonly #starts: number[] = [];

  constructor(pool: Pick<IoPool, "add" | "remove">) {
    this.#pool = pool;
  }

  /** The number of an array's buffer. */
  numberOf(bytes: Uint8Array): number {
    const known = this.#bytes;
    let n = 0;
    while (n < known.length && known[n] !== bytes) n++;
    if (n === known.length) {
      known.push(bytes);
      this.#numbers.push(this.#pool.add(bytes.buffer as ArrayBuffer));
      this.#starts.push(bytes.byteOffset);
    }
    this.start = this.#starts[n];
    return this.#numbers[n];
  }

  /** Forgets all; no request that is under way uses one of them. */
  clear(): void {
    for (const number of this.#numbers.splice(0)) this.#pool.remove(number);
    this.#bytes.length = this.#starts.length = 0;
  }
}
