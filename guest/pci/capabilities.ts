/**
 * Capabilities as register tables. First how they are placed: one list from 0x40 on (PCI Local Bus 3.0, 6.7), the
 * extended one from 0x100 on (PCI Express Base 3.0, 7.9), each capability a multiple of four bytes behind the one
 * before. Then those of the conventional list: power management (PCI Power Management 1.2, 3.2), MSI and MSI-X (PCI
 * Local Bus 3.0, 6.8), vendor-specific (6.7 and appendix H); PCI Express's are in express-capabilities.ts. Left out:
 * D1, D2 and power management events.
 */
import { alignUp } from "../../shared/bits.js";
import {
  CONFIG_SIZE,
  EXTENDED_CONFIG_SIZE,
  HEADER_SIZE,
  Capability as Id,
  Msi,
  Msix,
  Pm,
  Vendor,
} from "../../shared/spec/pci.js";
import type { MsiOptions, PmOptions, VendorCapability } from "./identity.js";
import type { MsixLayout } from "./msix.js";
import type { Register, RegisterTable } from "./registers.js";

export interface Capability {
  /** Unique in its function; the registers' names begin with it and a dot. */
  readonly name: string;
  readonly id: number;
  /** Of extended capabilities alone. */
  readonly version?: number;
  /** Bytes, the header included. */
  readonly size: number;
  /** Offsets count from the capability's start; the header (id and the next one's offset) is not among them. */
  readonly registers: RegisterTable;
}

/** Where a list of capabilities lies, and what is in front of each. */
interface Placement {
  readonly start: number;
  readonly end: number;
  readonly maxId: number;
  readonly headerSize: 2 | 4;
  header(capability: Capability, next: number): number;
}

const STANDARD: Placement = {
  start: HEADER_SIZE,
  end: CONFIG_SIZE,
  maxId: 0xff,
  headerSize: 2,
  header: ({ id }, next) => id | (next << 8),
};

const EXTENDED: Placement = {
  start: CONFIG_SIZE,
  end: EXTENDED_CONFIG_SIZE,
  maxId: 0xffff,
  headerSize: 4,
  header: ({ id, version = 1 }, next) => (id | (version << 16) | (next << 20)) >>> 0,
};

/**
 * Puts the list into `table`; returns its first capability's offset, or 0. @throws RangeError when it does not fit: an
 * author's bug
 */
export function placeCapabilities(table: Map<string, Register>, list: readonly Capability[]): number {
  return place(table, list, STANDARD);
}

/** The same in the extended space. */
export function placeExtendedCapabilities(table: Map<string, Register>, list: readonly Capability[]): number {
  return place(table, list, EXTENDED);
}

function place(table: Map<string, Register>, list: readonly Capability[], placement: Placement): number {
  let offset = placement.start;
  for (const [position, capability] of list.entries()) {
    check(capability, placement);
    const { name, size, registers } = capability;
    const following = offset + alignUp(size, 4);
    if (following > placement.end) throw new RangeError(`there is no room for the capability "${name}"`);
    const next = position + 1 < list.length ? following : 0;
    table.set(name, { offset, size: placement.headerSize, reset: placement.header(capability, next) });
    for (const [registerName, register] of Object.entries(registers)) {
      if (!(register.offset >= placement.headerSize && register.offset + register.size <= size)) {
        throw new RangeError(`register ${registerName} is outside of the capability "${name}"`);
      }
      table.set(`${name}.${registerName}`, { ...register, offset: offset + register.offset });
    }
    offset = following;
  }
  return list.length > 0 ? placement.start : 0;
}

function check({ name, id, version = 1, size }: Capability, { maxId, headerSize }: Placement): void {
  if (!Number.isInteger(id) || id <= 0 || id > maxId) throw new RangeError(`there is no capability id ${id}`);
  if (!Number.isInteger(version) || version < 0 || version > 0xf) throw new RangeError(`no version ${version}`);
  if (!Number.isInteger(size) || size < headerSize) throw new RangeError(`the capability "${name}" has no size`);
}

/** `softReset` is called on the way from D3hot to D0, if the author wants that to be a reset. */
export function powerManagement(options: PmOptions, softReset: () => void): Capability {
  const resets = options.softReset === true;
  const state = (value: number) => value & Pm.STATE_MASK;
  const exists = (value: number) => state(value) === Pm.D0 || state(value) === Pm.D3_HOT;
  return {
    name: "pm",
    id: Id.POWER_MANAGEMENT,
    size: Pm.SIZE,
    registers: {
      capabilities: { offset: Pm.CAPABILITIES, size: 2, reset: Pm.VERSION_3 },
      control: {
        offset: Pm.CONTROL,
        size: 2,
        reset: resets ? 0 : Pm.NO_SOFT_RESET,
        writable: Pm.STATE_MASK,
        // 3.2.4: a write of a state that is not supported completes and changes nothing.
        accept: (value, previous) => (exists(value) ? value : previous),
        onWrite: (value, previous) => {
          if (resets && state(previous) === Pm.D3_HOT && state(value) === Pm.D0) softReset();
        },
      },
    },
  };
}

interface MsiHooks {
  /** Vectors that wait while they are masked, a bit each. */
  pending(): number;
  /** Enable bit, vectors or mask bits may be others now. */
  changed(): void;
}

export function msi(options: MsiOptions, hooks: MsiHooks): Capability {
  const { vectors = 1, is64Bit = true, perVectorMasking = false } = options;
  const log2 = Math.log2(vectors);
  if (!Number.isInteger(log2) || vectors < 1 || vectors > Msi.MAX_VECTORS) {
    throw new RangeError(`${vectors} MSI vectors: a power of two up to ${Msi.MAX_VECTORS} is possible`);
  }
  const layout = is64Bit ? Msi.LAYOUT_64 : Msi.LAYOUT_32;
  const registers: Record<string, Register> = {
    control: {
      offset: Msi.CONTROL,
      size: 2,
      reset:
        (log2 << Msi.CONTROL_CAPABLE_SHIFT) |
        (is64Bit ? Msi.CONTROL_64_BIT : 0) |
        (perVectorMasking ? Msi.CONTROL_PER_VECTOR_MASKING : 0),
      writable: Msi.CONTROL_ENABLE | (Msi.CONTROL_COUNT_MASK << Msi.CONTROL_ENABLED_SHIFT),
      onWrite: hooks.changed,
    },
    address: { offset: Msi.ADDRESS, size: 4, writable: Msi.ADDRESS_MASK },
    data: { offset: layout.DATA, size: 2, writable: 0xffff },
  };
  if (is64Bit) registers.upperAddress = { offset: Msi.LAYOUT_64.UPPER_ADDRESS, size: 4, writable: 0xffff_ffff };
  if (perVectorMasking) {
    const every = 2 ** vectors - 1;
    registers.mask = { offset: layout.MASK, size: 4, writable: every, onWrite: hooks.changed };
    registers.pending = { offset: layout.PENDING, size: 4, onRead: hooks.pending };
  }
  return { name: "msi", id: Id.MSI, size: perVectorMasking ? layout.PENDING + 4 : layout.DATA + 2, registers };
}

export function msix(layout: MsixLayout): Capability {
  return {
    name: "msix",
    id: Id.MSIX,
    size: Msix.SIZE,
    registers: {
      control: {
        offset: Msix.CONTROL,
        size: 2,
        reset: layout.vectors - 1,
        writable: Msix.CONTROL_ENABLE | Msix.CONTROL_FUNCTION_MASK,
      },
      table: { offset: Msix.TABLE, size: 4, reset: layout.tableOffset | layout.bar },
      pending: { offset: Msix.PENDING, size: 4, reset: layout.pendingOffset | layout.bar },
    },
  };
}

export function vendorSpecific(name: string, { size, registers }: VendorCapability): Capability {
  if (size > Vendor.MAX_SIZE) throw new RangeError(`a vendor-specific capability of ${size} bytes`);
  const length: Register = { offset: Vendor.LENGTH, size: 1, reset: size };
  return { name, id: Id.VENDOR, size, registers: { ...registers, $length: length } };
}
