/**
 * What a device's author declares of its PCI function, as data. Everything but the ids, the class and the BARs can be
 * left out: what comes then is a PCI Express endpoint with power management, and MSI-X where `msix` names vectors.
 */
import { NUM_PCI_REGIONS } from "../../shared/spec/vfio-user.js";
import type { RegisterTable } from "./registers.js";

/** A BAR: memory, unless `io` says otherwise. */
export interface BarOptions {
  /** Bytes; a power of two, at least 16 for memory, and 4 to 256 for I/O. */
  readonly size: number;
  /** A 64-bit BAR takes the next index as well. */
  readonly is64Bit?: boolean;
  readonly prefetchable?: boolean;
  /** An I/O BAR; neither of the two above goes with it. */
  readonly io?: boolean;
  /**
   * Parts of a memory BAR, in whole pages, that the driver VM maps and accesses without the device's hearing of it:
   * true for the whole BAR. The device has the memory from `DeviceContext.shared`. Put registers that do something
   * elsewhere.
   */
  readonly shared?: true | readonly SharedPart[];
  /** Writes of which the device only wants to know that they happened: see `Device.ioEvent`. */
  readonly ioeventfds?: readonly IoEventFdOptions[];
}

/** Bytes from the BAR's start; both multiples of 4096. */
export interface SharedPart {
  readonly offset: number;
  readonly size: number;
}

/**
 * A place in a BAR, outside of shared parts, at which a write becomes the signal of an eventfd, where the VMM can do
 * that.
 */
export interface IoEventFdOptions {
  readonly offset: number;
  /** Bytes of the write; 0 for any. */
  readonly size: 0 | 1 | 2 | 4 | 8;
  /** Only writes of this value. */
  readonly datamatch?: number;
  /**
   * The value written is kept, in memory shared with the VMM. Only VMMs that know libvfio-user's shadow ioeventfds do
   * so.
   */
  readonly shadow?: boolean;
}

/** What config space says of the device. */
export interface PciIdentity {
  readonly vendorId: number;
  readonly deviceId: number;
  readonly subsystemVendorId?: number;
  readonly subsystemId?: number;
  readonly revisionId?: number;
  /** 24 bits: base class, subclass, programming interface. */
  readonly classCode: number;
  /** By BAR index, 0 to 5. */
  readonly bars: Readonly<Record<number, BarOptions>>;
  /** The expansion ROM's bytes, at most 16 MiB; the ROM's size is the next power of two, at least 2 KiB. */
  readonly rom?: Uint8Array;
  /**
   * MSI-X vectors, 1 to 2048, or 0 for none. Table and pending bits are put into a BAR of their own or behind the
   * device's registers: see `bar`.
   */
  readonly msix?: { readonly vectors: number; readonly bar: number; readonly offset: number };
  /** An interrupt pin (INTA#); left out, there is one if there is neither MSI nor MSI-X. */
  readonly intx?: boolean;
  readonly capabilities?: PciCapabilities;
}

/** Capabilities besides MSI-X. Space for them is 192 bytes, and 3840 for the extended ones. */
export interface PciCapabilities {
  /** Power management, D0 and D3hot; there unless false. */
  readonly pm?: false | PmOptions;
  /**
   * PCI Express, with function-level reset; there unless false. Without it config space is 256 bytes and has no
   * extended part.
   */
  readonly pcie?: false | ExpressOptions;
  readonly msi?: MsiOptions;
  /** Vendor-specific capabilities, in this order. */
  readonly vendor?: readonly VendorCapability[];
  /** An EUI-64 as a number, or as 16 hexadecimal digits with "-" or ":" between the bytes, or without. */
  readonly serialNumber?: string | bigint;
  /** Advanced error reporting: its registers, for a driver that looks for them; nothing raises an error. */
  readonly errorReporting?: boolean;
  /** Vendor-specific extended capabilities, in this order. */
  readonly vendorExtended?: readonly VendorExtendedCapability[];
  /** Any other extended capabilities, in this order. */
  readonly extended?: readonly OtherExtendedCapability[];
}

export interface PmOptions {
  /**
   * Whether the way from D3hot back to D0 resets the function (No_Soft_Reset is then clear); it does not by default.
   */
  readonly softReset?: boolean;
}

/** The link is a fiction: these are for drivers and users who read them. */
export interface ExpressOptions {
  /** GT/s; 2.5 by default. Faster links would have to have capabilities that say how they are equalised. */
  readonly linkSpeed?: 2.5 | 5;
  /** Lanes; 1 by default. */
  readonly linkWidth?: 1 | 2 | 4 | 8 | 12 | 16 | 32;
  /** The largest payload of a packet in bytes; 128 by default. */
  readonly maxPayload?: 128 | 256 | 512 | 1024 | 2048 | 4096;
}

export interface MsiOptions {
  /** 1 by default. The driver VM may allow fewer: the vectors that it then has are shared. */
  readonly vectors?: 1 | 2 | 4 | 8 | 16 | 32;
  /** Addresses of 64 bits; so by default, and what PCI Express wants. */
  readonly is64Bit?: boolean;
  readonly perVectorMasking?: boolean;
}

/**
 * Registers of the author's. Offsets count from the capability's start, as in data sheets; `size` is the whole
 * capability's in bytes. `bytesAsRegisters` makes registers of a run of bytes.
 */
export interface VendorCapability {
  readonly size: number;
  /** From offset 3 on. */
  readonly registers: RegisterTable;
}

export interface VendorExtendedCapability {
  /** The vendor's own number for it, 16 bits, and its revision, 4 bits. */
  readonly id: number;
  readonly revision: number;
  readonly size: number;
  /** From offset 8 on. */
  readonly registers: RegisterTable;
}

export interface OtherExtendedCapability {
  /** The specification's number for it, and its version. */
  readonly id: number;
  readonly version: number;
  readonly size: number;
  /** From offset 4 on. */
  readonly registers: RegisterTable;
}

/** The index of a device's first region of its own. */
export const FIRST_DEVICE_REGION = NUM_PCI_REGIONS;

/**
 * A region of the device's own, beside those that PCI numbers (vfio-user, "Device-Specific Regions"; struct
 * vfio_region_info_cap_type of <linux/vfio.h>). A driver VM's VMM finds it by its type and subtype, and its use is
 * between that VMM and the device: a driver in the VM does not see it. Apart from what follows it is as a memory BAR,
 * with its index (9 and up) in place of the BAR's.
 */
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
