/**
 * Driver-VM memory that this process has mapped for copies: maps that are not in the window, because the device process
 * is isolated from them, because a VM cannot have them (read-only ones, unsealed ones), or because the window cannot
 * (it is full, or they begin in the middle of a huge page).
 *
 * Not the maps are mapped but the files behind them (file-chunks.ts). What a map does not permit is not found here, and
 * a map that is read-only is found in memory that is. All of it is in one Reservation, so that no map brings an
 * ArrayBuffer of its own, and a file that its owner truncates harms nobody.
 */
import { Reservation } from "../../../native/index.js";
import { formatAddress } from "../../address.js";
import { isSystemError } from "../../errors.js";
import { CHUNK_SIZE, type Chunk, FileChunks } from "../../file-chunks.js";
import { DRIVER_VM_MEMORY_SIZE } from "../../limits.js";
import type { Log } from "../../log.js";
import { WindowAllocator } from "../../window-allocator.js";
import type { MemoryMap } from "../backend.js";
import { DmaTable } from "./dma-table.js";

const MAX_CHUNKS = DRIVER_VM_MEMORY_SIZE / CHUNK_SIZE;
/**
 * Opening a piece of the reservation costs a garbage collection, which is better done at a map than at the first copy;
 * but not hundreds of times in a row, for a client with a large file.
 */
const OPENED_EARLY = 16;

/** What has to be known of a map. */
export type CopiedMap = Pick<
  MemoryMap,
  "address" | "backed" | "readable" | "writable" | "fd" | "fdOffset" | "device" | "inode"
>;

interface Entry {
  readonly address: number;
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Where it begins in its first chunk. */
  readonly start: number;
  readonly chunks: readonly Chunk[];
}

export class CopiedMemory {
  /** What `locate` found: bytes[offset, offset + length). */
  bytes = new Uint8Array(0);
  offset = 0;
  /** Called before a map goes away: whoever uses it beside JavaScript sets this, and ends that use. */
  beforeUnmap: (() => void) | undefined;
  readonly #log: Log;
  readonly #entries = new Map<CopiedMap, Entry>();
  readonly #table = new DmaTable<Entry>();
  /** Made for the first map that is needed here. */
  #reservation: Reservation | undefined;
  #chunks: FileChunks | undefined;
  readonly #pieces: Uint8Array<ArrayBuffer>[] = [];
  /** There was no room for the last map: it was logged. */
  #isFull = false;

  constructor(log: Log) {
    this.#log = log;
  }

  has(map: CopiedMap): boolean {
    return this.#entries.has(map);
  }

  /**
   * Maps what its file has of it, where it has an fd and there is room. @throws ProtocolError EEXIST when there is
   * another at that address
   */
  put(map: CopiedMap): void {
    const { address, backed: size, readable, writable, fd, fdOffset } = map;
    if (fd < 0 || this.#entries.has(map)) return;
    const chunks: Chunk[] = [];
    const entry = { address, size, readable, writable, start: fdOffset % CHUNK_SIZE, chunks };
    this.#table.insert(entry);
    const end = fdOffset + size;
    try {
      for (let at = fdOffset; at < end; at = (Math.floor(at / CHUNK_SIZE) + 1) * CHUNK_SIZE) {
        const chunk = this.#take(map, at, Math.min(end, (Math.floor(at / CHUNK_SIZE) + 1) * CHUNK_SIZE));
        if (chunk === undefined) break;
        chunks.push(chunk);
      }
      if (entry.start + size <= chunks.length * CHUNK_SIZE) {
        this.#entries.set(map, entry);
        return;
      }
      this.#complain(address, size, "no room for it");
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#complain(address, size, error.message);
    }
    this.#table.remove(address, size);
    this.#drop(chunks);
  }

  /** When it returns nothing reaches the map from here. Nothing happens where it is not mapped. */
  remove(map: CopiedMap): void {
    const entry = this.#entries.get(map);
    if (!entry) return;
    this.beforeUnmap?.();
    this.#entries.delete(map);
    this.#isFull = false;
    this.#table.remove(entry.address, entry.size);
    this.#drop(entry.chunks);
  }

  /** Whether all of [address, address + length) is in one map and may be accessed so; any numbers are safe. */
  reaches(address: number, length: number, isWrite: boolean): boolean {
    const entry = Number.isSafeInteger(address) ? this.#table.find(address, length) : undefined;
    return entry !== undefined && (isWrite ? entry.writable : entry.readable);
  }

  /**
   * Of what is reached: finds `address`. Returns how many of `length` bytes lie in a row there, and sets `bytes` and
   * `offset`.
   */
  locate(address: number, length: number): number {
    const entry = this.#table.at(address);
    if (!entry) return 0;
    const at = entry.start + (address - entry.address);
    const index = Math.floor(at / CHUNK_SIZE);
    this.bytes = this.#bytesOf(entry.chunks[index].offset / CHUNK_SIZE);
    this.offset = at - index * CHUNK_SIZE;
    return Math.min(length, this.bytes.length - this.offset);
  }

  /** Unmaps what no map needs now, but the next one may. */
  dropIdle(): void {
    this.#chunks?.dropIdle();
  }

  close(): void {
    this.beforeUnmap?.();
    this.#chunks?.clear();
    this.#reservation?.release();
    this.#chunks = this.#reservation = undefined;
  }

  #take(map: CopiedMap, begin: number, end: number): Chunk | undefined {
    this.#chunks ??= this.#reserve();
    const chunk = this.#chunks.take(map, begin, end);
    const piece = chunk === undefined ? OPENED_EARLY : chunk.offset / CHUNK_SIZE;
    if (piece < OPENED_EARLY) this.#bytesOf(piece);
    return chunk;
  }

  #reserve(): FileChunks {
    this.#reservation = new Reservation(DRIVER_VM_MEMORY_SIZE, CHUNK_SIZE);
    const allocator = new WindowAllocator(DRIVER_VM_MEMORY_SIZE, CHUNK_SIZE);
    return new FileChunks(this.#reservation, allocator, MAX_CHUNKS, this.#log, () => this.beforeUnmap?.());
  }

  #bytesOf(piece: number): Uint8Array<ArrayBuffer> {
    const bytes = this.#pieces[piece];
    if (bytes !== undefined) return bytes;
    if (this.#reservation === undefined) throw new RangeError("nothing is mapped");
    const opened = new Uint8Array(this.#reservation.piece(piece));
    this.#pieces[piece] = opened;
    return opened;
  }

  #drop(chunks: readonly Chunk[]): void {
    for (const chunk of chunks) this.#chunks?.leave(chunk);
  }

  #complain(address: number, size: number, reason: string): void {
    if (!this.#isFull)
      this.#log.warn({ address: formatAddress(address), size, reason }, "not mapped for copies: DMA by messages");
    this.#isFull = true;
  }
}
