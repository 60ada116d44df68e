/**
 * The device VM's memory behind a virtual IOMMU: what the front-end has said of the driver's I/O virtual addresses
 * (IOVAs, vhost-user's "IOMMU support"), as maps of the device VM's memory that lie beside one another as the IOVAs
 * do. So a ring or a buffer that is whole for the driver is whole here, whatever pages it is made of, and nothing is
 * translated when it is used: an address is looked up in as many runs as there are.
 *
 * It is a cache: what is not in it is asked for (iotlb-misses.ts) when somebody needs it, and what has no place any
 * more makes place for what is new. What has to stay, since somebody has views of it, is said by `keep`.
 *
 * The address space is divided into parts of a GiB, of which only so many can be in use at a time: each takes a piece
 * of the reservation.
 */
import { memoryStatus, PROT_READ, PROT_WRITE, type Reservation } from "../../../native/index.js";
import { alignDown, alignUp, isAligned } from "../../../shared/bits.js";
import { ProtocolError } from "../../../shared/errors.js";
import { MAX_IOTLB_PARTS, MAX_IOTLB_RANGES, PAGE_SIZE, WINDOW_PIECE_SIZE } from "../../../shared/limits.js";

const PART_SIZE = WINDOW_PIECE_SIZE;

/** Memory of the device VM: a file, which stays the caller's, and a range of it. */
export interface Backing {
  readonly fd: number;
  /** Which file it is. */
  readonly file: string;
  readonly fileOffset: number;
}

/** IOVAs from `start` to `end`, in one file. */
interface Range {
  readonly start: number;
  readonly end: number;
  readonly file: string;
  /** Of `start` in the file. */
  readonly fileOffset: number;
  /** The file's pages, which are mapped whole. */
  readonly pageSize: number;
}

/** IOVAs of a ring, or of something else that there are views of. */
export interface Extent {
  readonly address: number;
  readonly length: number;
}

/** Ranges that are beside one another in the reservation as they are in the IOVAs. */
export interface Run {
  readonly start: number;
  readonly end: number;
  /** Of `start` in the reservation. */
  readonly offset: number;
}

export class Iotlb {
  /** Runs in the order of their IOVAs. */
  runs: readonly Run[] = [];
  /** Called before memory is unmapped, and after `runs` have changed. */
  beforeUnmap: () => void = () => {};
  onChange: () => void = () => {};
  readonly #kept = new Map<object, readonly Extent[]>();
  readonly #reservation: Reservation;
  #ranges: Range[] = [];
  /** By the number of the part, its piece of the reservation. */
  readonly #pieces = new Map<number, number>();
  #lastRun = 0;
  readonly #status = new Float64Array(6);

  constructor(reservation: Reservation) {
    this.#reservation = reservation;
  }

  get ranges(): number {
    return this.#ranges.length;
  }

  /**
   * Somebody has views of these until `release`: they do not make place for what is new, and where they are taken away
   * and come back, they come back to where they were.
   */
  keep(owner: object, extents: readonly Extent[]): void {
    this.#kept.set(owner, extents);
  }

  release(owner: object): void {
    this.#kept.delete(owner);
  }

  /** The offset in the reservation where [iova, iova + length) is, all of it; else -1. */
  locate(iova: number, length: number): number {
    const { runs } = this;
    for (let n = 0, at = this.#lastRun; n < runs.length; n++, at = at + 1 < runs.length ? at + 1 : 0) {
      const run = runs[at];
      if (iova < run.start || iova + length > run.end) continue;
      this.#lastRun = at;
      return run.offset + (iova - run.start);
    }
    return -1;
  }

  /** The first page of [iova, iova + length) that is not here, from `iova` on; -1 when all are. */
  missing(iova: number, length: number): number {
    const end = iova + length;
    let at = alignDown(iova, PAGE_SIZE);
    for (const run of this.runs) if (run.start <= at && at < run.end) at = run.end;
    return at < end ? at : -1;
  }

  /**
   * [iova, iova + size) is there from now on. @throws ProtocolError for what cannot be; SystemError. What was there
   * before may be gone then.
   */
  add(iova: number, size: number, { fd, file, fileOffset }: Backing): void {
    const end = iova + size;
    const isSound = size > 0 && Number.isSafeInteger(end) && Number.isSafeInteger(fileOffset + size);
    if (!isSound || ![iova, size, fileOffset].every((value) => isAligned(value, PAGE_SIZE))) {
      throw new ProtocolError(`an IOTLB entry of ${size} bytes at 0x${iova.toString(16)}`);
    }
    if (this.#has(iova, end, file, fileOffset)) return;
    memoryStatus(fd, this.#status);
    const pageSize = Math.max(PAGE_SIZE, this.#status[3]);
    // Of a file of huge pages they are mapped whole, and what was not granted is not looked up.
    const from = alignDown(iova, pageSize);
    const to = alignUp(end, pageSize);
    const fromOffset = fileOffset - (iova - from);
    if (!isAligned(fromOffset, pageSize)) {
      throw new ProtocolError("the device VM's memory is of huge pages, and the IOMMU has only parts of one");
    }
    try {
      this.#remove(iova, end);
      for (const range of this.#ranges.slice()) {
        const isSame = range.file === file && range.fileOffset - range.start === fileOffset - iova;
        if (!isSame && range.start < to && from < range.end) this.#remove(range.start, range.end);
      }
      if (this.#ranges.length >= MAX_IOTLB_RANGES) this.#evict();
      this.#eachPart(from, to, (at, length, part) => {
        const offset = this.#piece(part) * PART_SIZE + (at % PART_SIZE);
        this.#reservation.map(offset, length, fd, fromOffset + (at - from), PROT_READ | PROT_WRITE);
      });
      this.#ranges.push({ start: iova, end, file, fileOffset, pageSize });
    } catch (error) {
      this.#ranges.push({ start: from, end: to, file, fileOffset: fromOffset, pageSize });
      this.#remove(from, to);
      throw error;
    } finally {
      this.#changed();
    }
  }

  /** [iova, iova + size) is no more; a size of 0 is all. Whether there was anything of it. */
  remove(iova: number, size: number): boolean {
    const end = size === 0 ? Number.POSITIVE_INFINITY : alignUp(iova + size, PAGE_SIZE);
    const removed = this.#remove(size === 0 ? 0 : alignDown(iova, PAGE_SIZE), end);
    if (removed) this.#changed();
    return removed;
  }

  /** Removes what is not, as `isStill` says of each range, where it was. Whether there was any. */
  retain(isStill: (range: { file: string; fileOffset: number; size: number }) => boolean): boolean {
    const gone = this.#ranges.filter(
      ({ file, fileOffset, start, end }) => !isStill({ file, fileOffset, size: end - start }),
    );
    for (const { start, end } of gone) this.#remove(start, end);
    if (gone.length > 0) this.#changed();
    return gone.length > 0;
  }

  /** Nothing is here any more. */
  clear(): void {
    this.remove(0, 0);
  }

  #has(start: number, end: number, file: string, fileOffset: number): boolean {
    return this.#ranges.some(
      (range) =>
        range.start <= start &&
        end <= range.end &&
        range.file === file &&
        range.fileOffset - range.start === fileOffset - start,
    );
  }

  /** What is not kept makes place; it is asked for again when it is needed. */
  #evict(): void {
    for (const { start, end } of this.#ranges.slice()) if (!this.#isKept(start, end)) this.#remove(start, end);
    if (this.#ranges.length >= MAX_IOTLB_RANGES) throw new ProtocolError("too many ranges in the IOTLB");
  }

  #isKept(start: number, end: number): boolean {
    for (const extents of this.#kept.values()) {
      if (extents.some(({ address, length }) => address < end && start < address + length)) return true;
    }
    return false;
  }

  /** Whether anything was there. `#changed` is to follow. */
  #remove(start: number, end: number): boolean {
    // Pages of a file of huge pages go whole.
    const within = (range: Range) => {
      const from = Math.max(start, range.start);
      const to = Math.min(end, range.end);
      if (from >= to) return undefined;
      return { from: alignDown(from, range.pageSize), to: alignUp(to, range.pageSize) };
    };
    const holes = this.#ranges.flatMap((range) => within(range) ?? []);
    if (holes.length === 0) return false;
    this.beforeUnmap();
    for (const { from, to } of holes) {
      this.#eachPart(from, to, (at, length, part) => {
        const piece = this.#pieces.get(part);
        if (piece !== undefined) this.#reservation.unmap(piece * PART_SIZE + (at % PART_SIZE), length);
      });
      this.#ranges = this.#ranges.flatMap((range) => without(range, from, to));
    }
    return true;
  }

  /** What of [from, to) is in each part: parts are not beside one another. */
  #eachPart(from: number, to: number, run: (at: number, length: number, part: number) => void): void {
    for (let at = from; at < to; ) {
      const part = Math.floor(at / PART_SIZE);
      const end = Math.min(to, (part + 1) * PART_SIZE);
      run(at, end - at, part);
      at = end;
    }
  }

  /** The piece of a part, which may be taken only now. */
  #piece(part: number): number {
    const known = this.#pieces.get(part);
    if (known !== undefined) return known;
    const taken = new Set(this.#pieces.values());
    // So that parts beside one another are, as long as there is room, beside one another.
    let piece = part % MAX_IOTLB_PARTS;
    for (let n = 0; taken.has(piece) && n < MAX_IOTLB_PARTS; n++) piece = (piece + 1) % MAX_IOTLB_PARTS;
    if (taken.has(piece)) throw new ProtocolError(`more than ${MAX_IOTLB_PARTS} GiB of IOVAs in use`);
    this.#pieces.set(part, piece);
    return piece;
  }

  #changed(): void {
    this.#ranges.sort((a, b) => a.start - b.start);
    const used = new Set<number>();
    const ranges: Range[] = [];
    for (const range of this.#ranges) {
      for (let part = Math.floor(range.start / PART_SIZE); part * PART_SIZE < range.end; part++) used.add(part);
      const last = ranges.at(-1);
      const goesOn =
        last?.end === range.start &&
        last.file === range.file &&
        last.fileOffset + (last.end - last.start) === range.fileOffset;
      if (last !== undefined && goesOn) ranges[ranges.length - 1] = { ...last, end: range.end };
      else ranges.push(range);
    }
    this.#ranges = ranges;
    for (const part of [...this.#pieces.keys()]) {
      if (!used.has(part) && !this.#isKept(part * PART_SIZE, (part + 1) * PART_SIZE)) this.#pieces.delete(part);
    }
    this.runs = this.#findRuns();
    this.#lastRun = 0;
    this.onChange();
  }

  #findRuns(): Run[] {
    const runs: Run[] = [];
    for (const { start, end } of this.#ranges) {
      this.#eachPart(start, end, (at, length, part) => {
        const offset = this.#piece(part) * PART_SIZE + (at % PART_SIZE);
        const last = runs.at(-1);
        const goesOn = last?.end === at && last.offset + (last.end - last.start) === offset;
        if (last !== undefined && goesOn) runs[runs.length - 1] = { ...last, end: at + length };
        else runs.push({ start: at, end: at + length, offset });
      });
    }
    return runs;
  }
}

/** What is left of a range without [from, to). */
function without(range: Range, from: number, to: number): Range[] {
  if (to <= range.start || range.end <= from) return [range];
  const left: Range[] = [];
  if (range.start < from) left.push({ ...range, end: from });
  if (to < range.end) left.push({ ...range, start: to, fileOffset: range.fileOffset + (to - range.start) });
  return left;
}
