/**
 * The configuration space of a function: a type 0 header (PCI Local Bus 3.0, 6.2), and behind it the capabilities that
 * the device's author declared (identity.ts). This composes the register tables (registers.ts): those of bars.ts,
 * capabilities.ts and express-capabilities.ts. Beside config space there are MSI-X's table (msix.ts), checks of what is
 * declared of regions (declared-regions.ts), and the copy of registers from which reads are answered
 * (register-mirror.ts).
 *
 * Clear enable bits in the command register and D3hot do not make BAR accesses fail: vfio-user clients such as SPDK's
 * never set the bits, and a driver VMM does not forward what its own bus would not. They do end DMA.
 */
import {
  CONFIG_SIZE,
  CommandBits,
  EXTENDED_CONFIG_SIZE,
  Header,
  NUM_BARS,
  Pm,
  StatusBits,
} from "../../shared/spec/pci.js";
import { allBars, barRegisters, romImage, romRegister } from "./bars.js";
import {
  type Capability,
  msi,
  msix,
  placeCapabilities,
  placeExtendedCapabilities,
  powerManagement,
  vendorSpecific,
} from "./capabilities.js";
import { errorReporting, express, otherExtended, serialNumber, vendorExtended } from "./express-capabilities.js";
import type { PciIdentity } from "./identity.js";
import { type MsixLayout, msixLayout } from "./msix.js";
import { type Register, RegisterFile } from "./registers.js";

/** What the space asks of the interrupts' side, and tells it. */
export interface InterruptHooks {
  /** MSI vectors that wait while they are masked, a bit each. */
  msiPending?(): number;
  /** The driver VM wrote a register that enables, disables or masks interrupts. */
  changed?(): void;
}

export class ConfigSpace {
  /** All of it. */
  readonly registers: RegisterFile;
  /** 4096 bytes, or 256 without PCI Express. */
  readonly size: number;
  /** Bytes of each BAR by index; 0 where there is none, and for the upper half of a 64-bit one. */
  readonly barSizes: readonly number[];
  /** A bit for each memory BAR, whose writes PCI posts; writes to I/O BARs wait for the device. */
  readonly memoryBars: number;
  /** The expansion ROM, padded to its size; empty where there is none. */
  readonly rom: Uint8Array;
  /** How many interrupts of each kind the function has. */
  readonly intxPins: 0 | 1;
  readonly msiVectors: number;
  readonly msixVectors: number;
  /** Kept, as each look-up of an address asks for it. */
  #busMaster: boolean;
  readonly #hasPm: boolean;
  readonly #hasMsiMask: boolean;
  /** Stored, so that reads of command and status need nobody; it is no part of what a migration moves. */
  readonly #idleStatus: number;

  /**
   * `functionReset` is called when the driver VM asks for a reset, by PCI Express or by power management.
   * @throws RangeError when the identity contradicts itself: an author's bug
   */
  constructor(identity: PciIdentity, functionReset: () => void, interrupts: InterruptHooks = {}) {
    const layout = msixLayout(identity);
    const bars = allBars(identity, layout);
    this.rom = romImage(identity.rom);
    this.msiVectors = identity.capabilities?.msi === undefined ? 0 : (identity.capabilities.msi.vectors ?? 1);
    this.msixVectors = layout?.vectors ?? 0;
    this.intxPins = (identity.intx ?? (layout === undefined && this.msiVectors === 0)) ? 1 : 0;
    this.barSizes = Array.from({ length: NUM_BARS }, (_, index) => bars[index]?.size ?? 0);
    const memory = Object.keys(bars).filter((index) => !bars[Number(index)].io);
    this.memoryBars = memory.reduce((set, index) => set | (1 << Number(index)), 0);
    const table = new Map<string, Register>();
    for (const [index, bar] of Object.entries(bars)) barRegisters(table, Number(index), bar);
    if (this.rom.length > 0) romRegister(table, this.rom.length);
    const first = placeCapabilities(table, standardList(identity, layout, functionReset, interrupts));
    placeExtendedCapabilities(table, extendedList(identity));
    const hasIo = Object.values(bars).some((bar) => bar.io);
    header(table, identity, { first, hasIo, intxPins: this.intxPins, interrupts });
    this.size = identity.capabilities?.pcie === false ? CONFIG_SIZE : EXTENDED_CONFIG_SIZE;
    this.registers = new RegisterFile(this.size, Object.fromEntries(table));
    this.#hasPm = table.has("pm.control");
    this.#hasMsiMask = table.has("msi.mask");
    this.#idleStatus = this.registers.get("status");
    this.#busMaster = this.#mayMaster();
  }

  /** Whether INTA# is asserted, or would be if it were not disabled: status shows it. */
  get intxPending(): boolean {
    return (this.registers.get("status") & StatusBits.INTERRUPT) !== 0;
  }

  set intxPending(pending: boolean) {
    if (this.intxPins === 1) this.registers.set("status", this.#idleStatus | (pending ? StatusBits.INTERRUPT : 0));
  }

  get intxDisabled(): boolean {
    return (this.registers.get("command") & CommandBits.INTX_DISABLE) !== 0;
  }

  /** Whether the driver VM lets the function do DMA: it is a bus master, in D0. */
  get busMaster(): boolean {
    return this.#busMaster;
  }

  msiMasked(vector: number): boolean {
    return this.#hasMsiMask && (this.registers.get("msi.mask") & (1 << vector)) !== 0;
  }

  /** 1, 2 or 4 bytes at any offset. @throws RangeError when they do not lie within the space */
  read(offset: number, size: number): number {
    return this.registers.read(offset, size);
  }

  write(offset: number, size: number, value: number): void {
    this.registers.write(offset, size, value);
    this.#busMaster = this.#mayMaster();
  }

  reset(): void {
    this.registers.reset();
    this.#busMaster = this.#mayMaster();
  }

  /** The registers' values, to be loaded into the same function's space elsewhere. */
  save(): Uint8Array {
    const image = this.registers.save();
    image[Header.STATUS] &= ~StatusBits.INTERRUPT;
    return image;
  }

  /** @throws RangeError when the image is not of such a space in a state that a driver VM can have brought it into */
  load(image: Uint8Array): void {
    if (!this.registers.isReachable(image)) throw new RangeError("config space of another kind of function");
    this.registers.load(image);
    this.#busMaster = this.#mayMaster();
  }

  #mayMaster(): boolean {
    if ((this.registers.get("command") & CommandBits.BUS_MASTER) === 0) return false;
    return !this.#hasPm || (this.registers.get("pm.control") & Pm.STATE_MASK) === Pm.D0;
  }
}

function standardList(
  identity: PciIdentity,
  layout: MsixLayout | undefined,
  functionReset: () => void,
  interrupts: InterruptHooks,
): Capability[] {
  const { pm = {}, pcie = {}, msi: msiOptions, vendor = [] } = identity.capabilities ?? {};
  const list: Capability[] = [];
  if (pm !== false) list.push(powerManagement(pm, functionReset));
  if (pcie !== false) list.push(express(pcie, functionReset));
  if (layout !== undefined) list.push(msix(layout));
  if (msiOptions !== undefined) {
    const hooks = { pending: () => interrupts.msiPending?.() ?? 0, changed: () => interrupts.changed?.() };
    list.push(msi(msiOptions, hooks));
  }
  return [...list, ...vendor.map((capability, n) => vendorSpecific(`vendor${n}`, capability))];
}

function extendedList({ capabilities = {} }: PciIdentity): Capability[] {
  const list: Capability[] = [];
  if (capabilities.errorReporting) list.push(errorReporting());
  if (capabilities.serialNumber !== undefined) list.push(serialNumber(capabilities.serialNumber));
  const vendors = capabilities.vendorExtended ?? [];
  list.push(...vendors.map((capability, n) => vendorExtended(`vendorExtended${n}`, capability)));
  const others = capabilities.extended ?? [];
  list.push(...others.map((capability, n) => otherExtended(`extended${n}`, capability)));
  if (capabilities.pcie === false && list.length > 0) {
    throw new RangeError("extended capabilities belong to PCI Express, which the device does without");
  }
  return list;
}

interface HeaderFacts {
  /** Offset of the first capability, or 0. */
  readonly first: number;
  readonly hasIo: boolean;
  readonly intxPins: 0 | 1;
  readonly interrupts: InterruptHooks;
}

function header(table: Map<string, Register>, identity: PciIdentity, facts: HeaderFacts): void {
  const { first, hasIo, intxPins, interrupts } = facts;
  const fixed = (name: string, offset: number, size: 1 | 2 | 4, reset: number) =>
    table.set(name, { offset, size, reset });
  fixed("vendorId", Header.VENDOR_ID, 2, identity.vendorId);
  fixed("deviceId", Header.DEVICE_ID, 2, identity.deviceId);
  table.set("command", {
    offset: Header.COMMAND,
    size: 2,
    writable:
      (hasIo ? CommandBits.IO : 0) |
      CommandBits.MEMORY |
      CommandBits.BUS_MASTER |
      CommandBits.PARITY_RESPONSE |
      CommandBits.SERR_ENABLE |
      CommandBits.INTX_DISABLE,
    onWrite: () => interrupts.changed?.(),
  });
  // Error bits are not there: nothing raises an error.
  fixed("status", Header.STATUS, 2, first === 0 ? 0 : StatusBits.CAPABILITIES_LIST);
  fixed("revisionId", Header.REVISION_ID, 1, identity.revisionId ?? 0);
  fixed("programmingInterface", Header.CLASS_CODE, 1, identity.classCode & 0xff);
  fixed("subclass", Header.CLASS_CODE + 1, 1, (identity.classCode >>> 8) & 0xff);
  fixed("baseClass", Header.CLASS_CODE + 2, 1, (identity.classCode >>> 16) & 0xff);
  table.set("cacheLineSize", { offset: Header.CACHE_LINE_SIZE, size: 1, writable: 0xff });
  fixed("subsystemVendorId", Header.SUBSYSTEM_VENDOR_ID, 2, identity.subsystemVendorId ?? identity.vendorId);
  fixed("subsystemId", Header.SUBSYSTEM_ID, 2, identity.subsystemId ?? identity.deviceId);
  fixed("capabilities", Header.CAPABILITIES, 1, first);
  table.set("interruptLine", { offset: Header.INTERRUPT_LINE, size: 1, writable: 0xff });
  fixed("interruptPin", Header.INTERRUPT_PIN, 1, intxPins);
}
