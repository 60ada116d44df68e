/**
 * What the device side of a virtqueue needs of the memory that its driver lives in: a lookup of guest-physical
 * addresses and the bytes behind them, as a row of ArrayBuffers ("pieces"). Regions are kept by whoever maps them.
 */
import { inBounds } from "../bits.js";

/** What `locate` says of an address that is not known yet: it is asked for, and the queue's owner is called then. */
export const MISSING = -2;

/** Guest memory as one flat range of offsets, cut into pieces of one ArrayBuffer each. */
export interface RingMemory {
  /** Bytes of each piece but the last; a power of two. */
  readonly pieceSize: number;
  /**
   * The flat offset of `address` when [address, address + length) lies in one mapped region, MISSING where that is not
   * known yet, else -1. Any numbers are safe.
   */
  locate(address: number, length: number): number;
  bytes(piece: number): Uint8Array;
  /** Called before any of it goes away. Whoever uses it beside JavaScript sets this, and ends that use. */
  beforeUnmap?: (() => void) | undefined;
}

/** Up to this length, a loop beats making the subarray that TypedArray.set wants, and leaves no garbage. */
const SHORT_COPY = 64;

/** Copies without allocating where the length is that of a control message. Ranges are the caller's to check. */
export function copyBytes(source: Uint8Array, from: number, target: Uint8Array, to: number, length: number): void {
  if (length <= SHORT_COPY) {
    for (let i = 0; i < length; i++) target[to + i] = source[from + i];
  } else {
    target.set(source.subarray(from, from + length), to);
  }
}

/** The bytes at an address, or undefined when they are not all in one region and one piece. */
export function bytesAt(memory: RingMemory, address: number, length: number): Uint8Array | undefined {
  const offset = memory.locate(address, length);
  if (offset < 0) return undefined;
  const index = Math.floor(offset / memory.pieceSize);
  const start = offset - index * memory.pieceSize;
  const piece = memory.bytes(index);
  return inBounds(start, length, piece.length) ? piece.subarray(start, start + length) : undefined;
}
