/**
 * Where a virtio device's structures are in PCI (VIRTIO 1.2, 4.1.4): BAR 0 has one page for each, BAR 1 the MSI-X
 * table; vendor-specific capabilities say so. The notification structure has four bytes for each queue.
 */
import { MAX_IOEVENTFDS } from "../../shared/limits.js";
import {
  CommonCfgMore,
  DeviceId,
  PCI_DEVICE_ID_BASE,
  PCI_VENDOR_ID,
  PciCap,
  PciCapType,
  PciCfgCap,
  PciNotifyCap,
} from "../../shared/spec/virtio.js";
import type { PciIdentity } from "../device.js";
import type { VendorCapability } from "../pci/identity.js";
import type { RegisterTable } from "../pci/registers.js";
import type { VirtioDevice } from "./device.js";

/** Pages of BAR 0. */
export const PLACE = { COMMON: 0x0000, ISR: 0x1000, DEVICE: 0x2000, NOTIFY: 0x3000 } as const;
const PAGE = 0x1000;
export const NOTIFY_MULTIPLIER = 4;
export const MAX_QUEUES = PAGE / NOTIFY_MULTIPLIER;
const BAR_SIZE = 0x4000;
const MAX_MSIX_VECTORS = 2048;

/** As QEMU has them. */
const CLASS_CODES: Readonly<Record<number, number>> = {
  [DeviceId.NET]: 0x02_00_00,
  [DeviceId.BLOCK]: 0x01_00_00,
  [DeviceId.CONSOLE]: 0x07_80_00,
  [DeviceId.ENTROPY]: 0x00_ff_00,
  [DeviceId.FILE_SYSTEM]: 0x01_80_00,
};
const OTHER_CLASS = 0x00_ff_00;
/** 4.1.2.1: 0x40 or higher; QEMU's. */
const SUBSYSTEM_ID = 0x1100;

/** Accesses to BAR 0 by way of config space (4.1.4.9). */
export interface ConfigAccess {
  read(offset: number, size: number): number;
  write(offset: number, size: number, value: number): void;
}

export function identityOf(device: VirtioDevice, access: ConfigAccess): PciIdentity {
  const { id, queues, classCode = CLASS_CODES[id] ?? OTHER_CLASS } = device;
  const vectors = vectorsOf(device);
  // The table, and pending bits behind it.
  const tableSize = Math.max(PAGE, 2 ** Math.ceil(Math.log2(vectors * 16 * 2)));
  const ioeventfds = queues.slice(0, MAX_IOEVENTFDS).map((_, n) => ({
    offset: PLACE.NOTIFY + n * NOTIFY_MULTIPLIER,
    size: 2 as const,
  }));
  return {
    vendorId: PCI_VENDOR_ID,
    deviceId: PCI_DEVICE_ID_BASE + id,
    subsystemVendorId: PCI_VENDOR_ID,
    subsystemId: SUBSYSTEM_ID,
    revisionId: 1,
    classCode,
    bars: { 0: { size: BAR_SIZE, ioeventfds }, 1: { size: tableSize } },
    msix: { vectors, bar: 1, offset: 0 },
    intx: true,
    capabilities: {
      vendor: [
        structure(PciCapType.COMMON, PLACE.COMMON, CommonCfgMore.size),
        structure(PciCapType.NOTIFY, PLACE.NOTIFY, queues.length * NOTIFY_MULTIPLIER, {
          multiplier: { offset: PciNotifyCap.offsets.notifyOffMultiplier, size: 4, reset: NOTIFY_MULTIPLIER },
        }),
        structure(PciCapType.ISR, PLACE.ISR, 1),
        ...(device.config ? [structure(PciCapType.DEVICE, PLACE.DEVICE, device.config.size)] : []),
        configAccess(access),
      ],
    },
  };
}

export const vectorsOf = ({ vectors, queues }: VirtioDevice) =>
  vectors ?? Math.min(queues.length + 1, MAX_MSIX_VECTORS);

function structure(type: number, offset: number, length: number, more: RegisterTable = {}): VendorCapability {
  const size = PciCap.size + (Object.keys(more).length > 0 ? 4 : 0);
  const { cfgType, offset: at, length: lengthAt } = PciCap.offsets;
  return {
    size,
    registers: {
      type: { offset: cfgType, size: 1, reset: type },
      offset: { offset: at, size: 4, reset: offset },
      length: { offset: lengthAt, size: 4, reset: length },
      ...more,
    },
  };
}

/** The driver writes a place into the capability, and then reads or writes there by its data. */
function configAccess({ read, write }: ConfigAccess): VendorCapability {
  const { cfgType, bar: barAt, offset: offsetAt, length: lengthAt } = PciCap.offsets;
  let [bar, offset, length] = [0, 0, 0];
  const isPossible = () => bar === 0 && [1, 2, 4].includes(length) && offset % length === 0;
  return {
    size: PciCfgCap.size,
    registers: {
      type: { offset: cfgType, size: 1, reset: PciCapType.PCI },
      bar: {
        offset: barAt,
        size: 1,
        writable: 0xff,
        onWrite: (value) => {
          bar = value;
        },
      },
      offset: {
        offset: offsetAt,
        size: 4,
        writable: 0xffff_ffff,
        onWrite: (value) => {
          offset = value;
        },
      },
      length: {
        offset: lengthAt,
        size: 4,
        writable: 0xffff_ffff,
        onWrite: (value) => {
          length = value;
        },
      },
      data: {
        offset: PciCfgCap.offsets.data,
        size: 4,
        onRead: () => (isPossible() ? read(offset, length) : 0),
        onWrite: (_value, _previous, written) => {
          if (isPossible()) write(offset, length, written);
        },
      },
    },
  };
}
