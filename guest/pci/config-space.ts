/**
 * The configuration space of a function: a type 0 header with its BARs, and a capability list of power management, PCI
 * Express and MSI-X (PCI Local Bus 3.0 chapter 6; the numbers are in spec/pci). Left out: I/O BARs, an expansion ROM, MSI,
 * and extended capabilities (the space is 4096 bytes, and its upper part reads as zeros, which says that there are none).
 *
 * A clear memory enable bit does not make BAR accesses fail: vfio-user clients such as SPDK's never set it.
 */
import { isPowerOfTwo } from "../../shared/bits.js";
import {
  BarBits,
  Capability,
  CommandBits,
  EXTENDED_CONFIG_SIZE,
  Express,
  HEADER_SIZE,
  Header,
  Msix,
  NUM_BARS,
  Pm,
  StatusBits,
} from "../../shared/spec/pci.js";
import type { BarOptions, PciIdentity } from "../device.js";
import { type MsixLayout, msixLayout } from "./msix.js";
import { type Register, RegisterFile } from "./registers.js";

const MIN_BAR_SIZE = 16;
const MAX_BAR_SIZE_32 = 0x8000_0000;
const TWO_32 = 0x1_0000_0000;

export interface ConfigSpace {
  readonly size: number;
  /** Bytes of each BAR by index; 0 where there is none, and for the upper half of a 64-bit one. */
  readonly barSizes: readonly number[];
  /** Whether the driver VM lets the function do DMA. */
  readonly busMaster: boolean;
  /** 1, 2 or 4 bytes within the space. */
  read(offset: number, size: number): number;
  write(offset: number, size: number, value: number): void;
  reset(): void;
  inspect(): Record<string, string>;
}

/**
 * Builds the space; `functionReset` is called when the driver VM asks for a function-level reset.
 * @throws RangeError when the identity contradicts itself: an author's bug
 */
export function createConfigSpace(identity: PciIdentity, functionReset: () => void): ConfigSpace {
  const layout = msixLayout(identity);
  const bars = allBars(identity, layout);
  const barSizes = Array.from({ length: NUM_BARS }, (_, index) => bars[index]?.size ?? 0);
  const table = new Map<string, Register>();
  header(table, identity);
  for (const [index, bar] of Object.entries(bars)) barRegisters(table, Number(index), bar);
  capabilities(table, layout, functionReset);
  const registers = new RegisterFile(EXTENDED_CONFIG_SIZE, Object.fromEntries(table));
  return {
    size: EXTENDED_CONFIG_SIZE,
    barSizes,
    get busMaster() {
      return (registers.get("command") & CommandBits.BUS_MASTER) !== 0;
    },
    read: (offset, size) => registers.read(offset, size),
    write: (offset, size, value) => registers.write(offset, size, value),
    reset: () => registers.reset(),
    inspect: () => registers.inspect(),
  };
}

function header(table: Map<string, Register>, identity: PciIdentity): void {
  const fixed = (name: string, offset: number, size: 1 | 2 | 4, reset: number) =>
    table.set(name, { offset, size, reset });
  fixed("vendorId", Header.VENDOR_ID, 2, identity.vendorId);
  fixed("deviceId", Header.DEVICE_ID, 2, identity.deviceId);
  table.set("command", {
    offset: Header.COMMAND,
    size: 2,
    writable:
      CommandBits.MEMORY |
      CommandBits.BUS_MASTER |
      CommandBits.PARITY_RESPONSE |
      CommandBits.SERR_ENABLE |
      CommandBits.INTX_DISABLE,
  });
  table.set("status", {
    offset: Header.STATUS,
    size: 2,
    reset: StatusBits.CAPABILITIES_LIST,
    writeOneToClear: StatusBits.ERRORS,
  });
  fixed("revisionId", Header.REVISION_ID, 1, identity.revisionId ?? 0);
  fixed("programmingInterface", Header.CLASS_CODE, 1, identity.classCode & 0xff);
  fixed("subclass", Header.CLASS_CODE + 1, 1, (identity.classCode >>> 8) & 0xff);
  fixed("baseClass", Header.CLASS_CODE + 2, 1, (identity.classCode >>> 16) & 0xff);
  table.set("cacheLineSize", { offset: Header.CACHE_LINE_SIZE, size: 1, writable: 0xff });
  fixed("subsystemVendorId", Header.SUBSYSTEM_VENDOR_ID, 2, identity.subsystemVendorId ?? identity.vendorId);
  fixed("subsystemId", Header.SUBSYSTEM_ID, 2, identity.subsystemId ?? identity.deviceId);
  fixed("capabilities", Header.CAPABILITIES, 1, HEADER_SIZE);
  table.set("interruptLine", { offset: Header.INTERRUPT_LINE, size: 1, writable: 0xff });
  fixed("interruptPin", Header.INTERRUPT_PIN, 1, 1);
}

/** The author's BARs, and one for MSI-X where the author named one that is not there. */
function allBars(identity: PciIdentity, layout: MsixLayout | undefined): Record<number, BarOptions> {
  const bars: Record<number, BarOptions> = { ...identity.bars };
  if (layout !== undefined && bars[layout.bar] === undefined) {
    bars[layout.bar] = { size: Math.max(4096, 2 ** Math.ceil(Math.log2(layout.end))) };
  }
  for (const [key, bar] of Object.entries(bars)) {
    const index = Number(key);
    const last = bar.is64Bit ? index + 1 : index;
    if (!Number.isInteger(index) || index < 0 || last >= NUM_BARS) throw new RangeError(`there is no BAR ${key}`);
    if (bar.is64Bit && bars[last] !== undefined) throw new RangeError(`BAR ${last} is the upper half of BAR ${index}`);
    const most = bar.is64Bit ? Number.MAX_SAFE_INTEGER : MAX_BAR_SIZE_32;
    if (!isPowerOfTwo(bar.size) || bar.size < MIN_BAR_SIZE || bar.size > most) {
      throw new RangeError(`BAR ${index}: ${bar.size} bytes is not a power of two from ${MIN_BAR_SIZE} to ${most}`);
    }
  }
  if (layout !== undefined && layout.end > bars[layout.bar].size) {
    throw new RangeError(`the MSI-X table and pending bits do not fit into BAR ${layout.bar}`);
  }
  return bars;
}

/** A BAR answers all ones with its size's bits clear (6.2.5.1): bits below the size are simply not writable. */
function barRegisters(table: Map<string, Register>, index: number, bar: BarOptions): void {
  const offset = Header.BAR0 + index * 4;
  const flags = (bar.is64Bit ? BarBits.TYPE_64_BIT : 0) | (bar.prefetchable ? BarBits.PREFETCHABLE : 0);
  const lowMask = bar.size >= TWO_32 ? 0 : ~(bar.size - 1) >>> 0;
  table.set(`bar${index}`, { offset, size: 4, reset: flags, writable: lowMask });
  if (bar.is64Bit) {
    const highMask = bar.size > TWO_32 ? ~(bar.size / TWO_32 - 1) >>> 0 : 0xffffffff;
    table.set(`bar${index + 1}`, { offset: offset + 4, size: 4, writable: highMask });
  }
}

/** Lays the capabilities out one behind the other, each with its id and the offset of the next. */
function capabilities(table: Map<string, Register>, layout: MsixLayout | undefined, functionReset: () => void): void {
  const list = [powerManagement(), express(functionReset), ...(layout === undefined ? [] : [msix(layout)])];
  let offset = HEADER_SIZE;
  for (const [position, { id, size, registers }] of list.entries()) {
    const next = position + 1 < list.length ? offset + size : 0;
    table.set(`cap${id}`, { offset, size: 2, reset: id | (next << 8) });
    for (const [name, register] of Object.entries(registers)) {
      table.set(name, { ...register, offset: offset + register.offset });
    }
    offset += size;
  }
}

interface CapabilityTable {
  readonly id: number;
  readonly size: number;
  /** Offsets count from the capability's start. */
  readonly registers: Readonly<Record<string, Register>>;
}

function powerManagement(): CapabilityTable {
  return {
    id: Capability.POWER_MANAGEMENT,
    size: Pm.SIZE,
    registers: {
      pmCapabilities: { offset: 2, size: 2, reset: Pm.VERSION_3 },
      pmControl: { offset: 4, size: 2, reset: Pm.NO_SOFT_RESET, writable: Pm.STATE_MASK },
    },
  };
}

function express(functionReset: () => void): CapabilityTable {
  return {
    id: Capability.PCI_EXPRESS,
    size: Express.SIZE,
    registers: {
      expressFlags: { offset: Express.FLAGS, size: 2, reset: Express.FLAGS_ENDPOINT_V2 },
      deviceCapabilities: {
        offset: Express.DEVICE_CAPABILITIES,
        size: 4,
        reset: Express.DEVICE_CAPABILITIES_VALUE,
      },
      deviceControl: {
        offset: Express.DEVICE_CONTROL,
        size: 2,
        reset: Express.DEVICE_CONTROL_RESET_VALUE,
        writable: Express.DEVICE_CONTROL_WRITABLE,
        onWrite: (_value, _previous, written) => {
          if ((written & Express.DEVICE_CONTROL_FLR) !== 0) functionReset();
        },
      },
      deviceStatus: { offset: Express.DEVICE_STATUS, size: 2, writeOneToClear: Express.DEVICE_STATUS_ERRORS },
      linkCapabilities: { offset: Express.LINK_CAPABILITIES, size: 4, reset: Express.LINK_WIDTH_AND_SPEED },
      linkControl: { offset: Express.LINK_CONTROL, size: 2, writable: 0x00c3 },
      linkStatus: { offset: Express.LINK_STATUS, size: 2, reset: Express.LINK_WIDTH_AND_SPEED },
    },
  };
}

function msix(layout: MsixLayout): CapabilityTable {
  return {
    id: Capability.MSIX,
    size: Msix.SIZE,
    registers: {
      msixControl: {
        offset: Msix.CONTROL,
        size: 2,
        reset: layout.vectors - 1,
        writable: Msix.CONTROL_ENABLE | Msix.CONTROL_FUNCTION_MASK,
      },
      msixTable: { offset: Msix.TABLE, size: 4, reset: layout.tableOffset | layout.bar },
      msixPending: { offset: Msix.PENDING, size: 4, reset: layout.pendingOffset | layout.bar },
    },
  };
}
