/**
 * Memory of a device's that its client may map: a sealed memfd for each region, in which every area lies at its offset
 * in the region. The areas are mapped in the window as well, where the device reaches them; how, is the link's.
 *
 * No client gets what another one had: `recreate` gives fresh memory, to be mapped at the same window offsets.
 */
import { addSeals, close, createMemory, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK } from "../native/index.js";
import { closePeerFd } from "./peer-fds.js";

/** A part of a region, or of memory that belongs to none; in whole pages. */
export interface Area {
  readonly offset: number;
  readonly size: number;
}

export interface PlacedArea extends Area {
  /** -1 while it is not in the window. */
  windowOffset: number;
}

export class MemoryFile {
  readonly areas: readonly PlacedArea[];
  /** Bytes: it ends with the last area. */
  readonly size: number;
  #fd = -1;

  /** There is no file before `recreate`. */
  constructor(areas: readonly Area[]) {
    this.areas = areas.map(({ offset, size }) => ({ offset, size, windowOffset: -1 }));
    this.size = Math.max(...areas.map(({ offset, size }) => offset + size));
  }

  /** -1 while there is no file. */
  get fd(): number {
    return this.#fd;
  }

  /** Whether its areas are these. */
  hasAreas(areas: readonly Area[]): boolean {
    const isSame = ({ offset, size }: Area, n: number) => offset === areas[n].offset && size === areas[n].size;
    return this.areas.length === areas.length && this.areas.every(isSame);
  }

  /** Makes the file, zeros, in place of the one before. @throws SystemError; the one before stays then */
  recreate(): void {
    const fd = createMemory("vfio-user-region", this.size, false);
    try {
      addSeals(fd, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
    } catch (error) {
      close(fd);
      throw error;
    }
    this.close();
    this.#fd = fd;
  }

  /** A file that another process made, its own from now on. */
  adopt(fd: number): void {
    this.close();
    this.#fd = fd;
  }

  close(): void {
    if (this.#fd >= 0) closePeerFd(this.#fd, true);
    this.#fd = -1;
  }
}
