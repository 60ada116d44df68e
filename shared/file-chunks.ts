/**
 * Files of a peer's memory, mapped a GiB at a time ("chunk") for all maps that lie in it. A driver VM with an IOMMU
 * makes a map for each page, thousands a second, of one file; and each mapping of its own would cost two system calls
 * and two of the 65530 mappings that a process can have (vm.max_map_count). A map that comes or goes only counts here.
 * A chunk without users stays for a second or two, since the next map mostly lies in it, and no longer, since the VMM
 * may have given its file up.
 *
 * What a map permits is not decided here, but that read-only maps are in memory which is mapped for reading only. A
 * chunk has a descriptor of its own, so that unmapping it never frees the file's memory: closing that does, in a thread
 * if it is much.
 */
import { anyLost, close, createMemory, fileStatus, PROT_READ, PROT_WRITE, type Reservation } from "../native/index.js";
import { alignUp } from "./bits.js";
import { isSystemError } from "./errors.js";
import { PAGE_SIZE, WINDOW_PIECE_SIZE } from "./limits.js";
import type { Log } from "./log.js";
import { closePeerFd, duplicatePeerFd } from "./peer-fds.js";
import type { WindowAllocator } from "./window-allocator.js";

/** Bytes of a chunk in its file and in the reservation; it begins at a multiple of them in both. */
export const CHUNK_SIZE = WINDOW_PIECE_SIZE;
/** A chunk without users goes at the second of these that finds it so. */
const SWEEP_MS = 1000;
/** Chunks without users; of more, the others go at once. */
const MAX_IDLE = 16;
/** Pieces that are taken out of chunks at most, all together: each takes two mappings of the process. */
const MAX_TAKEN = 4096;

/** A file of the peer's. The descriptor is the caller's. */
export interface ChunkFile {
  readonly fd: number;
  readonly device: number;
  readonly inode: number;
  readonly writable: boolean;
}

export interface Chunk extends ChunkFile {
  /** Where it begins in its file, in bytes; and in the reservation. */
  readonly begin: number;
  readonly offset: number;
  /** Bytes that are mapped. */
  size: number;
  /** Maps that lie in it. */
  users: number;
  /** Works that may still use what was taken away by force. */
  holders: number;
  /** What was taken away by force since it was mapped: ends by starts, in the reservation. */
  taken: ReadonlyMap<number, number>;
  /** Zeros are where memory may be: it is to be mapped again. */
  isStale: boolean;
  /** The reservation's when it was mapped. */
  repairs: number;
  /** The last sweep found it without users. */
  wasIdle: boolean;
  /** It is in no list any more; its window space is freed with the last holder. */
  isGone: boolean;
}

/** Bytes [start, end) of the reservation. */
export interface Run {
  readonly start: number;
  readonly end: number;
}

const NOTHING: ReadonlyMap<number, number> = new Map();

export class FileChunks {
  readonly #reservation: Reservation;
  readonly #allocator: WindowAllocator;
  readonly #most: number;
  readonly #log: Log;
  readonly #beforeChange: () => void;
  readonly #chunks: Chunk[] = [];
  /** The one that was taken last. */
  #last: Chunk | undefined;
  #sweep: NodeJS.Timeout | undefined;

  /**
   * At most `most` chunks, allocated by `allocator` in `reservation`, whose pieces are as large as a chunk.
   * `beforeChange` is called before a chunk that has users is mapped again.
   */
  constructor(
    reservation: Reservation,
    allocator: WindowAllocator,
    most: number,
    log: Log,
    beforeChange: () => void = () => {},
  ) {
    this.#reservation = reservation;
    this.#allocator = allocator;
    this.#most = most;
    this.#log = log;
    this.#beforeChange = beforeChange;
  }

  /**
   * One more user of bytes [begin, end) of a file, which lie in one chunk. Undefined when there is no room for it, or
   * something may still use what was taken from the chunk by force. What of the file is gone reads as zeros. @throws
   * SystemError
   */
  take(file: ChunkFile, begin: number, end: number): Chunk | undefined {
    const chunk = this.#find(file, begin) ?? this.#make(file, begin);
    if (chunk === undefined || chunk.holders > 0) return undefined;
    const isMapped = chunk.begin + chunk.size >= end && !chunk.isStale && chunk.repairs === this.#repairs;
    if (!isMapped) this.#remap(chunk, file.fd, end);
    chunk.users++;
    chunk.wasIdle = false;
    return chunk;
  }

  /** One user less. Whether the chunk is still there. */
  leave(chunk: Chunk): boolean {
    if (--chunk.users > 0 || chunk.isGone) return !chunk.isGone;
    if (chunk.isStale || this.#countIdle() > MAX_IDLE) {
      this.#remove(chunk);
      return false;
    }
    this.#sweep ??= setInterval(() => this.#sweepIdle(), SWEEP_MS).unref();
    return true;
  }

  /**
   * A work may still use a chunk until `finished`, though its map goes: its window space is not used again meanwhile.
   * Before `leave`.
   */
  hold(chunk: Chunk, finished: Promise<void>): void {
    chunk.isStale = true;
    chunk.holders++;
    void finished.then(() => {
      chunk.holders--;
      this.#free(chunk);
    });
  }

  /**
   * Takes memory away from such a work: all but `rest`, its users' in ascending order. The first `take` after
   * `finished` maps it again. To be called whenever a map leaves a chunk that has holders.
   */
  takeAway(chunk: Chunk, rest: readonly Run[]): void {
    if (chunk.isGone) return;
    const free = gaps(chunk, rest);
    const { taken } = chunk;
    chunk.taken = free;
    let all = 0;
    for (const one of this.#chunks) all += one.taken.size;
    if (all > MAX_TAKEN) {
      this.#lose(chunk);
      return;
    }
    try {
      for (const [start, end] of free) if (taken.get(start) !== end) this.#reservation.unmap(start, end - start);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#lose(chunk);
    }
  }

  /** Undoes what was written to chunks that are for reading only. @throws SystemError */
  restoreReadOnly(): void {
    for (const chunk of this.#chunks) {
      if (chunk.writable) continue;
      if (chunk.holders > 0) chunk.isStale = true;
      else this.#map(chunk, chunk.fd);
    }
  }

  /** Unmaps what no map needs now. Whether that was anything. */
  dropIdle(): boolean {
    const idle = this.#chunks.filter(({ users }) => users === 0);
    for (const chunk of idle) this.#remove(chunk);
    return idle.length > 0;
  }

  /** Unmaps all of them, whatever users they have. */
  clear(): void {
    for (const chunk of [...this.#chunks]) this.#remove(chunk);
    this.#stopSweep();
  }

  get #repairs(): number {
    return Atomics.load(anyLost, 0) === 0 ? 0 : this.#reservation.repairs;
  }

  #find(file: ChunkFile, at: number): Chunk | undefined {
    if (this.#last !== undefined && holds(this.#last, file, at)) return this.#last;
    this.#last = this.#chunks.find((chunk) => holds(chunk, file, at));
    return this.#last;
  }

  #make(file: ChunkFile, at: number): Chunk | undefined {
    const offset = this.#allocate();
    const fd = offset < 0 ? -1 : tryDuplicate(file.fd);
    if (fd < 0) {
      if (offset >= 0) this.#allocator.free(offset);
      return undefined;
    }
    const { device, inode, writable } = file;
    const begin = Math.floor(at / CHUNK_SIZE) * CHUNK_SIZE;
    const nothing = {
      size: 0,
      users: 0,
      holders: 0,
      taken: NOTHING,
      isStale: false,
      repairs: 0,
      wasIdle: false,
      isGone: false,
    };
    const chunk: Chunk = { fd, device, inode, writable, begin, offset, ...nothing };
    this.#chunks.push(chunk);
    this.#last = chunk;
    return chunk;
  }

  #allocate(): number {
    if (this.#chunks.length < this.#most) {
      const offset = this.#allocator.allocate(CHUNK_SIZE);
      if (offset >= 0) return offset;
    }
    return this.dropIdle() ? this.#allocate() : -1;
  }

  #remap(chunk: Chunk, fd: number, end: number): void {
    try {
      // The file may have been cut short since the map was checked.
      const fileEnd = Math.max(alignUp(fileStatus(fd).size, PAGE_SIZE), end);
      if (chunk.users > 0) this.#beforeChange();
      // Never less: what older maps have of a file that is shorter now is still there to be taken away.
      chunk.size = Math.max(chunk.size, Math.min(fileEnd - chunk.begin, CHUNK_SIZE));
      this.#map(chunk, fd);
    } catch (error) {
      if (chunk.users === 0) this.#remove(chunk);
      else this.#lose(chunk);
      throw error;
    }
  }

  #map(chunk: Chunk, fd: number): void {
    chunk.repairs = this.#repairs;
    const protection = chunk.writable ? PROT_READ | PROT_WRITE : PROT_READ;
    this.#reservation.map(chunk.offset, chunk.size, fd, chunk.begin, protection);
    chunk.isStale = false;
    chunk.taken = NOTHING;
  }

  /** Nothing is left of it for its users, as if the file's owner had truncated it. @throws SystemError */
  #lose(chunk: Chunk): void {
    chunk.isStale = true;
    chunk.taken = NOTHING;
    let nothing = -1;
    try {
      nothing = createMemory("vfio-user-gone", 0, false);
      this.#reservation.map(chunk.offset, chunk.size, nothing, 0, PROT_READ | PROT_WRITE);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#log.error({ err: error }, "memory of the driver VM is zeros to the device");
      this.#reservation.unmap(chunk.offset, chunk.size);
    } finally {
      if (nothing >= 0) close(nothing);
    }
  }

  #remove(chunk: Chunk): void {
    this.#chunks.splice(this.#chunks.indexOf(chunk), 1);
    if (this.#last === chunk) this.#last = undefined;
    chunk.isGone = true;
    try {
      this.#reservation.unmap(chunk.offset, CHUNK_SIZE);
      this.#free(chunk);
    } catch (error) {
      // Its window space is not used again.
      if (!isSystemError(error)) throw error;
      chunk.holders++;
      this.#log.error({ err: error }, "memory of the driver VM stays mapped");
    }
    closePeerFd(chunk.fd);
  }

  #free({ isGone, holders, offset }: Chunk): void {
    if (isGone && holders === 0) this.#allocator.free(offset);
  }

  #countIdle(): number {
    let idle = 0;
    for (const { users } of this.#chunks) if (users === 0) idle++;
    return idle;
  }

  #sweepIdle(): void {
    for (const chunk of [...this.#chunks]) {
      if (chunk.users > 0) continue;
      if (chunk.wasIdle) this.#remove(chunk);
      else chunk.wasIdle = true;
    }
    if (this.#countIdle() === 0) this.#stopSweep();
  }

  #stopSweep(): void {
    clearInterval(this.#sweep);
    this.#sweep = undefined;
  }
}

function holds(chunk: Chunk, { inode, device, writable }: ChunkFile, at: number): boolean {
  const isOfFile = chunk.inode === inode && chunk.device === device && chunk.writable === writable;
  return isOfFile && at >= chunk.begin && at - chunk.begin < CHUNK_SIZE;
}

/** What of a chunk is in none of the runs: ends by starts. */
function gaps({ offset, size }: Chunk, runs: readonly Run[]): ReadonlyMap<number, number> {
  const found = new Map<number, number>();
  let at = offset;
  for (const { start, end } of runs) {
    if (start > at) found.set(at, start);
    at = Math.max(at, end);
  }
  if (at < offset + size) found.set(at, offset + size);
  return found;
}

/** -1 where the peer's share, or the process, has no descriptor left. */
function tryDuplicate(fd: number): number {
  try {
    return duplicatePeerFd(fd);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    return -1;
  }
}
