/** What Linux says of a block device, by <linux/fs.h>'s ioctls. All of them throw SystemError. */
import { ioctl } from "../../../native/index.js";
import { getU64 } from "../../../shared/struct/struct.js";

const BLKROGET = 0x125e;
const BLKSSZGET = 0x1268;
const BLKPBSZGET = 0x127b;
const BLKGETSIZE64 = 0x8008_1272;

/** Bytes; not exact above 2^53. */
export function deviceSize(fd: number): number {
  return getU64(ask(fd, BLKGETSIZE64), 0);
}

/** Bytes of a sector: what can be read and written by itself, and what the device writes as one. */
export function sectorSizes(fd: number): { readonly logical: number; readonly physical: number } {
  return { logical: ask(fd, BLKSSZGET).getUint32(0, true), physical: ask(fd, BLKPBSZGET).getUint32(0, true) };
}

export function isReadOnlyDevice(fd: number): boolean {
  return ask(fd, BLKROGET).getUint32(0, true) !== 0;
}

function ask(fd: number, request: number): DataView {
  const bytes = new Uint8Array(8);
  ioctl(fd, request, bytes);
  return new DataView(bytes.buffer);
}
