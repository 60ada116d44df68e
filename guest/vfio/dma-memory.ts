/**
 * Memory that a device reaches by physical address: a huge page, which is contiguous, and whose address the kernel
 * tells to root (Linux, Documentation/admin-guide/mm/pagemap.rst).
 */
import { closeSync, openSync, readSync } from "node:fs";
import { addressOf, close, createMemory, mapFile, PROT_READ, PROT_WRITE } from "../../native/index.js";
import { isSystemError, UserError } from "../../shared/errors.js";
import { LARGE_PAGE_SIZE, PAGE_SIZE } from "../../shared/limits.js";
import type { DmaMemory } from "./pci-function.js";

const ENTRY_SIZE = 8;
const PRESENT = 1n << 63n;
const FRAME_MASK = (1n << 55n) - 1n;

/** A huge page of zeros. @throws UserError when there is none, or its address is hidden */
export function allocateHugePage(): DmaMemory {
  const buffer = mapHugePage();
  // The page is there only when it was touched.
  new Uint8Array(buffer).fill(0);
  return { buffer, address: physicalAddress(addressOf(buffer)) };
}

function mapHugePage(): ArrayBuffer {
  let fd = -1;
  try {
    fd = createMemory("virtio-rings", LARGE_PAGE_SIZE, true);
    return mapFile(fd, 0, LARGE_PAGE_SIZE, PROT_READ | PROT_WRITE);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new UserError(
      `no huge page of 2 MiB is free (${error.message}): reserve some with "echo 16 > /proc/sys/vm/nr_hugepages", ` +
        'or start the kernel with "hugepages=16"',
    );
  } finally {
    if (fd !== -1) close(fd);
  }
}

/** @throws UserError when the kernel does not tell, as this process is not root */
function physicalAddress(address: number): number {
  const entry = Buffer.alloc(ENTRY_SIZE);
  const fd = openSync("/proc/self/pagemap", "r");
  try {
    readSync(fd, entry, 0, ENTRY_SIZE, (address / PAGE_SIZE) * ENTRY_SIZE);
  } finally {
    closeSync(fd);
  }
  const value = entry.readBigUInt64LE();
  const frame = value & FRAME_MASK;
  if ((value & PRESENT) === 0n || frame === 0n) {
    throw new UserError("the kernel does not tell physical addresses to this process: run as root (CAP_SYS_ADMIN)");
  }
  return Number(frame) * PAGE_SIZE;
}
