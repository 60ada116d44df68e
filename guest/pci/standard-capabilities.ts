/**
 * Capabilities of the conventional list as register tables: power management (PCI Power Management 1.2, 3.2), MSI and
 * MSI-X (PCI Local Bus 3.0, 6.8), vendor-specific (6.7 and appendix H). Left out: D1, D2 and power management events.
 */
import { Capability as Id, Msi, Msix, Pm, Vendor } from "../../shared/spec/pci.js";
import type { Capability } from "./capability.js";
import type { MsiOptions, PmOptions, VendorCapability } from "./identity.js";
import type { MsixLayout } from "./msix.js";
import type { Register } from "./registers.js";

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

export interface MsiHooks {
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
