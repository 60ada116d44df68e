/**
 * A DMA map that begins or ends in the middle of a huge page, as a q35 machine's main memory does: such a page can only
 * be mapped whole. What lies between is in the window, and the edges are copied.
 */
import type { MemoryMap, WindowPart } from "../backend.js";

/** What of a map is whole pages of its file; empty where that is nothing. */
export function windowPart(fdOffset: number, size: number, pageSize: number): WindowPart {
  const begin = Math.ceil(fdOffset / pageSize) * pageSize - fdOffset;
  const end = Math.floor((fdOffset + size) / pageSize) * pageSize - fdOffset;
  return begin < end ? { begin, end } : { begin: 0, end: 0 };
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
 * messages.
 */
export function mapParts(map: MemoryMap, isCopied: boolean): MapPart[] {
  const { address, size, readable, writable, windowOffset } = map;
  const { begin, end } = windowOffset < 0 ? { begin: 0, end: 0 } : map.windowPart;
  const part = (from: number, to: number, offset = -1): MapPart[] => {
    const isEdge = offset === -1;
    const access = { readable, writable, windowOffset: offset, isCopied: isEdge && isCopied };
    return from < to ? [{ address: address + from, size: to - from, ...access }] : [];
  };
  return [...part(0, begin), ...part(begin, end, windowOffset), ...part(end, size)];
}
