/** Small integer helpers that keep to plain numbers: addresses here go to 2^53-1, past what the bit operators hold. */

/**
 * True when [offset, offset + length) lies within [0, size): safe for any untrusted numbers, NaN and Infinity included.
 */
export function inBounds(offset: number, length: number, size: number): boolean {
  return offset >= 0 && length >= 0 && length <= size && offset <= size - length;
}

/** Rounds up to a multiple of `alignment` (any positive integer). */
export function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

/** Rounds down to one. */
export function alignDown(value: number, alignment: number): number {
  return Math.floor(value / alignment) * alignment;
}

export function isAligned(value: number, alignment: number): boolean {
  return value % alignment === 0;
}

export function isPowerOfTwo(value: number): boolean {
  return value > 0 && value === 2 ** Math.round(Math.log2(value));
}
