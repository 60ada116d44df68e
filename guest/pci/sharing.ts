/** What an identity shares with the driver VM's VMM: parts of BARs that are memory, and ioeventfds, checked and in order. */
import { inBounds, isAligned } from "../../shared/bits.js";
import { MAX_IOEVENTFDS, MAX_REGION_MEMORY, MAX_SHARED_PARTS, PAGE_SIZE } from "../../shared/limits.js";
import type { BarOptions, IoEventFdOptions, PciIdentity, SharedPart } from "./identity.js";
import type { MsixLayout } from "./msix.js";

/** Of one BAR; either list may be empty. Parts are as the author has them, of which none overlap. */
export interface BarSharing {
  readonly bar: number;
  readonly size: number;
  readonly io: boolean;
  readonly parts: readonly SharedPart[];
  readonly ioeventfds: readonly IoEventFdOptions[];
}

/** The BARs that share something. @throws RangeError for what cannot be: an author's bug */
export function declaredSharing({ bars }: PciIdentity, msix: MsixLayout | undefined): BarSharing[] {
  const sharing: BarSharing[] = [];
  for (const [key, options] of Object.entries(bars)) {
    const bar = Number(key);
    const parts = declaredParts(bar, options, msix);
    const ioeventfds = declaredEvents(bar, options, parts, msix);
    if (parts.length + ioeventfds.length === 0) continue;
    sharing.push({ bar, size: options.size, io: options.io ?? false, parts, ioeventfds });
  }
  const memory = sharing.flatMap(({ parts }) => parts).reduce((sum, { size }) => sum + size, 0);
  if (memory > MAX_REGION_MEMORY)
    throw new RangeError(`${memory} bytes of shared memory: at most ${MAX_REGION_MEMORY}`);
  const events = sharing.reduce((sum, { ioeventfds }) => sum + ioeventfds.length, 0);
  if (events > MAX_IOEVENTFDS) throw new RangeError(`${events} ioeventfds: at most ${MAX_IOEVENTFDS}`);
  return sharing;
}

function declaredParts(bar: number, options: BarOptions, msix: MsixLayout | undefined): readonly SharedPart[] {
  const parts = options.shared === true ? [{ offset: 0, size: options.size }] : (options.shared ?? []);
  if (parts.length > MAX_SHARED_PARTS) throw new RangeError(`BAR ${bar}: at most ${MAX_SHARED_PARTS} shared parts`);
  for (const [index, part] of parts.entries()) {
    const { offset, size } = part;
    const what = `BAR ${bar}: the shared part of ${size} bytes at ${offset}`;
    if (options.io) throw new RangeError(`${what} is in an I/O BAR`);
    const aligned = isAligned(offset, PAGE_SIZE) && isAligned(size, PAGE_SIZE);
    if (!aligned || size === 0 || !inBounds(offset, size, options.size)) {
      throw new RangeError(`${what} is not in whole pages of the BAR`);
    }
    const hidesMsix = msix?.bar === bar && overlap(offset, size, msix.tableOffset, msix.end - msix.tableOffset);
    if (hidesMsix || parts.slice(0, index).some((other) => overlap(offset, size, other.offset, other.size))) {
      throw new RangeError(`${what} overlaps with another, or with the MSI-X table`);
    }
  }
  return parts;
}

function declaredEvents(
  bar: number,
  { size: barSize, ioeventfds = [] }: BarOptions,
  parts: readonly SharedPart[],
  msix: MsixLayout | undefined,
): readonly IoEventFdOptions[] {
  const seen = new Set<string>();
  for (const { offset, size, datamatch, shadow } of ioeventfds) {
    const what = `BAR ${bar}: the ioeventfd of ${size} bytes at ${offset}`;
    if (![0, 1, 2, 4, 8].includes(size) || !Number.isSafeInteger(offset) || !inBounds(offset, size || 1, barSize)) {
      throw new RangeError(`${what} is not a write to the BAR`);
    }
    if (size === 0 && (datamatch !== undefined || shadow)) throw new RangeError(`${what} needs a size for its value`);
    if (datamatch !== undefined && !(Number.isSafeInteger(datamatch) && inBounds(datamatch, 0, 256 ** size - 1))) {
      throw new RangeError(`${what} cannot match ${datamatch}`);
    }
    const hidesMsix = msix?.bar === bar && overlap(offset, size || 1, msix.tableOffset, msix.end - msix.tableOffset);
    if (hidesMsix || parts.some((part) => overlap(offset, size || 1, part.offset, part.size))) {
      throw new RangeError(`${what} is in a shared part, or in the MSI-X table`);
    }
    const key = `${offset} ${size} ${datamatch}`;
    if (seen.has(key)) throw new RangeError(`${what} is there twice`);
    seen.add(key);
  }
  return ioeventfds;
}

function overlap(offset: number, size: number, other: number, otherSize: number): boolean {
  return offset < other + otherSize && other < offset + size;
}
