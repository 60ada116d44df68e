/**
 * Memory that a peer handed over and took away again reads as zeros and swallows writes (native/index.ts, Reservation).
 * Who copied asks here whether that was so: zeros are not to be taken for what the peer wrote.
 */
import { anyLost, isLost as isGone } from "../native/index.js";

/** Of at least one byte. After a copy; it costs next to nothing as long as no peer of this process took memory away. */
export function isLost(bytes: Uint8Array, offset: number, length: number): boolean {
  return Atomics.load(anyLost, 0) !== 0 && isGone(bytes, offset, length);
}
