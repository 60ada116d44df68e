/** The shared memory region as stock QEMU keeps it: what is mapped in it, and what it refuses to map. */
import { closeSync } from "node:fs";
import * as native from "../../native/index.js";
import { inBounds } from "../../shared/bits.js";
import { PAGE_SIZE, WINDOW_PIECE_SIZE } from "../../shared/limits.js";

export interface Mapping {
  readonly offset: number;
  readonly length: number;
  readonly fd: number;
  readonly fdOffset: number;
}

export class FakeWindow {
  readonly maps: Mapping[] = [];
  /** Why every map is refused. */
  refusal: string | undefined;
  readonly #reservation: native.Reservation;
  readonly #die: (reason: string) => void;

  constructor(
    readonly size: number,
    die: (reason: string) => void,
  ) {
    this.#reservation = new native.Reservation(size, Math.min(size, WINDOW_PIECE_SIZE));
    this.#die = die;
  }

  /** One piece, which [offset, offset + length) must be exactly. */
  piece(offset: number, length: number): ArrayBuffer {
    const piece = this.#reservation.piece(Math.floor(offset / WINDOW_PIECE_SIZE));
    if (offset % WINDOW_PIECE_SIZE !== 0 || length !== piece.byteLength) {
      throw new RangeError(`the window cannot be mapped from ${offset} for ${length} bytes`);
    }
    return piece;
  }

  /** Why QEMU refuses a map within the region, or undefined. */
  refuses(offset: number, length: number, fdOffset: number, fds: readonly number[]): string | undefined {
    if (this.refusal !== undefined) return this.refusal;
    if (fds.length !== 1) return "Bad fd for map";
    if (length === 0) return "Shared memory mapping size cannot be zero";
    if (fdOffset % PAGE_SIZE !== 0) return "the file offset is not page-aligned";
    if (offset % PAGE_SIZE !== 0 || length % PAGE_SIZE !== 0) this.#die("a map that is not page-aligned");
    if (!inBounds(fdOffset, length, native.fileStatus(fds[0]).size)) return "the file is too short";
    const status = new Float64Array(6);
    native.memoryStatus(fds[0], status);
    // As of any file, QEMU maps whole pages of its size.
    if (fdOffset % status[3] !== 0 || length % status[3] !== 0) return "the map is no whole pages of the file";
    if (status[1] === 0) return "the file is not writable";
    const overlaps = this.maps.some((map) => offset < map.offset + map.length && map.offset < offset + length);
    return overlaps ? "VIRTIO Shared Memory mapping overlap" : undefined;
  }

  map(offset: number, length: number, fdOffset: number, fd: number): void {
    this.#reservation.map(offset, length, fd, fdOffset, native.PROT_READ | native.PROT_WRITE);
    this.maps.push({ offset, length, fdOffset, fd: native.duplicate(fd) });
  }

  /** Takes maps[index] away. */
  unmap(index: number): void {
    const [map] = this.maps.splice(index, 1);
    this.#reservation.unmap(map.offset, map.length);
    closeSync(map.fd);
  }

  clear(): void {
    while (this.maps.length > 0) this.unmap(0);
  }

  release(): void {
    this.clear();
    this.#reservation.release();
  }
}
