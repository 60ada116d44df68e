/**
 * Checks of what an author declares of a function's regions, beyond the BARs' sizes: regions of the device's own, and
 * what it shares with the driver VM's VMM, parts that are memory and ioeventfds.
 */
import { inBounds, isAligned } from "../../shared/bits.js";
import { MAX_IOEVENTFDS, MAX_REGION_MEMORY, MAX_REGIONS, MAX_SHARED_PARTS, PAGE_SIZE } from "../../shared/limits.js";
import {
  type BarOptions,
  type DeviceRegion,
  FIRST_DEVICE_REGION,
  type IoEventFdOptions,
  type PciIdentity,
  type SharedPart,
} from "./identity.js";
import type { MsixLayout } from "./msix.js";

/** Of one region; either list may be empty. Parts are as the author has them, of which none overlap. */
export interface RegionSharing {
  readonly region: number;
  readonly size: number;
  readonly io: boolean;
  readonly parts: readonly SharedPart[];
  readonly ioeventfds: readonly IoEventFdOptions[];
}

/** What of a region this is about: a BAR's options, or those of a region of the device's own. */
type Sharable = Pick<BarOptions, "size" | "io" | "shared" | "ioeventfds">;

/** The regions that share something. @throws RangeError for what cannot be: an author's bug */
export function declaredSharing(
  { bars }: PciIdentity,
  msix: MsixLayout | undefined,
  regions: readonly DeviceRegion[] = [],
): RegionSharing[] {
  const sharing: RegionSharing[] = [];
  const all: [number, Sharable][] = [
    ...Object.entries(bars).map(([bar, options]): [number, Sharable] => [Number(bar), options]),
    ...regions.map((options, n): [number, Sharable] => [FIRST_DEVICE_REGION + n, options]),
  ];
  for (const [region, options] of all) {
    const parts = declaredParts(region, options, msix);
    const ioeventfds = declaredEvents(region, options, parts, msix);
    if (parts.length + ioeventfds.length === 0) continue;
    sharing.push({ region, size: options.size, io: options.io ?? false, parts, ioeventfds });
  }
  const memory = sharing.flatMap(({ parts }) => parts).reduce((sum, { size }) => sum + size, 0);
  if (memory > MAX_REGION_MEMORY)
    throw new RangeError(`${memory} bytes of shared memory: at most ${MAX_REGION_MEMORY}`);
  const events = sharing.reduce((sum, { ioeventfds }) => sum + ioeventfds.length, 0);
  if (events > MAX_IOEVENTFDS) throw new RangeError(`${events} ioeventfds: at most ${MAX_IOEVENTFDS}`);
  return sharing;
}

function declaredParts(region: number, options: Sharable, msix: MsixLayout | undefined): readonly SharedPart[] {
  const parts = options.shared === true ? [{ offset: 0, size: options.size }] : (options.shared ?? []);
  if (parts.length > MAX_SHARED_PARTS)
    throw new RangeError(`${nameOf(region)}: at most ${MAX_SHARED_PARTS} shared parts`);
  for (const [index, part] of parts.entries()) {
    const { offset, size } = part;
    const what = `${nameOf(region)}: the shared part of ${size} bytes at ${offset}`;
    if (options.io) throw new RangeError(`${what} is in an I/O BAR`);
    const aligned = isAligned(offset, PAGE_SIZE) && isAligned(size, PAGE_SIZE);
    if (!aligned || size === 0 || !inBounds(offset, size, options.size)) {
      throw new RangeError(`${what} is not in whole pages within it`);
    }
    const hidesMsix = msix?.bar === region && overlap(offset, size, msix.tableOffset, msix.end - msix.tableOffset);
    if (hidesMsix || parts.slice(0, index).some((other) => overlap(offset, size, other.offset, other.size))) {
      throw new RangeError(`${what} overlaps with another, or with the MSI-X table`);
    }
  }
  return parts;
}

function declaredEvents(
  region: number,
  { size: regionSize, ioeventfds = [] }: Sharable,
  parts: readonly SharedPart[],
  msix: MsixLayout | undefined,
): readonly IoEventFdOptions[] {
  const seen = new Set<string>();
  for (const { offset, size, datamatch, shadow } of ioeventfds) {
    const what = `${nameOf(region)}: the ioeventfd of ${size} bytes at ${offset}`;
    if (![0, 1, 2, 4, 8].includes(size) || !Number.isSafeInteger(offset) || !inBounds(offset, size || 1, regionSize)) {
      throw new RangeError(`${what} is not a write to it`);
    }
    if (size === 0 && (datamatch !== undefined || shadow)) throw new RangeError(`${what} needs a size for its value`);
    if (datamatch !== undefined && !(Number.isSafeInteger(datamatch) && inBounds(datamatch, 0, 256 ** size - 1))) {
      throw new RangeError(`${what} cannot match ${datamatch}`);
    }
    const hidesMsix = msix?.bar === region && overlap(offset, size || 1, msix.tableOffset, msix.end - msix.tableOffset);
    if (hidesMsix || parts.some((part) => overlap(offset, size || 1, part.offset, part.size))) {
      throw new RangeError(`${what} is in a shared part, or in the MSI-X table`);
    }
    const key = `${offset} ${size} ${datamatch}`;
    if (seen.has(key)) throw new RangeError(`${what} is there twice`);
    seen.add(key);
  }
  return ioeventfds;
}

function nameOf(region: number): string {
  return region < FIRST_DEVICE_REGION ? `BAR ${region}` : `region ${region}`;
}

function overlap(offset: number, size: number, other: number, otherSize: number): boolean {
  return offset < other + otherSize && other < offset + size;
}

/** @throws RangeError for what cannot be: an author's bug */
export function checkDeviceRegions(regions: readonly DeviceRegion[]): void {
  const most = MAX_REGIONS - FIRST_DEVICE_REGION;
  if (regions.length > most) throw new RangeError(`${regions.length} regions of the device's own: at most ${most}`);
  const seen = new Set<string>();
  for (const [n, { type, subtype, size, readable = true, writable = true }] of regions.entries()) {
    const what = `region ${FIRST_DEVICE_REGION + n}`;
    if (!isU32(type) || !isU32(subtype)) throw new RangeError(`${what}: type ${type}, subtype ${subtype}: not 32 bits`);
    if (!Number.isSafeInteger(size) || size < 1) throw new RangeError(`${what} of ${size} bytes`);
    if (!readable && !writable) throw new RangeError(`${what} can be neither read nor written`);
    const key = `${type} ${subtype}`;
    if (seen.has(key)) throw new RangeError(`${what}: another has type ${type} and subtype ${subtype}, too`);
    seen.add(key);
  }
}

function isU32(value: number): boolean {
  return value >>> 0 === value;
}
