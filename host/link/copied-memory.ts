/**
 * Driver-VM memory that the bridge itself has mapped, for the copy queue: maps that are not in the window, because the device
 * process is isolated from them, or because a VM cannot have them (read-only ones, unsealed ones, a window that is full).
 * They are in one Reservation, so that no map brings an ArrayBuffer of its own, a place that was given back reads as zeros, and a
 * file that its owner truncates harms nobody.
 */
import { PROT_READ, PROT_WRITE, Reservation } from "../../native/index.js";
import { isSystemError } from "../../shared/errors.js";
import { MAX_COPIED_MAPS, WINDOW_PIECE_SIZE } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import type { MemoryMap } from "../../shared/vfio-user/backend.js";
import { DmaTable } from "../../shared/vfio-user/dma-table.js";
import { WindowAllocator } from "../../shared/window-allocator.js";

interface Entry {
  readonly address: number;
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Where it is in the reservation. */
  readonly place: number;
}

export class CopiedMemory {
  /** What `locate` found: bytes[offset, offset + length). */
  bytes = new Uint8Array(0);
  offset = 0;
  /** Called before a map goes away: whoever uses it beside JavaScript sets this, and ends that use. */
  beforeUnmap: (() => void) | undefined;
  readonly #size: number;
  readonly #log: Log;
  readonly #allocator: WindowAllocator;
  readonly #entries = new Map<MemoryMap, Entry>();
  readonly #table = new DmaTable<Entry>();
  /** Made for the first map that is needed here. */
  #reservation: Reservation | undefined;
  readonly #pieces: Uint8Array<ArrayBuffer>[] = [];
  /** There was no room for the last map: it was logged. */
  #isFull = false;

  /** `size` in bytes: of all that can be mapped at once. */
  constructor(size: number, log: Log) {
    this.#size = size;
    this.#log = log;
    this.#allocator = new WindowAllocator(size, WINDOW_PIECE_SIZE);
  }

  has(map: MemoryMap): boolean {
    return this.#entries.has(map);
  }

  /** Maps it, where it has an fd and there is room. @throws ProtocolError EEXIST when there is another at that address */
  put(map: MemoryMap): void {
    const { address, size, readable, writable, fd, fdOffset } = map;
    if (fd < 0 || this.#entries.has(map)) return;
    const place = this.#entries.size < MAX_COPIED_MAPS ? this.#allocator.allocate(size, fdOffset) : -1;
    if (place < 0) {
      if (!this.#isFull)
        this.#log.warn({ address, size, maps: this.#entries.size }, "no room for copies: DMA by messages");
      this.#isFull = true;
      return;
    }
    const entry = { address, size, readable, writable, place };
    try {
      this.#table.insert(entry);
    } catch (error) {
      this.#allocator.free(place);
      throw error;
    }
    try {
      this.#reservation ??= new Reservation(this.#size, WINDOW_PIECE_SIZE);
      this.#reservation.map(place, size, fd, fdOffset, writable ? PROT_READ | PROT_WRITE : PROT_READ);
      // Opening a piece costs a garbage collection: better now than at the first copy.
      const last = Math.floor((place + size - 1) / WINDOW_PIECE_SIZE);
      for (let index = Math.floor(place / WINDOW_PIECE_SIZE); index <= last; index++) {
        this.#pieces[index] ??= new Uint8Array(this.#reservation.piece(index));
      }
    } catch (error) {
      this.#table.remove(address, size);
      this.#allocator.free(place);
      if (!isSystemError(error)) throw error;
      this.#log.warn({ address, size, reason: error.message }, "not mapped for copies: DMA by messages");
      return;
    }
    this.#entries.set(map, entry);
  }

  /** When it returns nothing reaches the map from here. Nothing happens where it is not mapped. */
  remove(map: MemoryMap): void {
    const entry = this.#entries.get(map);
    if (!entry) return;
    this.beforeUnmap?.();
    this.#entries.delete(map);
    this.#isFull = false;
    this.#table.remove(entry.address, entry.size);
    try {
      this.#reservation?.unmap(entry.place, entry.size);
      this.#allocator.free(entry.place);
    } catch (error) {
      // It is in no table any more, and its place is not used again.
      if (!isSystemError(error)) throw error;
      this.#log.error({ err: error }, "memory for copies stays mapped");
    }
  }

  /** Whether all of [address, address + length) is in one map and may be accessed so; any numbers are safe. */
  reaches(address: number, length: number, isWrite: boolean): boolean {
    const entry = Number.isSafeInteger(address) ? this.#table.find(address, length) : undefined;
    return entry !== undefined && (isWrite ? entry.writable : entry.readable);
  }

  /** Of what is reached: finds `address`. Returns how many of `length` bytes lie in a row there, and sets `bytes` and `offset`. */
  locate(address: number, length: number): number {
    const entry = this.#table.at(address);
    if (!entry) return 0;
    const at = entry.place + (address - entry.address);
    const index = Math.floor(at / WINDOW_PIECE_SIZE);
    this.bytes = this.#pieces[index];
    this.offset = at - index * WINDOW_PIECE_SIZE;
    return Math.min(length, this.bytes.length - this.offset);
  }

  close(): void {
    this.beforeUnmap?.();
    this.#reservation?.release();
    this.#reservation = undefined;
  }
}
