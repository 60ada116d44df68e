/**
 * Regions of a device's own, beside those that PCI numbers (vfio-user, "Device-Specific Regions"; struct
 * vfio_region_info_cap_type of <linux/vfio.h>): what an author declares of them, and its checks. A driver VM's VMM
 * finds such a region by its type and subtype, and its use is between that VMM and the device: a driver in the VM does
 * not see it.
 */
import { MAX_REGIONS } from "../../shared/limits.js";
import { NUM_PCI_REGIONS } from "../../shared/spec/vfio-user.js";
import type { IoEventFdOptions, SharedPart } from "./identity.js";

/** The index of a device's first region of its own. */
export const FIRST_DEVICE_REGION = NUM_PCI_REGIONS;

/** One such region. Apart from what follows it is as a memory BAR, with its index (9 and up) in place of the BAR's. */
export interface DeviceRegion {
  /**
   * 32 bits. With bit 31 set, the rest is the PCI id of the vendor who gives out the subtypes; otherwise a
   * VFIO_REGION_TYPE_*.
   */
  readonly type: number;
  /** 32 bits; no two regions have the same of both. */
  readonly subtype: number;
  /** Bytes, at least 1. */
  readonly size: number;
  /** What the driver VM's VMM may do with it by message; both unless false. Shared parts can be mapped all the same. */
  readonly readable?: boolean;
  readonly writable?: boolean;
  /** As a BAR's: parts in whole pages that are memory, or true for all of it. */
  readonly shared?: true | readonly SharedPart[];
  /** As a BAR's. */
  readonly ioeventfds?: readonly IoEventFdOptions[];
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
