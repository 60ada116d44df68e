/**
 * The log of driver-VM pages that the device wrote (vfio-user, "VFIO_DEVICE_FEATURE_DMA_LOGGING_START" and what follows
 * it), by address and not by map: what was written before a map went is in it until it is reported. Everything is
 * logged, whatever ranges the client named; they bound what it may ask for.
 *
 * A device may hold segments that it was given to write to, so there are two sets. A mark goes into the fresh one.
 * Before a report the fresh set is put to the settled one, and then the device quiesces: nothing in the settled set is
 * held any more, it is reported and forgotten. What was marked meanwhile is reported, and stays for the next report.
 */
import { MAX_DMA_LOG_SIZE, PAGE_SIZE } from "../../shared/limits.js";
import { setBits } from "../../shared/vfio-user/dma/dma-ranges.js";

/** Pages are kept in chunks of a bit each; a chunk exists when something in it was written. */
const CHUNK_SIZE = 4096;
const CHUNK_PAGES = CHUNK_SIZE * 8;
/** A coarser log would save nothing worth having. */
const MAX_PAGE_SIZE = 2 * 1024 * 1024;

export interface LoggedRange {
  readonly address: number;
  readonly size: number;
}

/** What a report forgets: nothing, what no device can hold any more, or all. */
type Forget = "nothing" | "settled" | "all";

type Pages = Map<number, Uint8Array<ArrayBuffer>>;

/** The page size that is logged for the one that a client asks for, a power of two. */
export function loggedPageSize(wanted: number): number {
  return Math.min(Math.max(wanted, PAGE_SIZE), MAX_PAGE_SIZE);
}

export class DirtyLog {
  #fresh: Pages = new Map();
  readonly #settled: Pages = new Map();
  /** The chunk of the last mark; NaN when there is none, as an index may be negative. */
  #lastIndex = Number.NaN;
  #lastChunk = new Uint8Array(CHUNK_SIZE);
  /** There was no room for all that was written: everything counts as written. */
  #isFull = false;
  readonly #ranges: readonly LoggedRange[];

  /** `pageSize`: as loggedPageSize gave it. `ranges`: none for all addresses; they must not overlap. */
  constructor(
    readonly pageSize: number,
    ranges: readonly LoggedRange[] = [],
    readonly maxSize = MAX_DMA_LOG_SIZE,
  ) {
    this.#ranges = joinAdjacent(ranges);
  }

  /** All of [address, address + length) was written, or may be from now on. */
  mark(address: number, length: number): void {
    const last = Math.floor((address + length - 1) / this.pageSize);
    for (let page = Math.floor(address / this.pageSize); page <= last; ) {
      const index = Math.floor(page / CHUNK_PAGES);
      if (index !== this.#lastIndex && !this.#select(index)) return;
      const base = index * CHUNK_PAGES;
      setBits(this.#lastChunk, page - base, Math.min(last - base, CHUNK_PAGES - 1));
      page = base + CHUNK_PAGES;
    }
  }

  /** Nobody knows what was written: everything counts. */
  markAll(): void {
    this.#isFull = true;
    this.#fresh.clear();
    this.#settled.clear();
    this.#lastIndex = Number.NaN;
  }

  /** Whether the client named all of the range. */
  covers(address: number, length: number): boolean {
    if (this.#ranges.length === 0) return true;
    return this.#ranges.some((range) => address >= range.address && address + length <= range.address + range.size);
  }

  /** What was marked so far is held no longer when a quiesce that begins now has ended. */
  settle(): void {
    for (const [index, bits] of this.#fresh) {
      const settled = this.#settled.get(index);
      if (settled === undefined) this.#settled.set(index, bits);
      else for (let n = 0; n < CHUNK_SIZE; n++) settled[n] |= bits[n];
    }
    this.#fresh = new Map();
    this.#lastIndex = Number.NaN;
  }

  /** Sets the bits of written pages in `bitmap`, which has bitmapSize(address, length, pageSize) bytes. */
  report(address: number, length: number, pageSize: number, bitmap: Uint8Array, forget: Forget): void {
    if (this.#isFull) {
      setBits(bitmap, 0, Math.ceil(length / pageSize) - 1);
      return;
    }
    for (const pages of [this.#settled, this.#fresh]) {
      const clear = forget === "all" || (forget === "settled" && pages === this.#settled);
      for (const [index, bits] of pages) {
        const base = index * CHUNK_PAGES * this.pageSize;
        if (base >= address + length || base + CHUNK_PAGES * this.pageSize <= address) continue;
        this.#reportChunk(base, bits, { address, length, pageSize, bitmap, clear });
        if (!clear || bits.some((byte) => byte !== 0)) continue;
        pages.delete(index);
        this.#lastIndex = Number.NaN;
      }
    }
  }

  #reportChunk(base: number, bits: Uint8Array, report: ChunkReport): void {
    const { address, length, pageSize, bitmap, clear } = report;
    const end = address + length;
    const lastBit = Math.ceil(length / pageSize) - 1;
    for (let byte = 0; byte < CHUNK_SIZE; byte++) {
      if (bits[byte] === 0) continue;
      for (let bit = 0; bit < 8; bit++) {
        if ((bits[byte] & (1 << bit)) === 0) continue;
        const from = base + (byte * 8 + bit) * this.pageSize;
        const to = from + this.pageSize;
        if (to <= address || from >= end) continue;
        const first = Math.max(0, Math.floor((from - address) / pageSize));
        setBits(bitmap, first, Math.min(lastBit, Math.floor((to - 1 - address) / pageSize)));
        // A page that is only partly in the range stays written for the report of the rest.
        if (clear && from >= address && to <= end) bits[byte] &= ~(1 << bit);
      }
    }
  }

  /** Makes the chunk the one to mark in. False when there is no room for it. */
  #select(index: number): boolean {
    let chunk = this.#fresh.get(index);
    if (chunk === undefined) {
      if (this.#isFull || (this.#fresh.size + this.#settled.size + 1) * CHUNK_SIZE > this.maxSize) {
        this.markAll();
        return false;
      }
      chunk = new Uint8Array(CHUNK_SIZE);
      this.#fresh.set(index, chunk);
    }
    this.#lastIndex = index;
    this.#lastChunk = chunk;
    return true;
  }
}

interface ChunkReport {
  readonly address: number;
  readonly length: number;
  readonly pageSize: number;
  readonly bitmap: Uint8Array;
  readonly clear: boolean;
}

/** Sorted, and as few as can be: a report may go over the border of two. */
function joinAdjacent(ranges: readonly LoggedRange[]): LoggedRange[] {
  const joined: LoggedRange[] = [];
  for (const range of ranges.toSorted((a, b) => a.address - b.address)) {
    const last = joined.at(-1);
    if (last !== undefined && last.address + last.size === range.address) {
      joined[joined.length - 1] = { address: last.address, size: last.size + range.size };
    } else {
      joined.push(range);
    }
  }
  return joined;
}
