/**
 * Allocation of window space: first fit over the free ranges. A map of at most a piece's size never crosses from one
 * piece to the next, as it is reached through one ArrayBuffer; a large one is placed so that large pages can be used.
 */
import { alignUp, isAligned } from "./bits.js";
import { LARGE_PAGE_SIZE, PAGE_SIZE } from "./limits.js";

interface Range {
  start: number;
  end: number;
}

export class WindowAllocator {
  /** Sorted, and never two that touch. */
  readonly #freeRanges: Range[];
  readonly #allocated = new Map<number, number>();
  readonly #pieceSize: number;

  /** Sizes in bytes, multiples of the page size. */
  constructor(
    readonly size: number,
    pieceSize: number,
  ) {
    this.#pieceSize = pieceSize;
    this.#freeRanges = [{ start: 0, end: size }];
  }

  /** Allocations now. */
  get count(): number {
    return this.#allocated.size;
  }

  /**
   * Takes `size` bytes (rounded up to pages) and returns their window offset, or -1 when no room is left.
   *
   * A size from LARGE_PAGE_SIZE on is aligned to that, plus `phase`: give the offset of the memory in its file, since
   * the kernel uses large pages only where address and file offset agree modulo their size. `pageSize` is that of the
   * file's pages, to which the offset is aligned at least.
   */
  allocate(size: number, phase = 0, pageSize = PAGE_SIZE): number {
    if (!(size > 0 && size <= this.size)) return -1;
    const length = alignUp(size, PAGE_SIZE);
    const alignment = Math.max(length >= LARGE_PAGE_SIZE ? LARGE_PAGE_SIZE : PAGE_SIZE, pageSize);
    const shift = isAligned(phase, PAGE_SIZE) ? phase % alignment : 0;
    // A shifted map of almost a piece fits in no piece.
    const fits = length > this.#pieceSize || shift + length <= this.#pieceSize;
    const offset = shift !== 0 && fits ? this.#allocateIn(length, alignment, shift) : -1;
    return offset !== -1 ? offset : this.#allocateIn(length, alignment, 0);
  }

  /** Takes this very place. False when some of it is taken. */
  take(offset: number, size: number): boolean {
    const end = offset + alignUp(size, PAGE_SIZE);
    const index = this.#freeRanges.findIndex((range) => range.start <= offset && end <= range.end);
    if (index === -1 || size <= 0) return false;
    this.#take(index, offset, end);
    this.#allocated.set(offset, end - offset);
    return true;
  }

  #allocateIn(length: number, alignment: number, shift: number): number {
    for (let index = 0; index < this.#freeRanges.length; index++) {
      const offset = this.#fit(this.#freeRanges[index], length, alignment, shift);
      if (offset === -1) continue;
      this.#take(index, offset, offset + length);
      this.#allocated.set(offset, length);
      return offset;
    }
    return -1;
  }

  /** Gives back what `allocate` returned. @throws Error when it was not allocated, which is a bug of the caller's */
  free(offset: number): void {
    const length = this.#allocated.get(offset);
    if (length === undefined) throw new Error(`window offset ${offset} is not allocated`);
    this.#allocated.delete(offset);
    const ranges = this.#freeRanges;
    let index = 0;
    while (index < ranges.length && ranges[index].start < offset) index++;
    const before = ranges[index - 1];
    const after = ranges[index];
    const end = offset + length;
    const joinsBefore = before?.end === offset;
    const joinsAfter = after?.start === end;
    if (joinsBefore && joinsAfter) {
      before.end = after.end;
      ranges.splice(index, 1);
    } else if (joinsBefore) {
      before.end = end;
    } else if (joinsAfter) {
      after.start = offset;
    } else {
      ranges.splice(index, 0, { start: offset, end });
    }
  }

  /** The lowest offset in `range` that suits, or -1. */
  #fit(range: Range, length: number, alignment: number, shift: number): number {
    const align = (at: number) => alignUp(at - shift, alignment) + shift;
    let offset = align(Math.max(range.start, shift));
    if (length <= this.#pieceSize) {
      const pieceEnd = (Math.floor(offset / this.#pieceSize) + 1) * this.#pieceSize;
      if (offset + length > pieceEnd) offset = align(pieceEnd);
    }
    return offset + length <= range.end ? offset : -1;
  }

  #take(index: number, start: number, end: number): void {
    const range = this.#freeRanges[index];
    const rest: Range[] = [];
    if (range.start < start) rest.push({ start: range.start, end: start });
    if (end < range.end) rest.push({ start: end, end: range.end });
    this.#freeRanges.splice(index, 1, ...rest);
  }
}
