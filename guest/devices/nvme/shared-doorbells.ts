/**
 * The doorbell registers as memory that the driver VM's VMM maps (NVM Express 1.4, 3.1.24 and 3.1.25), read as hostile
 * words.
 */
import type { DoorbellWords } from "./doorbell-poll.js";

export class SharedDoorbells implements DoorbellWords {
  readonly firstQueue = 0;
  readonly #words: Int32Array;
  /** Words from one doorbell to the next. */
  readonly #stride: number;

  /** `bytes`: the doorbells' part of BAR 0; `stride`: bytes from one to the next. */
  constructor(bytes: Uint8Array<ArrayBuffer>, stride: number) {
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    this.#stride = stride / 4;
  }

  locate(): boolean {
    return true;
  }

  tailOf(id: number): number {
    return Atomics.load(this.#words, id * 2 * this.#stride) >>> 0;
  }

  headOf(id: number): number {
    return Atomics.load(this.#words, (id * 2 + 1) * this.#stride) >>> 0;
  }

  resetTail(id: number, tail: number): void {
    Atomics.store(this.#words, id * 2 * this.#stride, tail);
  }

  resetHead(id: number, head: number): void {
    Atomics.store(this.#words, (id * 2 + 1) * this.#stride, head);
  }

  /** As after a reset. */
  clear(): void {
    this.#words.fill(0);
  }
}
