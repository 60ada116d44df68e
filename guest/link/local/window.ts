/**
 * The window of the local link: a range of this process's addresses into which the client's memory is mapped, and the
 * device's own that clients share. What it cannot have (it is full, or the edges of a map lie within huge pages) is
 * mapped beside it, for copies. A map below 2 MiB lies in one mapping of its file with others (docs/decisions/021).
 */
import { close, eventfd, POLL_READABLE, Poll, PROT_READ, PROT_WRITE, type Reservation } from "../../../native/index.js";
import { formatAddress } from "../../../shared/address.js";
import { reserveAddressSpace } from "../../../shared/address-space.js";
import { isPowerOfTwo } from "../../../shared/bits.js";
import { Errno, isSystemError, ProtocolError } from "../../../shared/errors.js";
import { CHUNK_SIZE, type Chunk, FileChunks, type Run } from "../../../shared/file-chunks.js";
import { LARGE_PAGE_SIZE, PAGE_SIZE, WINDOW_PIECE_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { isLost } from "../../../shared/lost-memory.js";
import type { MemoryMap } from "../../../shared/vfio-user/backend.js";
import { CopiedMemory } from "../../../shared/vfio-user/dma/copied-memory.js";
import { type MapPart, mapParts } from "../../../shared/vfio-user/dma/dma-ranges.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";
import { WindowAllocator } from "../../../shared/window-allocator.js";
import type { Window } from "../link.js";

/**
 * Mappings in the window, of those that a client may have: each takes two of the mappings that Linux grants a process
 * (65530, vm.max_map_count), and one that has none left cannot go on.
 */
const MAX_MAPPED = 16 * 1024;
/** What is smaller shares the mapping of its file with others. */
const OWN_MAPPING_SIZE = LARGE_PAGE_SIZE;

export class LocalWindow implements Window {
  readonly pieceSize = WINDOW_PIECE_SIZE;
  readonly #log: Log;
  readonly #reservation: Reservation;
  readonly #allocator: WindowAllocator;
  /** With the chunk of its file in which a small one lies. */
  readonly #maps = new Map<MemoryMap, Chunk | undefined>();
  readonly #chunks: FileChunks;
  readonly #copied: CopiedMemory;
  /** There was no room for the last map: it was logged. */
  #isFull = false;
  /** Signalled when the device wrote to what it may only read. */
  readonly #stray = eventfd(0);
  readonly #strayPoll: Poll;
  #strays = 0;

  /** @throws UserError when there is no address space */
  constructor(
    readonly size: number,
    log: Log,
  ) {
    this.#log = log;
    this.#reservation = reserveAddressSpace("the driver VM's memory", size, this.#stray);
    this.#allocator = new WindowAllocator(size, WINDOW_PIECE_SIZE);
    // The other half is for maps that are larger.
    this.#chunks = new FileChunks(this.#reservation, this.#allocator, Math.floor(size / CHUNK_SIZE / 2), log);
    this.#copied = new CopiedMemory(log);
    this.#strayPoll = new Poll(this.#stray, () => this.#undoStray(), "eventfd");
    this.#strayPoll.start(POLL_READABLE);
    this.#strayPoll.unref();
  }

  piece(index: number): ArrayBuffer {
    return this.#reservation.piece(index);
  }

  /** Allocates window space for memory of the device's own; -1 when there is no room. */
  allocate(size: number, phase: number): number {
    return this.#allocator.allocate(size, phase);
  }

  free(windowOffset: number): void {
    this.#allocator.free(windowOffset);
  }

  /** Maps memory of the device's own at its window offset, over what was there. @throws SystemError */
  map(windowOffset: number, size: number, fd: number, fdOffset: number): void {
    this.#reservation.map(windowOffset, size, fd, fdOffset, PROT_READ | PROT_WRITE);
  }

  unmap(windowOffset: number, size: number): void {
    this.#reservation.unmap(windowOffset, size);
  }

  /**
   * Puts a map of the client's into the window as far as it can be, and the rest where it is copied; sets its
   * `windowOffset`. Returns its parts, as a device sees them. @throws ProtocolError; `release` undoes what was done
   */
  put(map: MemoryMap): MapPart[] {
    const { begin, end } = map.windowPart;
    this.#maps.set(map, undefined);
    if (map.fd !== -1 && begin !== end) this.#place(map, begin, end);
    if (map.windowOffset < 0 || end - begin < map.backed) this.#copied.put(map);
    return mapParts(map, this.#copied.has(map));
  }

  /** Takes memory out of reach. Nothing happens a second time: a late answer may come when the client is gone. */
  release(maps: readonly MemoryMap[]): void {
    let held: Set<Chunk> | undefined;
    for (const map of maps) {
      const chunk = this.#maps.get(map);
      this.#release(map);
      if (chunk !== undefined && chunk.holders > 0) {
        held ??= new Set();
        held.add(chunk);
      }
    }
    if (held !== undefined) this.#takeAway(held);
  }

  /**
   * The same of what may still be used until `finished`: it is taken away really, and its window space is not used
   * again before.
   */
  releaseByForce(maps: readonly MemoryMap[], finished: Promise<void>): void {
    const chunks = new Set(maps.flatMap((map) => this.#maps.get(map) ?? []));
    for (const chunk of chunks) this.#chunks.hold(chunk, finished);
    for (const map of maps) this.#release(map, finished);
    this.#takeAway(chunks);
  }

  /** The client is gone: nothing of it stays. */
  releaseAll(): void {
    for (const map of [...this.#maps.keys()]) this.#release(map);
    this.#chunks.dropIdle();
    this.#copied.dropIdle();
  }

  /** Between what is mapped outside the window and the device's bytes. Rejects with ProtocolError EFAULT. */
  async copy(address: number, bytes: Uint8Array, isWrite: boolean): Promise<void> {
    const memory = this.#copied;
    if (!memory.reaches(address, bytes.length, isWrite)) {
      throw new ProtocolError(`no memory at ${formatAddress(address)} of ${bytes.length}`, Errno.EFAULT);
    }
    for (let done = 0; done < bytes.length; ) {
      const length = memory.locate(address + done, bytes.length - done);
      if (isWrite) copyBytes(bytes, done, memory.bytes, memory.offset, length);
      else copyBytes(memory.bytes, memory.offset, bytes, done, length);
      if (isLost(memory.bytes, memory.offset, length)) {
        throw new ProtocolError(`memory at ${formatAddress(address + done)} is gone`, Errno.EFAULT);
      }
      done += length;
    }
  }

  close(): void {
    this.#chunks.clear();
    this.#copied.close();
    this.#reservation.release();
    this.#strayPoll.close();
    close(this.#stray);
  }

  #place(map: MemoryMap, begin: number, end: number): void {
    const chunk = this.#chunkFor(map);
    if (chunk !== undefined) {
      this.#maps.set(map, chunk);
      map.windowOffset = chunk.offset + (map.fdOffset - chunk.begin);
      map.isHeld = true;
      return;
    }
    const offset = this.#allocateFor(map, begin, end);
    if (offset === -1) {
      this.#complain(map, "the window is full: DMA by copies");
      return;
    }
    try {
      this.#mapAt(offset, map);
      map.windowOffset = offset;
    } catch (error) {
      this.#allocator.free(offset);
      if (!isSystemError(error)) throw error;
      this.#complain(map, "not in the window: DMA by copies", error.message);
    }
  }

  #allocateFor({ fdOffset, pageSize }: MemoryMap, begin: number, end: number): number {
    if (this.#allocator.count >= MAX_MAPPED) return -1;
    const offset = this.#allocator.allocate(end - begin, fdOffset + begin, pageSize);
    if (offset >= 0 || !this.#chunks.dropIdle()) return offset;
    return this.#allocator.allocate(end - begin, fdOffset + begin, pageSize);
  }

  /** Undefined for a map that is to have a mapping of its own: a large one, and others where there can be no chunk. */
  #chunkFor(map: MemoryMap): Chunk | undefined {
    const { fdOffset, size, pageSize, isMemory } = map;
    const end = fdOffset + size;
    const isInOne = Math.floor(fdOffset / CHUNK_SIZE) === Math.floor((end - 1) / CHUNK_SIZE);
    if (!isMemory || size >= OWN_MAPPING_SIZE || pageSize !== PAGE_SIZE || !isInOne) return undefined;
    try {
      return this.#chunks.take(map, fdOffset, end);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#log.debug({ reason: error.message }, "a map that does not lie in a mapping of its file");
      return undefined;
    }
  }

  /** In this process read-only is what it says, and memory that its owner shrinks reads as zeros. */
  #mapAt(offset: number, { fd, fdOffset, writable, windowPart: { begin, end } }: MemoryMap): void {
    const protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    this.#reservation.map(offset, end - begin, fd, fdOffset + begin, protection);
  }

  /** Its window space is free again once `finished` has resolved. */
  #release(map: MemoryMap, finished?: Promise<void>): void {
    const chunk = this.#maps.get(map);
    if (!this.#maps.delete(map)) return;
    this.#copied.remove(map);
    const offset = map.windowOffset;
    if (offset < 0) return;
    map.windowOffset = -1;
    this.#isFull = false;
    if (chunk !== undefined) {
      map.isHeld = this.#chunks.leave(chunk);
      return;
    }
    const { begin, end } = map.windowPart;
    this.#reservation.unmap(offset, end - begin);
    if (finished === undefined) this.#allocator.free(offset);
    else void finished.then(() => this.#allocator.free(offset));
  }

  /** What no map has any more of chunks that something may still use. @throws SystemError */
  #takeAway(chunks: ReadonlySet<Chunk>): void {
    for (const chunk of chunks) this.#chunks.takeAway(chunk, this.#usedRuns(chunk));
  }

  /** The memory of the maps that lie in a chunk, in ascending order. */
  #usedRuns(chunk: Chunk): Run[] {
    const runs: Run[] = [];
    for (const [map, its] of this.#maps) {
      if (its === chunk) runs.push({ start: map.windowOffset, end: map.windowOffset + map.size });
    }
    return runs.sort((a, b) => a.start - b.start);
  }

  /**
   * The device's code wrote to a segment or view that it has for "read". That went to a copy, which is no longer the
   * driver VM's memory.
   */
  #undoStray(): void {
    this.#strays++;
    if (isPowerOfTwo(this.#strays)) {
      const message =
        "the device wrote to memory that the driver VM mapped read-only: the write is undone (a bug of the device's)";
      this.#log.error({ writes: this.#strays }, message);
    }
    this.#restore(() => this.#chunks.restoreReadOnly());
    for (const [map, chunk] of this.#maps) {
      if (chunk === undefined && !map.writable && map.windowOffset >= 0) {
        this.#restore(() => this.#mapAt(map.windowOffset, map));
      }
    }
  }

  #restore(remap: () => void): void {
    try {
      remap();
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#log.error({ reason: error.message }, "driver-VM memory is lost to the device");
    }
  }

  #complain({ size }: MemoryMap, message: string, reason?: string): void {
    if (!this.#isFull) this.#log.warn(reason === undefined ? { size } : { size, reason }, message);
    this.#isFull = true;
  }
}
