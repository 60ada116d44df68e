/**
 * Memory that a device reaches. Behind an IOMMU it is ordinary memory, mapped there at addresses of our own: that takes
 * no privilege but the VFIO group. A device that bypasses the IOMMU is given physical addresses: of huge pages, each of
 * which is contiguous, and whose address the kernel tells to root (Linux, Documentation/admin-guide/mm/pagemap.rst).
 * These are mapped in the IOMMU too, at the address that they have physically: that pins them, and serves a device that
 * does go through the IOMMU.
 *
 * Nothing is ever unmapped while the function is open, and what belongs together is allocated together: the IOMMU then
 * has few and large pages of it, and others look up few.
 */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { totalmem } from "node:os";
import { addressOf, allocateAligned, close, createMemory, mapFile, PROT_READ, PROT_WRITE } from "../../native/index.js";
import { alignUp } from "../../shared/bits.js";
import { isSystemError, UserError } from "../../shared/errors.js";
import { GiB, LARGE_PAGE_SIZE, MiB, PAGE_SIZE } from "../../shared/limits.js";
import type { DmaMemory } from "./pci-function.js";

const ENTRY_SIZE = 8;
const PRESENT = 1n << 63n;
const FRAME_MASK = (1n << 55n) - 1n;
/**
 * Where our addresses in the IOMMU may begin: within the 39 bits that every one has, and where there is neither memory
 * nor a device physically. Should the device bypass the IOMMU after all, it finds nothing there, and says so.
 */
const FIRST_ADDRESSES = [508, 380, 252, 188, 124, 92, 60, 28].map((address) => address * GiB);
/** Address space that is allocated at a time. What of it is not used is no memory. */
const SLAB_SIZE = 64 * MiB;

/** Maps [buffer's byte `start`, + size) in the IOMMU at `iova`. @throws SystemError */
type MapInIommu = (buffer: ArrayBuffer, start: number, size: number, iova: number) => void;

export class DmaAllocator {
  readonly #map: MapInIommu;
  /** Kept from the garbage collector: the device writes to it. */
  readonly #memory: ArrayBuffer[] = [];
  #slab: ArrayBuffer | undefined;
  #address = 0;
  #isPhysical: boolean | undefined;
  #used = 0;
  #mapped = 0;

  constructor(map: MapInIommu) {
    this.#map = map;
  }

  /**
   * Zeros. `translated`: see PciFunction. Root is given physical addresses where there are huge pages: these are right
   * in any case. @throws UserError
   */
  allocate(bytes: number, translated: boolean): DmaMemory {
    this.#isPhysical ??= !translated || (knowsPhysicalAddresses() && hasHugePages());
    if (!this.#isPhysical) return this.#allocateOrdinary(bytes);
    if (bytes > LARGE_PAGE_SIZE) throw new UserError(`${bytes} bytes of DMA memory are more than one huge page`);
    const memory = allocateHugePage();
    if (memory.address === 0) throw new UserError(NO_ADDRESSES);
    this.#mapPart(memory.buffer, 0, LARGE_PAGE_SIZE, memory.address);
    this.#memory.push(memory.buffer);
    return memory;
  }

  #allocateOrdinary(bytes: number): DmaMemory {
    const size = alignUp(bytes, PAGE_SIZE);
    if (size > SLAB_SIZE) throw new UserError(`${bytes} bytes of DMA memory are more than ${SLAB_SIZE}`);
    if (this.#slab === undefined || this.#used + size > SLAB_SIZE) {
      this.#slab = allocateAligned(SLAB_SIZE);
      this.#memory.push(this.#slab);
      this.#address = this.#address === 0 ? firstAddress() : this.#address + SLAB_SIZE;
      this.#used = 0;
      this.#mapped = 0;
    }
    for (; this.#mapped < this.#used + size; this.#mapped += LARGE_PAGE_SIZE) {
      this.#mapPart(this.#slab, this.#mapped, LARGE_PAGE_SIZE, this.#address + this.#mapped);
    }
    const start = this.#used;
    this.#used += size;
    return { buffer: this.#slab, address: this.#address, start };
  }

  #mapPart(buffer: ArrayBuffer, start: number, size: number, iova: number): void {
    try {
      this.#map(buffer, start, size, iova);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      const what = `the IOMMU does not take 2 MiB of memory (${error.message})`;
      if (error.code !== "ENOMEM") throw new UserError(what);
      throw new UserError(`${what}: a process may lock too little: raise "ulimit -l" (8192 is enough)`);
    }
  }
}

const NO_ADDRESSES =
  "this device takes physical addresses, which the kernel does not tell to this process: start the device VM with " +
  '"iommu_platform=on" for the device, or run as root (CAP_SYS_ADMIN)';

/** A huge page of zeros. @throws UserError when there is none */
function allocateHugePage(): DmaMemory {
  const buffer = mapHugePage();
  // The page is there only when it was touched.
  new Uint8Array(buffer).fill(0);
  return { buffer, address: physicalAddress(addressOf(buffer)), start: 0 };
}

function mapHugePage(): ArrayBuffer {
  let fd = -1;
  try {
    fd = createMemory("virtio-rings", LARGE_PAGE_SIZE, true);
    return mapFile(fd, 0, LARGE_PAGE_SIZE, PROT_READ | PROT_WRITE);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new UserError(
      `no huge page of 2 MiB is free (${error.message}): start the device VM with "iommu_platform=on" for the ` +
        'device, or reserve some with "echo 16 > /proc/sys/vm/nr_hugepages", or "hugepages=16" for its kernel',
    );
  } finally {
    if (fd !== -1) close(fd);
  }
}

/** Whether the kernel tells this process where its memory is physically. */
function knowsPhysicalAddresses(): boolean {
  const page = allocateAligned(LARGE_PAGE_SIZE);
  new Uint8Array(page)[0] = 1;
  return physicalAddress(addressOf(page)) > 0;
}

function hasHugePages(): boolean {
  try {
    return Number(readFileSync("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "utf8")) > 0;
  } catch {
    return false;
  }
}

/** @throws UserError when physical addresses are everywhere */
function firstAddress(): number {
  const taken = barRanges();
  const isFree = (address: number) =>
    address > 2 * totalmem() && !taken.some(({ start, end }) => start < address + 4 * GiB && address <= end);
  const found = FIRST_ADDRESSES.find(isFree);
  if (found === undefined) throw new UserError("the IOMMU has no addresses at which this machine has nothing");
  return found;
}

/** Where the machine's PCI devices have registers and memory. */
function barRanges(): { start: number; end: number }[] {
  const devices = "/sys/bus/pci/devices";
  return readdirSync(devices).flatMap((name) => {
    const lines = readFileSync(`${devices}/${name}/resource`, "utf8").trim().split("\n");
    return lines.map((line) => {
      const [start, end] = line.split(" ").map(Number);
      return { start, end };
    });
  });
}

/** 0 when the kernel does not tell it. */
function physicalAddress(address: number): number {
  const entry = Buffer.alloc(ENTRY_SIZE);
  const fd = openSync("/proc/self/pagemap", "r");
  try {
    readSync(fd, entry, 0, ENTRY_SIZE, (address / PAGE_SIZE) * ENTRY_SIZE);
  } finally {
    closeSync(fd);
  }
  const value = entry.readBigUInt64LE();
  return (value & PRESENT) === 0n ? 0 : Number(value & FRAME_MASK) * PAGE_SIZE;
}
