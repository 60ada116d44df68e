/**
 * DMA_UNMAP's range: stock QEMU unmaps whatever lies in one, as Linux's VFIO (type 1, version 2) does, and so does
 * this: every map in the range goes, none is fine, and a range that has only a part of a map is refused. So no unmap
 * need know how the maps were made. vfio-user.rst, "VFIO_USER_DMA_UNMAP", has the exact map only, which is a range like
 * any other.
 */
import { ADDRESS_SPACE, formatAddress, wraps } from "../../address.js";
import { ProtocolError } from "../../errors.js";
import { PAGE_SIZE } from "../../limits.js";
import { Bitmap, Command, DmaUnmap, DmaUnmapFlags } from "../../spec/vfio-user.js";

export interface UnmapRange {
  /** As in ../address.ts: exact, whatever it is, as it and the size are multiples of 4096. */
  readonly address: number;
  readonly size: number;
}

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
