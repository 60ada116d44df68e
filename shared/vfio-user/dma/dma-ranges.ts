/**
 * Ranges of addresses as DMA_MAP and DMA_UNMAP have them.
 *
 * - The range of an unmap: stock QEMU unmaps whatever lies in one, as Linux's VFIO (type 1, version 2) does, and so
 *   does this: every map in the range goes, none is fine, and a range that has only a part of a map is refused. So no
 *   unmap need know how the maps were made. vfio-user.rst, "VFIO_USER_DMA_UNMAP", has the exact map only, which is a
 *   range like any other.
 * - Its dirty bitmap: one bit for each page of the range, in 64-bit words (<linux/vfio.h>, struct vfio_bitmap).
 * - The parts of a map that begins or ends in the middle of a huge page, as a q35 machine's main memory does: such a
 *   page can only be mapped whole. What lies between is in the window, and the edges are copied.
 */
import { ADDRESS_SPACE, formatAddress, isAddressRange, wraps } from "../../address.js";
import { isPowerOfTwo } from "../../bits.js";
import { ProtocolError } from "../../errors.js";
import { PAGE_SIZE } from "../../limits.js";
import { Bitmap, Command, DmaUnmap, DmaUnmapFlags } from "../../spec/vfio-user.js";
import type { MemoryMap, UnmapRange, WindowPart } from "../backend.js";

const BITMAP_WORD_BITS = 64;

const view = DmaUnmap.view();

/**
 * The range of a request whose body is at `offset`. @throws ProtocolError EINVAL when it is none: empty, not in pages,
 * past 2^64
 */
export function unmapRange(data: DataView, offset: number): UnmapRange {
  const { flags, address, size } = view.at(data, offset);
  if ((flags & DmaUnmapFlags.ALL) !== 0) {
    if (address !== 0 || size !== 0) refuse("all, with an address or a size");
    return { address: 0, size: ADDRESS_SPACE };
  }
  // By the low words: what is not in pages need not be exact.
  const { address: low, size: lowSize } = DmaUnmap.offsets;
  const inPages =
    ((data.getUint32(offset + low, true) | data.getUint32(offset + lowSize, true)) & (PAGE_SIZE - 1)) === 0;
  if (!inPages || size === 0 || wraps(address, size)) {
    refuse(`${formatAddress(address)}+0x${size.toString(16)} is no range of pages`);
  }
  return { address, size };
}

/** The body of a request for a range; `argsz` and the rest of `flags` are the caller's. */
export function encodeUnmapRange({ address, size }: UnmapRange, argsz: number = DmaUnmap.size, flags = 0): Uint8Array {
  if (size === ADDRESS_SPACE) return DmaUnmap.encode({ argsz, flags: flags | DmaUnmapFlags.ALL });
  return DmaUnmap.encode({ argsz, flags, address, size });
}

/** DMA_UNMAP that asks for a bitmap of `length` bytes, which the reply has behind the same body. */
export function encodeDirtyUnmap(range: UnmapRange, pageSize: number, length: number): Uint8Array {
  const fixed = encodeUnmapRange(range, DmaUnmap.size + Bitmap.size + length, DmaUnmapFlags.GET_DIRTY_BITMAP);
  return Buffer.concat([fixed, Bitmap.encode({ pageSize, size: length })]);
}

function refuse(what: string): never {
  throw new ProtocolError(`DMA_UNMAP: ${what}`, undefined, Command.DMA_UNMAP);
}

/**
 * Bytes of the bitmap for `length` bytes at `address` in pages of `pageSize` bytes; for any untrusted numbers. -1 when
 * there is none: the page size is not a power of two from 4096 to `length`, or the range is none of exact addresses
 * (../../address.ts).
 */
export function bitmapSize(address: number, length: number, pageSize: number): number {
  if (!isAddressRange(address, length)) return -1;
  if (!Number.isSafeInteger(pageSize) || pageSize < PAGE_SIZE || pageSize > length || !isPowerOfTwo(pageSize))
    return -1;
  return Math.ceil(Math.ceil(length / pageSize) / BITMAP_WORD_BITS) * (BITMAP_WORD_BITS / 8);
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

const NOTHING: WindowPart = { begin: 0, end: 0 };

/** What of a map is whole pages of its file; empty where that is nothing. */
export function windowPart(fdOffset: number, size: number, pageSize: number): WindowPart {
  const begin = Math.ceil(fdOffset / pageSize) * pageSize - fdOffset;
  const end = Math.floor((fdOffset + size) / pageSize) * pageSize - fdOffset;
  return begin < end ? { begin, end } : NOTHING;
}

/** A map, or a part of one, as a device sees it. */
export interface MapPart {
  readonly address: number;
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Where it is in the window, or -1. */
  readonly windowOffset: number;
  /** It is not in the window, and can be copied. */
  readonly isCopied: boolean;
}

/**
 * The parts of a map side by side: the one in the window, if it is there, and the rest, which `isCopied` or goes by
 * messages; and what its file does not have, by messages.
 */
export function mapParts(map: MemoryMap, isCopied: boolean): MapPart[] {
  const { address, size, backed, readable, writable, windowOffset } = map;
  const { begin, end } = windowOffset < 0 ? NOTHING : map.windowPart;
  if (begin === 0 && end === size) return [{ address, size, readable, writable, windowOffset, isCopied: false }];
  const part = (from: number, to: number, offset: number, copied: boolean): MapPart[] => {
    const access = { readable, writable, windowOffset: offset, isCopied: copied };
    return from < to ? [{ address: address + from, size: to - from, ...access }] : [];
  };
  return [
    ...part(0, begin, -1, isCopied),
    ...part(begin, end, windowOffset, false),
    ...part(end, backed, -1, isCopied),
    ...part(backed, size, -1, false),
  ];
}
