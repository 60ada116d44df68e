/**
 * Where a VIRTIO PCI device has its structures (VIRTIO 1.2, 4.1.4): the vendor capabilities in config space. The device
 * is not trusted: the list may loop, and a structure may lie outside its BAR.
 */
import { inBounds } from "../../shared/bits.js";
import { UserError } from "../../shared/errors.js";
import { Capability, CONFIG_SIZE, HEADER_SIZE, Header, NUM_BARS, StatusBits } from "../../shared/spec/pci.js";
import { CommonCfg, PCI_VENDOR_ID, PciCap, PciCap64, PciCapType, PciNotifyCap } from "../../shared/spec/virtio.js";
import type { PciFunction, Registers } from "../vfio/pci-function.js";

/** A structure: [offset, offset + length) of a BAR, within the BAR. */
export interface Structure {
  readonly bar: number;
  readonly offset: number;
  readonly length: number;
}

export interface VirtioLayout {
  readonly common: Structure;
  readonly notify: Structure;
  /** Bytes from one queue's notification address to the next. */
  readonly notifyMultiplier: number;
  readonly device: Structure;
  /** By shared memory id. */
  readonly sharedMemory: ReadonlyMap<number, Structure>;
}

const TWO_32 = 0x1_0000_0000;
/** Capabilities that fit into config space: a longer list is a loop. */
const MAX_CAPABILITIES = (CONFIG_SIZE - HEADER_SIZE) / 4;

/** @throws UserError when the function is no modern VIRTIO device, or a broken one */
export function discover(pci: PciFunction): VirtioLayout {
  const { config } = pci;
  if (config.read16(Header.VENDOR_ID) !== PCI_VENDOR_ID) throw new UserError("it is not a VIRTIO device");
  const found = new Map<number, Structure>();
  const sharedMemory = new Map<number, Structure>();
  let notifyMultiplier = 0;
  for (const at of vendorCapabilities(config)) {
    const type = config.read8(at + PciCap.offsets.cfgType);
    const structure = readStructure(config, at, type);
    // A driver ignores a BAR value or a type that it does not know (4.1.4).
    if (structure.bar >= NUM_BARS || type === PciCapType.PCI) continue;
    if (!inBounds(structure.offset, structure.length, pci.barSize(structure.bar))) {
      throw new UserError(`its structure of type ${type} lies outside of BAR ${structure.bar}`);
    }
    if (type === PciCapType.SHARED_MEMORY) {
      const id = config.read8(at + PciCap.offsets.id);
      if (!sharedMemory.has(id)) sharedMemory.set(id, structure);
    } else if (!found.has(type)) {
      // The first of each type is the one that the device prefers.
      found.set(type, structure);
      if (type === PciCapType.NOTIFY) {
        notifyMultiplier = config.read32(at + PciNotifyCap.offsets.notifyOffMultiplier);
      }
    }
  }
  const need = (type: number, name: string, length: number) => {
    const structure = found.get(type);
    if (structure === undefined || structure.length < length) {
      throw new UserError(`it has no ${name} structure: not a modern VIRTIO device`);
    }
    return structure;
  };
  return {
    common: need(PciCapType.COMMON, "common configuration", CommonCfg.size),
    notify: need(PciCapType.NOTIFY, "notification", 2),
    notifyMultiplier,
    device: need(PciCapType.DEVICE, "device configuration", 0),
    sharedMemory,
  };
}

/** Offsets of the vendor capabilities that are long enough to be VIRTIO's. */
function* vendorCapabilities(config: Registers): Generator<number> {
  if ((config.read16(Header.STATUS) & StatusBits.CAPABILITIES_LIST) === 0) return;
  let at = config.read8(Header.CAPABILITIES) & ~3;
  for (let n = 0; n < MAX_CAPABILITIES && at >= HEADER_SIZE; n++) {
    const length = config.read8(at + PciCap.offsets.capLen);
    if (config.read8(at) === Capability.VENDOR && length >= PciCap.size && at + length <= CONFIG_SIZE) {
      const type = config.read8(at + PciCap.offsets.cfgType);
      if (length >= minimumLength(type)) yield at;
    }
    at = config.read8(at + 1) & ~3;
  }
}

function minimumLength(type: number): number {
  if (type === PciCapType.SHARED_MEMORY) return PciCap64.size;
  return type === PciCapType.NOTIFY ? PciNotifyCap.size : PciCap.size;
}

function readStructure(config: Registers, at: number, type: number): Structure {
  const bar = config.read8(at + PciCap.offsets.bar);
  let offset = config.read32(at + PciCap.offsets.offset);
  let length = config.read32(at + PciCap.offsets.length);
  if (type === PciCapType.SHARED_MEMORY) {
    offset += config.read32(at + PciCap64.offsets.offsetHigh) * TWO_32;
    length += config.read32(at + PciCap64.offsets.lengthHigh) * TWO_32;
  }
  return { bar, offset, length };
}
