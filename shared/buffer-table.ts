/**
 * Arrays as the addon's threads and copy lists know them: by their buffers' numbers, each added when it is first met.
 */

/** An IoPool, or a CopyList, which keeps what it has. */
export interface NumberedBuffers {
  add(buffer: ArrayBuffer): number;
  remove?(number: number): void;
}

export class BufferTable {
  /** What `numberOf` found: where in its buffer the array begins. */
  start = 0;
  readonly #owner: NumberedBuffers;
  /** A few arrays, the pieces of a window above all, so a search from the first on is quick. */
  readonly #bytes: Uint8Array[] = [];
  readonly #numbers: number[] = [];
  readonly #starts: number[] = [];

  constructor(owner: NumberedBuffers) {
    this.#owner = owner;
  }

  /** The number of an array's buffer. */
  numberOf(bytes: Uint8Array): number {
    const known = this.#bytes;
    let n = 0;
    while (n < known.length && known[n] !== bytes) n++;
    if (n === known.length) {
      known.push(bytes);
      this.#numbers.push(this.#owner.add(bytes.buffer as ArrayBuffer));
      this.#starts.push(bytes.byteOffset);
    }
    this.start = this.#starts[n];
    return this.#numbers[n];
  }

  /** Removes all of an IoPool's; no request that is in flight uses one of them. */
  clear(): void {
    for (const number of this.#numbers.splice(0)) this.#owner.remove?.(number);
    this.#bytes.length = this.#starts.length = 0;
  }
}
