/**
 * The ranges of a Dataset Management command (NVM Express 1.4, section 6.7): checked as one, in ascending order, and
 * those that touch or overlap made one, since each is a system call.
 */
import { DSM_NR_MASK, DsmRange, Status } from "../spec.js";
import type { Namespace } from "../storage/namespace.js";

export const MAX_RANGES = DSM_NR_MASK + 1;

const entry = DsmRange.view();

/** Bytes of the list that a command names. */
export function rangesSize(cdw10: number): number {
  return ((cdw10 & DSM_NR_MASK) + 1) * DsmRange.size;
}

export class DatasetRanges {
  /** Ranges in use; those of no block are none. */
  count = 0;
  /** Bytes of all of them. */
  length = 0;
  /** In bytes. */
  readonly positions = new Float64Array(MAX_RANGES);
  readonly lengths = new Float64Array(MAX_RANGES);

  /** Takes the first `size` bytes of a driver's list. Returns a status. */
  take(data: DataView, size: number, namespace: Namespace): number {
    this.count = 0;
    for (let at = 0; at < size; at += DsmRange.size) {
      const { LENGTH: blocks, LBA_LOW, LBA_HIGH } = entry.at(data, at);
      if (blocks === 0) continue;
      const position = namespace.positionOf(LBA_LOW, LBA_HIGH, blocks);
      if (position < 0) return Status.LBA_OUT_OF_RANGE;
      this.#insert(position, blocks * namespace.blockSize);
    }
    this.#merge();
    return Status.SUCCESS;
  }

  /** Drivers mostly have them in order already. */
  #insert(position: number, length: number): void {
    const { positions, lengths } = this;
    let n = this.count++;
    for (; n > 0 && positions[n - 1] > position; n--) {
      positions[n] = positions[n - 1];
      lengths[n] = lengths[n - 1];
    }
    positions[n] = position;
    lengths[n] = length;
  }

  #merge(): void {
    const { positions, lengths, count } = this;
    this.length = 0;
    let last = -1;
    for (let n = 0; n < count; n++) {
      const end = positions[n] + lengths[n];
      if (last >= 0 && positions[n] <= positions[last] + lengths[last]) {
        lengths[last] = Math.max(lengths[last], end - positions[last]);
      } else {
        last++;
        positions[last] = positions[n];
        lengths[last] = end - positions[n];
      }
    }
    this.count = last + 1;
    for (let n = 0; n < this.count; n++) this.length += lengths[n];
  }
}
