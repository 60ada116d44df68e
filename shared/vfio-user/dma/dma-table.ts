/**
 * A sorted table of address ranges that do not overlap: the DMA maps of a client. Addresses are as in ../address.ts,
 * and sorted by number: those of the upper half come first, and no range goes from one half to the other. Looking up
 * allocates nothing and costs a binary search, or nothing at all when it hits the same range as the last time.
 */
import { exactSpans, formatAddress, isAddressRange } from "../../address.js";
import { isAligned } from "../../bits.js";
import { Errno, ProtocolError } from "../../errors.js";
import { MAX_DMA_MAPS, PAGE_SIZE } from "../../limits.js";

/** What a table holds: something with an address and a size in bytes, neither of which ever changes. */
export interface AddressRange {
  readonly address: number;
  readonly size: number;
}

export class DmaTable<Range extends AddressRange> {
  /** Addresses and sizes are multiples of it. */
  readonly #alignment: number;
  /** Sorted, with the ranges at the same indices. */
  readonly #addresses: number[] = [];
  readonly #ranges: Range[] = [];
  #last: Range | undefined;
  /**
   * Where `last` begins; NaN when there is none. Kept here, since a range's own address is one more place in memory to
   * wait for.
   */
  #lastStart = Number.NaN;

  constructor(alignment = PAGE_SIZE) {
    this.#alignment = alignment;
  }

  get length(): number {
    return this.#ranges.length;
  }

  /** By address. The table must not be changed meanwhile. */
  [Symbol.iterator](): IterableIterator<Range> {
    return this.#ranges.values();
  }

  /** @throws ProtocolError EINVAL (size, alignment, not exact, past 2^64), EEXIST (overlap), ENOSPC (table full) */
  insert(range: Range): void {
    const { address, size } = range;
    if (!isAddressRange(address, size) || !isAligned(address, this.#alignment) || !isAligned(size, this.#alignment)) {
      throw new ProtocolError(`${format(address, size)} cannot be mapped: ${reason(address, size)}`, Errno.EINVAL);
    }
    const index = this.#below(address);
    const before = this.#ranges[index];
    const after = this.#ranges[index + 1];
    if ((before && before.address + before.size > address) || (after && after.address < address + size)) {
      throw new ProtocolError(`${format(address, size)} overlaps another range`, Errno.EEXIST);
    }
    if (this.#ranges.length >= MAX_DMA_MAPS) throw new ProtocolError(`more than ${MAX_DMA_MAPS} ranges`, Errno.ENOSPC);
    this.#addresses.splice(index + 1, 0, address);
    this.#ranges.splice(index + 1, 0, range);
  }

  /** Takes away and returns the range with exactly that address and size. @throws ProtocolError ENOENT */
  remove(address: number, size: number): Range {
    const index = this.#below(address);
    const range = this.#ranges[index];
    if (range === undefined || range.address !== address || range.size !== size) {
      throw new ProtocolError(`no range is ${format(address, size)}`, Errno.ENOENT);
    }
    this.#addresses.splice(index, 1);
    this.#ranges.splice(index, 1);
    this.#forget();
    return range;
  }

  /**
   * The ranges in `size` bytes at `address`, which do not go past 2^64. Both are any multiples of 4096.
   * @throws ProtocolError EINVAL when that is only a part of one
   */
  within(address: number, size: number): Range[] {
    const found: Range[] = [];
    for (const { start, end } of exactSpans(address, size)) {
      const before = this.#below(start);
      const isBefore = before === -1 || this.#addresses[before] + this.#ranges[before].size <= start;
      for (let index = isBefore ? before + 1 : before; this.#addresses[index] < end; index++) {
        const range = this.#ranges[index];
        if (range.address < start || range.address + range.size > end) {
          const whole = format(range.address, range.size);
          throw new ProtocolError(`${format(address, size)} is only a part of ${whole}`, Errno.EINVAL);
        }
        found.push(range);
      }
    }
    return found;
  }

  /** Takes away ranges that are all there, in one go. */
  removeAll(ranges: readonly Range[]): void {
    if (ranges.length === 0) return;
    if (ranges.length === 1) {
      this.remove(ranges[0].address, ranges[0].size);
      return;
    }
    const gone = new Set(ranges);
    let kept = 0;
    for (const range of this.#ranges) {
      if (gone.has(range)) continue;
      this.#ranges[kept] = range;
      this.#addresses[kept++] = range.address;
    }
    this.#ranges.length = kept;
    this.#addresses.length = kept;
    this.#forget();
  }

  clear(): void {
    this.#addresses.length = 0;
    this.#ranges.length = 0;
    this.#forget();
  }

  /** The range that holds `address`. */
  at(address: number): Range | undefined {
    const last = this.#last;
    if (last !== undefined && address >= this.#lastStart && address - this.#lastStart < last.size) return last;
    const index = this.#below(address);
    if (index === -1) return undefined;
    const range = this.#ranges[index];
    const start = this.#addresses[index];
    if (address - start >= range.size) return undefined;
    this.#last = range;
    this.#lastStart = start;
    return range;
  }

  /** Where the range begins that `at` or `find` returned last. */
  get start(): number {
    return this.#lastStart;
  }

  /** The one range that holds all of [address, address + length), for any untrusted numbers. */
  find(address: number, length: number): Range | undefined {
    const range = this.at(address);
    return range !== undefined && length >= 0 && length <= range.size - (address - this.#lastStart) ? range : undefined;
  }

  #forget(): void {
    this.#last = undefined;
    this.#lastStart = Number.NaN;
  }

  /**
   * Index of the last range that begins at or below `address`, or -1. The comparison is turned into a number instead of
   * branching: no processor predicts where a random address is, and a wrong guess costs more than a step of the search.
   */
  #below(address: number): number {
    const addresses = this.#addresses;
    let count = addresses.length;
    if (count === 0 || !(addresses[0] <= address)) return -1;
    let index = 0;
    while (count > 1) {
      const half = count >>> 1;
      index += Math.imul(+(addresses[index + half] <= address) | 0, half);
      count -= half;
    }
    return index;
  }
}

function format(address: number, size: number): string {
  return `${formatAddress(address)}+0x${size.toString(16)}`;
}

/** Why a range cannot be in a table. */
function reason(address: number, size: number): string {
  if (!(size > 0)) return "it is empty";
  if (isAddressRange(address, size)) return "it is not aligned";
  return "it goes past 2^64, or is further than 2^53 from both ends of the address space";
}
