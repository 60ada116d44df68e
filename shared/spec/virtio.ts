/**
 * VIRTIO 1.2: device status, feature bits, the split virtqueue (2.7) and the PCI transport's structures (4.1).
 */
import { struct } from "../struct/struct.js";

/** 2.1 "Device Status Field". */
export const Status = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  DEVICE_NEEDS_RESET: 64,
  FAILED: 128,
} as const;

/** 6 "Reserved Feature Bits", as masks. */
export const Feature = {
  RING_INDIRECT_DESC: 1n << 28n,
  RING_EVENT_IDX: 1n << 29n,
  VERSION_1: 1n << 32n,
  ACCESS_PLATFORM: 1n << 33n,
  IN_ORDER: 1n << 35n,
  RING_RESET: 1n << 40n,
} as const;
/** Bits that are a device's own: 0 to 23, and 50 to 127. */
export const isDeviceFeature = (bit: number) => (bit >= 0 && bit < 24) || (bit >= 50 && bit < 64);

/** 5 "Device Types". */
export const DeviceId = { NET: 1, BLOCK: 2, CONSOLE: 3, ENTROPY: 4, FILE_SYSTEM: 26 } as const;

/** 2.7.5 "The Virtqueue Descriptor Table". */
export const Descriptor = struct({ address: "u64", length: "u32", flags: "u16", next: "u16" });
export const DescriptorFlags = { NEXT: 1, WRITE: 2, INDIRECT: 4 } as const;

/** 2.7.6 and 2.7.8: u16 flags, u16 idx, then the ring; the event index stands behind the ring's last entry. */
export const RING_FLAGS_OFFSET = 0;
export const RING_INDEX_OFFSET = 2;
export const RING_ENTRIES_OFFSET = 4;
export const AVAILABLE_ENTRY_SIZE = 2;
export const UsedEntry = struct({ id: "u32", length: "u32" });
export const AvailableFlags = { NO_INTERRUPT: 1 } as const;
export const UsedFlags = { NO_NOTIFY: 1 } as const;

/** Bytes of each part for a queue of `size` descriptors, event indices included (2.7). */
export const descriptorTableBytes = (size: number) => Descriptor.size * size;
export const availableRingBytes = (size: number) => RING_ENTRIES_OFFSET + AVAILABLE_ENTRY_SIZE * size + 2;
export const usedRingBytes = (size: number) => RING_ENTRIES_OFFSET + UsedEntry.size * size + 2;

/** 4.1.2 "PCI Device Discovery". */
export const PCI_VENDOR_ID = 0x1af4;
export const PCI_DEVICE_ID_BASE = 0x1040;

/** 4.1.4 "Virtio Structure PCI Capabilities": struct virtio_pci_cap behind the capability's id and next pointer. */
export const PciCap = struct({
  capVndr: "u8",
  capNext: "u8",
  capLen: "u8",
  cfgType: "u8",
  bar: "u8",
  id: "u8",
  padding: 2,
  offset: "u32",
  length: "u32",
});
/** struct virtio_pci_cap64 adds the upper halves; struct virtio_pci_notify_cap adds the multiplier. */
export const PciCap64 = struct({ cap: PciCap.size, offsetHigh: "u32", lengthHigh: "u32" });
export const PciNotifyCap = struct({ cap: PciCap.size, notifyOffMultiplier: "u32" });
export const PciCapType = {
  COMMON: 1,
  NOTIFY: 2,
  ISR: 3,
  DEVICE: 4,
  PCI: 5,
  SHARED_MEMORY: 8,
  VENDOR: 9,
} as const;

/** 4.1.4.3 "Common configuration structure layout". */
export const CommonCfg = struct({
  deviceFeatureSelect: "u32",
  deviceFeature: "u32",
  driverFeatureSelect: "u32",
  driverFeature: "u32",
  configMsixVector: "u16",
  numQueues: "u16",
  deviceStatus: "u8",
  configGeneration: "u8",
  queueSelect: "u16",
  queueSize: "u16",
  queueMsixVector: "u16",
  queueEnable: "u16",
  queueNotifyOff: "u16",
  queueDesc: "u64",
  queueDriver: "u64",
  queueDevice: "u64",
});
/** 4.1.4.3 of version 1.2 adds these. */
export const CommonCfgMore = struct({ common: CommonCfg.size, queueNotifyData: "u16", queueReset: "u16" });
export const NO_VECTOR = 0xffff;
/** 4.1.4.5 "ISR status capability". */
export const Isr = { QUEUE: 1, CONFIG: 2 } as const;
/** 4.1.4.9 "PCI configuration access capability": behind a PciCap, 4 bytes of data. */
export const PciCfgCap = struct({ cap: PciCap.size, data: "u32" });
/** 2.7 and 2.7.5: the largest queue, and what its parts are multiples of. */
export const MAX_QUEUE_SIZE = 32768;
export const RING_ALIGNMENT = { descriptors: 16, available: 2, used: 4 } as const;
