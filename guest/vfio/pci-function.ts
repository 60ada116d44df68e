/**
 * A PCI function as a driver outside the kernel sees it: registers, DMA memory, an interrupt. The guest's VFIO is one
 * implementation; the tests' front-end that plays stock QEMU is another.
 */

import type { DevicePath } from "../../native/index.js";

/** Registers of a BAR or of config space; offset in bytes; each access is exactly one of its width. */
export interface Registers {
  read8(offset: number): number;
  read16(offset: number): number;
  read32(offset: number): number;
  write8(offset: number, value: number): void;
  write16(offset: number, value: number): void;
  write32(offset: number, value: number): void;
  /** Where they are mapped, if they are: loads and stores there are accesses. */
  readonly buffer?: ArrayBuffer;
  /** For notifications that are signals, not accesses: an eventfd for each queue, -1 where there is none. */
  readonly kicks?: Int32Array;
}

/**
 * Memory that the device can reach by DMA: from byte `start` of an ArrayBuffer on, of which others may have parts, too.
 * It is contiguous for the device, for which the ArrayBuffer begins at `address`.
 */
export interface DmaMemory {
  readonly buffer: ArrayBuffer;
  readonly address: number;
  readonly start: number;
}

export interface PciFunction {
  readonly config: Registers;
  /**
   * The device may be given any memory, at addresses of the IOMMU's (VIRTIO_F_ACCESS_PLATFORM); else physical ones. To
   * be said before anything is allocated.
   */
  translated?: boolean;
  registers(bar: number): Registers;
  /** A memory BAR mapped piece by piece: [offset, offset + length). */
  memory(bar: number, offset: number, length: number): ArrayBuffer;
  /** Bytes; 0 where there is no BAR. */
  barSize(bar: number): number;
  /** Zeroed, page-aligned. @throws UserError */
  allocate(bytes: number): DmaMemory;
  /** Enables MSI-X vector 0 and calls back on each interrupt that `task` does not deal with. */
  interrupt(callback: () => void, task?: DevicePath): void;
  close(): void;
}
