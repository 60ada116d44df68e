/**
 * DMA addresses (IOVAs) of 64 bits as plain numbers.
 *
 * An address in the upper half is the negative number of two's complement: the last page is at -4096 and ends at 0, as
 * 2^64 does. Numbers are exact within 2^53 of either end of the address space, which is where IOVAs are: allocators
 * begin at 0 or right below 2^64. Arithmetic and comparisons within one half are the usual ones, and `&` sees the low
 * 32 bits of either. What lies between is no safe integer, so that every check refuses it; multiples of 4096 are exact
 * even there.
 *
 * Sizes are unsigned. One that is a multiple of 4096 is exact up to 2^64, the size of the whole address space.
 */

/** Bytes of the address space. */
export const ADDRESS_SPACE = 2 ** 64;
/** As far from either end addresses are exact. */
const EXACT = 2 ** 53;

/** The address whose halves are these unsigned 32-bit numbers. */
export function dmaAddress(low: number, high: number): number {
  return low + (high | 0) * 0x1_0000_0000;
}

/** Whether the address, and every one of the `length` bytes behind it, is exact. Any numbers are safe. */
export function isExact(address: number, length: number): boolean {
  return length >= 0 && Math.abs(address) <= Number.MAX_SAFE_INTEGER - length && Number.isInteger(address);
}

/** Whether the `size` bytes at `address`, at least one, are exact and do not go past 2^64. Any numbers are safe. */
export function isAddressRange(address: number, size: number): boolean {
  return Number.isSafeInteger(size) && size > 0 && isExact(address, size) && (address >= 0 || address + size <= 0);
}

/** Whether `size` bytes at `address` go past 2^64. */
export function wraps(address: number, size: number): boolean {
  return size > (address < 0 ? -address : ADDRESS_SPACE - address);
}

/** [start, end) within one half of the address space. */
interface Span {
  readonly start: number;
  readonly end: number;
}

/** What of `size` bytes at `address` is exact, by number: at most one span of each half. They do not go past 2^64. */
export function exactSpans(address: number, size: number): Span[] {
  if (address < 0) {
    const span = { start: Math.max(address, -EXACT), end: address + size };
    return span.end > -EXACT ? [span] : [];
  }
  const spans: Span[] = [];
  const end = address + size;
  if (end > ADDRESS_SPACE - EXACT) spans.push({ start: -EXACT, end: end - ADDRESS_SPACE });
  if (address < EXACT) spans.push({ start: address, end: Math.min(end, EXACT) });
  return spans;
}

/** Whether `length` bytes at `address`, all exact, have anything of one of the spans. */
export function meets(spans: readonly Span[], address: number, length: number): boolean {
  return spans.some(({ start, end }) => address < end && address + length > start);
}

/** As messages have it: unsigned, in hexadecimal. */
export function formatAddress(address: number): string {
  return Number.isInteger(address) ? `0x${BigInt.asUintN(64, BigInt(address)).toString(16)}` : `${address}`;
}
