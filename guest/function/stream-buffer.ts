/** Bytes that are put in at one end and taken out at the other, as many altogether as one migration may have. */
import { KiB, MAX_MIGRATION_STREAM } from "../../shared/limits.js";

const INITIAL_SIZE = 4 * KiB;

export class StreamBuffer {
  #bytes = new Uint8Array(INITIAL_SIZE);
  #from = 0;
  #to = 0;

  constructor(readonly limit = MAX_MIGRATION_STREAM) {}

  /** Bytes that can be taken. */
  get length(): number {
    return this.#to - this.#from;
  }

  /** Copies `bytes` to the end. @throws RangeError when that were more than the limit since the last `clear` */
  push(bytes: Uint8Array): void {
    const end = this.#to + bytes.length;
    if (end > this.limit) throw new RangeError(`a stream of more than ${this.limit} bytes`);
    if (end > this.#bytes.length) {
      let size = this.#bytes.length;
      while (size < end) size *= 2;
      const larger = new Uint8Array(size);
      larger.set(this.#bytes.subarray(0, this.#to));
      this.#bytes = larger;
    }
    this.#bytes.set(bytes, this.#to);
    this.#to = end;
  }

  /** Takes the first `size` bytes, or all when there are fewer; they are the caller's. */
  take(size: number): Uint8Array {
    const bytes = this.#bytes.slice(this.#from, Math.min(this.#from + size, this.#to));
    this.#from += bytes.length;
    return bytes;
  }

  clear(): void {
    this.#bytes = new Uint8Array(INITIAL_SIZE);
    this.#from = 0;
    this.#to = 0;
  }
}
