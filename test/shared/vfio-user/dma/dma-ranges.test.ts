/** DMA maps that begin or end in the middle of a huge page: what of them is in the window, and what is copied. */
import test from "ava";
import { GiB, KiB, MiB, PAGE_SIZE } from "../../../../shared/limits.js";
import type { MemoryMap } from "../../../../shared/vfio-user/backend.js";
import { mapParts, windowPart } from "../../../../shared/vfio-user/dma/dma-ranges.js";

const BASE = 0x1_0000_0000;

function parts(fdOffset: number, size: number, pageSize: number, windowOffset: number, isCopied = true, backed = size) {
  const map: MemoryMap = {
    address: BASE,
    size,
    backed,
    readable: true,
    writable: true,
    fd: 3,
    device: 0,
    inode: 0,
    isHeld: false,
    isMemory: true,
    position: 0,
    isShareable: true,
    fdOffset,
    pageSize,
    windowPart: windowPart(fdOffset, backed, pageSize),
    windowOffset,
  };
  return mapParts(map, isCopied).map((part) => [part.address - BASE, part.size, part.windowOffset, part.isCopied]);
}

test("pages of 4 KiB: all of it is in the window", (t) => {
  t.deepEqual(parts(MiB, 7 * PAGE_SIZE, PAGE_SIZE, 5 * MiB), [[0, 7 * PAGE_SIZE, 5 * MiB, false]]);
});

test("q35's memory in pages of 2 MiB begins at 1 MiB, and may end in the middle of one", (t) => {
  t.deepEqual(parts(MiB, 511 * MiB, 2 * MiB, 4 * MiB), [
    [0, MiB, -1, true],
    [MiB, 510 * MiB, 4 * MiB, false],
  ]);
  t.deepEqual(parts(MiB, 4 * MiB + 768 * KiB, 2 * MiB, 0), [
    [0, MiB, -1, true],
    [MiB, 2 * MiB, 0, false],
    [3 * MiB, MiB + 768 * KiB, -1, true],
  ]);
  t.deepEqual(parts(4 * MiB, 3 * MiB, 2 * MiB, 0), [
    [0, 2 * MiB, 0, false],
    [2 * MiB, MiB, -1, true],
  ]);
});

test("pages of 1 GiB", (t) => {
  t.deepEqual(parts(MiB, 3 * GiB - MiB, GiB, 8 * GiB), [
    [0, GiB - MiB, -1, true],
    [GiB - MiB, 2 * GiB, 8 * GiB, false],
  ]);
});

test("without a whole page, or without a place in the window, all of it is copied, or goes by messages", (t) => {
  t.deepEqual(windowPart(MiB, 2 * MiB, 2 * MiB), { begin: 0, end: 0 });
  t.deepEqual(parts(MiB, 2 * MiB, 2 * MiB, -1), [[0, 2 * MiB, -1, true]]);
  t.deepEqual(parts(0, PAGE_SIZE, 2 * MiB, -1), [[0, PAGE_SIZE, -1, true]]);
  t.deepEqual(parts(MiB, 8 * MiB, 2 * MiB, -1), [[0, 8 * MiB, -1, true]]);
  t.deepEqual(parts(0, MiB, PAGE_SIZE, -1, false), [[0, MiB, -1, false]]);
});

test("what the file of huge pages does not have goes by messages", (t) => {
  t.deepEqual(parts(0, 4 * MiB, 2 * MiB, 6 * MiB, true, 2 * MiB), [
    [0, 2 * MiB, 6 * MiB, false],
    [2 * MiB, 2 * MiB, -1, false],
  ]);
  t.deepEqual(parts(MiB, 4 * MiB, 2 * MiB, -1, true, MiB), [
    [0, MiB, -1, true],
    [MiB, 3 * MiB, -1, false],
  ]);
  t.deepEqual(parts(MiB, 6 * MiB, 2 * MiB, 0, true, 3 * MiB), [
    [0, MiB, -1, true],
    [MiB, 2 * MiB, 0, false],
    [3 * MiB, 3 * MiB, -1, false],
  ]);
});
