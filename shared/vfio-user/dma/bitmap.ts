/**
 * Dirty bitmaps: one bit for each page of a range of addresses, in 64-bit words (<linux/vfio.h>, struct vfio_bitmap).
 */
import { isAddressRange } from "../../address.js";
import { isPowerOfTwo } from "../../bits.js";
import { PAGE_SIZE } from "../../limits.js";

const WORD_BITS = 64;

/**
 * Bytes of the bitmap for `length` bytes at `address` in pages of `pageSize` bytes; for any untrusted numbers. -1 when
 * there is none: the page size is not a power of two from 4096 to `length`, or the range is none of exact addresses
 * (../address.ts).
 */
export function bitmapSize(address: number, length: number, pageSize: number): number {
  if (!isAddressRange(address, length)) return -1;
  if (!Number.isSafeInteger(pageSize) || pageSize < PAGE_SIZE || pageSize > length || !isPowerOfTwo(pageSize))
    return -1;
  return Math.ceil(Math.ceil(length / pageSize) / WORD_BITS) * (WORD_BITS / 8);
}

/** Sets bits [first, last] of a bitmap. */
export function setBits(bitmap: Uint8Array, first: number, last: number): void {
  const firstByte = Math.floor(first / 8);
  const lastByte = Math.floor(last / 8);
  const head = (0xff << (first % 8)) & 0xff;
  const tail = 0xff >>> (7 - (last % 8));
  if (firstByte === lastByte) {
    bitmap[firstByte] |= head & tail;
    return;
  }
  bitmap[firstByte] |= head;
  bitmap[lastByte] |= tail;
  if (lastByte > firstByte + 1) bitmap.fill(0xff, firstByte + 1, lastByte);
}
