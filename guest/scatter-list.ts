/**
 * Scatter lists: data that lies in several ranges of driver-VM memory, as descriptor chains, PRPs and SGLs say it. A
 * device keeps one and uses it again and again.
 */

/** Ranges in the order of the data. */
export class ScatterList {
  /** Ranges in use; the arrays may be longer. */
  count = 0;
  /** Bytes in all ranges together. */
  length = 0;
  readonly addresses: number[] = [];
  readonly lengths: number[] = [];

  clear(): void {
    this.count = 0;
    this.length = 0;
  }

  /** Adds `length` bytes from `address` on; neighbours become one range. Nothing is checked before the DMA. */
  add(address: number, length: number): void {
    const last = this.count - 1;
    if (last >= 0 && this.addresses[last] + this.lengths[last] === address) {
      this.lengths[last] += length;
    } else {
      this.addresses[this.count] = address;
      this.lengths[this.count] = length;
      this.count++;
    }
    this.length += length;
  }
}
