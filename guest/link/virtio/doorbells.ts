/** Which doorbell each interrupt vector has: what the bridge's SET_IRQS said. */
import { inBounds } from "../../../shared/bits.js";
import { ProtocolError } from "../../../shared/errors.js";
import { NO_DOORBELL } from "../../../shared/spec/link.js";
import type { IrqChange } from "../link.js";

export const UNBOUND = -1;

export class Doorbells {
  /** By interrupt index, the doorbell of each vector, or UNBOUND. */
  readonly #doorbells: readonly Int32Array[];

  /** `irqCounts`: vectors by interrupt index; `count`: how many doorbells there are. */
  constructor(
    irqCounts: readonly number[],
    readonly count: number,
  ) {
    this.#doorbells = irqCounts.map((vectors) => new Int32Array(vectors).fill(UNBOUND));
  }

  of(index: number, vector: number): number {
    return this.#doorbells[index][vector];
  }

  /** Whether interrupt `index` has all of these vectors; for any numbers. */
  has(index: number, start: number, count: number): boolean {
    const vectors = this.#doorbells[index];
    return vectors !== undefined && inBounds(start, count, vectors.length);
  }

  /**
   * Notes the doorbell numbers at `at` of `data`, one for each vector; returns which vectors have one.
   * @throws ProtocolError for a doorbell that is not there; nothing is changed then
   */
  bind({ index, start, count }: IrqChange, data: DataView, at: number): boolean[] {
    const numbers = Array.from({ length: count }, (_, n) => data.getUint32(at + n * 4, true));
    for (const number of numbers) {
      if (number !== NO_DOORBELL && number >= this.count) throw new ProtocolError(`no doorbell ${number}`);
    }
    const bound = numbers.map((number) => number !== NO_DOORBELL);
    for (let n = 0; n < count; n++) this.#doorbells[index][start + n] = bound[n] ? numbers[n] : UNBOUND;
    return bound;
  }

  unbind(index: number): void {
    this.#doorbells[index].fill(UNBOUND);
  }

  unbindAll(): void {
    for (const vectors of this.#doorbells) vectors.fill(UNBOUND);
  }
}
