/**
 * Driver-VM memory that this process has mapped for copies: maps that are not in the window, because the device process
 * is isolated from them, because a VM cannot have them (read-only ones, unsealed ones), or because the window cannot
 * (it is full, or they begin in the middle of a huge page).
 *
 * Not the maps are mapped but the files behind them, a GiB at a time, as long as a map needs it: a driver VM with an
 * IOMMU makes thousands of maps of one file, and a process has 65530 mappings in all (vm.max_map_count). What a map
 * does not permit is not found here, and a map that is read-only is found in memory that is. All of it is in one
 * Reservation, so that no map brings an ArrayBuffer of its own, and a file that its owner truncates harms nobody.
 */
import { fileStatus, PROT_READ, PROT_WRITE, Reservation } from "../native/index.js";
import { formatAddress } from "./address.js";
import { alignUp } from "./bits.js";
import { isSystemError } from "./errors.js";
import { DRIVER_VM_MEMORY_SIZE, PAGE_SIZE, WINDOW_PIECE_SIZE } from "./limits.js";
import type { Log } from "./log.js";
import type { MemoryMap } from "./vfio-user/backend.js";
import { DmaTable } from "./vfio-user/dma/dma-table.js";

const MAX_CHUNKS = DRIVER_VM_MEMORY_SIZE / WINDOW_PIECE_SIZE;
/**
 * Opening a piece of the reservation costs a garbage collection, which is better done at a map than at the first copy;
 * but not hundreds of times in a row, for a client with a large file.
 */
const OPENED_EARLY = 16;

/** What has to be known of a map. */
export type CopiedMap = Pick<MemoryMap, "address" | "size" | "readable" | "writable" | "fd" | "fdOffset">;

/** A GiB of a file, at a multiple of that in the file and in the reservation. */
interface Chunk {
  readonly key: string;
  /** Which piece of the reservation it is. */
  readonly piece: number;
  /** Bytes that are mapped. */
  size: number;
  /** The reservation's `repairs` when they were. */
  repairs: number;
  /** Maps that need it. */
  users: number;
}

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
  /** By file, access, and number in the file. */
  readonly #chunks = new Map<string, Chunk>();
  /** Pieces that were used and are free again. */
  readonly #freePieces: number[] = [];
  #usedPieces = 0;
  /** Made for the first map that is needed here. */
  #reservation: Reservation | undefined;
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
   * Maps it, where it has an fd and there is room. @throws ProtocolError EEXIST when there is another at that address
   */
  put(map: CopiedMap): void {
    const { address, size, readable, writable, fd, fdOffset } = map;
    if (fd < 0 || this.#entries.has(map)) return;
    const chunks: Chunk[] = [];
    const entry = { address, size, readable, writable, start: fdOffset % WINDOW_PIECE_SIZE, chunks };
    this.#table.insert(entry);
    try {
      const { device, inode, size: fileSize } = fileStatus(fd);
      const first = Math.floor(fdOffset / WINDOW_PIECE_SIZE);
      const last = Math.floor((fdOffset + size - 1) / WINDOW_PIECE_SIZE);
      for (let number = first; number <= last; number++) {
        const key = `${device}:${inode}:${number}:${writable}`;
        // The file may have been cut short since the map was checked.
        const fileEnd = Math.max(alignUp(fileSize, PAGE_SIZE), fdOffset + size);
        const end = Math.min(fileEnd, (number + 1) * WINDOW_PIECE_SIZE);
        const chunk = this.#chunk(key, number * WINDOW_PIECE_SIZE, end, map);
        if (chunk === undefined) break;
        chunks.push(chunk);
      }
      if (chunks.length === last - first + 1) {
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
    const index = Math.floor(at / WINDOW_PIECE_SIZE);
    this.bytes = this.#bytesOf(entry.chunks[index].piece);
    this.offset = at - index * WINDOW_PIECE_SIZE;
    return Math.min(length, this.bytes.length - this.offset);
  }

  close(): void {
    this.beforeUnmap?.();
    this.#reservation?.release();
    this.#reservation = undefined;
  }

  /**
   * One more user of [begin, end) of the map's file. Undefined when there is no room. A chunk that is there already is
   * mapped anew when the file has grown since, or zeros are where memory may be again. @throws SystemError
   */
  #chunk(key: string, begin: number, end: number, { fd, writable }: CopiedMap): Chunk | undefined {
    this.#reservation ??= new Reservation(DRIVER_VM_MEMORY_SIZE, WINDOW_PIECE_SIZE);
    const reservation = this.#reservation;
    const known = this.#chunks.get(key);
    const piece = known?.piece ?? this.#freePieces.pop() ?? this.#usedPieces;
    if (piece >= MAX_CHUNKS) return undefined;
    const size = end - begin;
    if (known === undefined || known.size < size || known.repairs !== reservation.repairs) {
      if (known !== undefined) this.beforeUnmap?.();
      try {
        const protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
        reservation.map(piece * WINDOW_PIECE_SIZE, size, fd, begin, protection);
        if (piece < OPENED_EARLY) this.#bytesOf(piece);
      } catch (error) {
        if (known === undefined && piece < this.#usedPieces) this.#freePieces.push(piece);
        throw error;
      }
    }
    if (piece === this.#usedPieces) this.#usedPieces++;
    const chunk = known ?? { key, piece, size, repairs: 0, users: 0 };
    chunk.size = size;
    chunk.repairs = reservation.repairs;
    chunk.users++;
    this.#chunks.set(key, chunk);
    return chunk;
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
    for (const chunk of chunks) {
      if (--chunk.users > 0) continue;
      this.#chunks.delete(chunk.key);
      try {
        this.#reservation?.unmap(chunk.piece * WINDOW_PIECE_SIZE, WINDOW_PIECE_SIZE);
        this.#freePieces.push(chunk.piece);
      } catch (error) {
        // It is in no table any more, and its place is not used again.
        if (!isSystemError(error)) throw error;
        this.#log.error({ err: error }, "memory for copies stays mapped");
      }
    }
  }

  #complain(address: number, size: number, reason: string): void {
    if (!this.#isFull)
      this.#log.warn({ address: formatAddress(address), size, reason }, "not mapped for copies: DMA by messages");
    this.#isFull = true;
  }
}
