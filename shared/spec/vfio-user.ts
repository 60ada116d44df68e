/**
 * vfio-user: the wire format as tables and constants (QEMU's docs/interop/vfio-user.rst, and <linux/vfio.h> for what it
 * refers to). Offsets are counted from the end of the 16-byte header, except in `Header` itself.
 */
import { struct } from "../struct/struct.js";

export const VERSION_MAJOR = 0;
/** The highest minor version that we speak; 0.2 differs from 0.0 in no message that we use. */
export const VERSION_MINOR = 2;

export const Command = {
  VERSION: 1,
  DMA_MAP: 2,
  DMA_UNMAP: 3,
  DEVICE_GET_INFO: 4,
  DEVICE_GET_REGION_INFO: 5,
  DEVICE_GET_REGION_IO_FDS: 6,
  DEVICE_GET_IRQ_INFO: 7,
  DEVICE_SET_IRQS: 8,
  REGION_READ: 9,
  REGION_WRITE: 10,
  /** Server to client, as is DMA_WRITE. */
  DMA_READ: 11,
  DMA_WRITE: 12,
  DEVICE_RESET: 13,
  REGION_WRITE_MULTI: 15,
  DEVICE_FEATURE: 16,
  MIG_DATA_READ: 17,
  MIG_DATA_WRITE: 18,
} as const;

/** "Header": 16 bytes in front of each message; `size` includes it. */
export const Header = struct({ id: "u16", command: "u16", size: "u32", flags: "u32", errno: "u32" });

export const HeaderFlags = {
  TYPE_MASK: 0xf,
  TYPE_COMMAND: 0,
  TYPE_REPLY: 1,
  NO_REPLY: 0x10,
  ERROR: 0x20,
} as const;

/** VERSION, both directions; NUL-terminated JSON follows. */
export const Version = struct({ major: "u16", minor: "u16" });

export const DmaMap = struct({ argsz: "u32", flags: "u32", offset: "u64", address: "i64", size: "u64" });
export const DmaMapFlags = {
  READ: 1,
  WRITE: 2,
  /** libvfio-user's header only: the fd may be mapped (we map whenever there is an fd). */
  MMAP: 4,
  FILE_IO: 8,
} as const;

/** DMA_UNMAP, request and reply, in which `size` is what was unmapped; the reply may be followed by a `Bitmap`. */
export const DmaUnmap = struct({ argsz: "u32", flags: "u32", address: "i64", size: "u64" });
export const DmaUnmapFlags = { GET_DIRTY_BITMAP: 1, ALL: 2 } as const;
export const Bitmap = struct({ pageSize: "u64", size: "u64" });

export const DeviceInfo = struct({ argsz: "u32", flags: "u32", numRegions: "u32", numIrqs: "u32" });
export const DeviceInfoFlags = { RESET: 1, PCI: 2 } as const;

export const RegionInfo = struct({
  argsz: "u32",
  flags: "u32",
  index: "u32",
  capOffset: "u32",
  size: "u64",
  offset: "u64",
});
export const RegionInfoFlags = { READ: 1, WRITE: 2, MMAP: 4, CAPS: 8 } as const;
export const RegionCapHeader = struct({ id: "u16", version: "u16", next: "u32" });
export const RegionCap = { SPARSE_MMAP: 1, TYPE: 2 } as const;
/** Follows a SPARSE_MMAP capability header; `areas` SparseMmapArea follow. */
export const SparseMmap = struct({ areas: "u32", reserved: 4 });
export const SparseMmapArea = struct({ offset: "u64", size: "u64" });

/** Follows a TYPE capability header. */
export const RegionType = struct({ type: "u32", subtype: "u32" });

/** VFIO_PCI_*_REGION_INDEX. */
export const Region = { BAR0: 0, BAR1: 1, BAR2: 2, BAR3: 3, BAR4: 4, BAR5: 5, ROM: 6, CONFIG: 7, VGA: 8 } as const;
/** Regions from here on are the device's own, and have a TYPE capability. */
export const NUM_PCI_REGIONS = 9;

export const RegionIoFds = struct({ argsz: "u32", flags: "u32", index: "u32", count: "u32" });
/**
 * A sub-region as libvfio-user has it, 48 bytes. The specification's has 40: there `dataMatch` takes the place of
 * `shadowOffset`. The reply's argsz says which it is, as it is the size of the whole.
 */
export const IoEventFd = struct({
  gpaOffset: "u64",
  size: "u64",
  fdIndex: "u32",
  type: "u32",
  flags: "u32",
  shadowMemFdIndex: "u32",
  shadowOffset: "u64",
  dataMatch: "u64",
});
export const IoEventFdFlags = { DATAMATCH: 1, PIO: 2 } as const;
export const IoFdType = { IOEVENTFD: 0, IOREGIONFD: 1, IOEVENTFD_SHADOW: 2 } as const;

export const IrqInfo = struct({ argsz: "u32", flags: "u32", index: "u32", count: "u32" });
export const IrqInfoFlags = { EVENTFD: 1, MASKABLE: 2, AUTOMASKED: 4, NORESIZE: 8 } as const;
/** VFIO_PCI_*_IRQ_INDEX. */
export const Irq = { INTX: 0, MSI: 1, MSIX: 2, ERR: 3, REQ: 4 } as const;
export const NUM_PCI_IRQS = 5;

/** SET_IRQS; DATA_BOOL is followed by `count` bytes, DATA_EVENTFD by fds on the message. */
export const IrqSet = struct({ argsz: "u32", flags: "u32", index: "u32", start: "u32", count: "u32" });
export const IrqSetFlags = {
  DATA_NONE: 1,
  DATA_BOOL: 2,
  DATA_EVENTFD: 4,
  DATA_MASK: 7,
  ACTION_MASK: 8,
  ACTION_UNMASK: 0x10,
  ACTION_TRIGGER: 0x20,
  ACTIONS_MASK: 0x38,
} as const;

/**
 * REGION_READ and REGION_WRITE, request and reply; `count` bytes of data follow in a write's request, a read's reply.
 */
export const RegionAccess = struct({ offset: "u64", region: "u32", count: "u32" });

/** DMA_READ and DMA_WRITE as the specification and libvfio-user have it: data at byte 32 of the message. */
export const DmaAccess = struct({ address: "i64", count: "u64" });
/**
 * The same as the first QEMUs with vfio-user-pci have it: data at byte 28 of a message that is as long as the above.
 */
export const DmaAccessQemu = struct({ address: "i64", count: "u32" });
/** Where the data is in the body of either; which of them a peer has. */
export const DMA_DATA_OFFSET = { specification: DmaAccess.size, qemu: DmaAccessQemu.size } as const;
export type DmaLayout = keyof typeof DMA_DATA_OFFSET;

/** REGION_WRITE_MULTI: `writes` WriteMultiEntry follow. */
export const WriteMulti = struct({ writes: "u64" });
export const WriteMultiEntry = struct({ offset: "u64", region: "u32", count: "u32", data: 8 });
export const WRITE_MULTI_MAX_DATA = 8;

export const DeviceFeature = struct({ argsz: "u32", flags: "u32" });
export const DeviceFeatureFlags = { FEATURE_MASK: 0xffff, GET: 0x10000, SET: 0x20000, PROBE: 0x40000 } as const;
export const Feature = {
  MIGRATION: 1,
  MIG_DEVICE_STATE: 2,
  DMA_LOGGING_START: 6,
  DMA_LOGGING_STOP: 7,
  DMA_LOGGING_REPORT: 8,
} as const;

export const FeatureMigration = struct({ flags: "u64" });
export const MigrationFlags = { STOP_COPY: 1, P2P: 2, PRE_COPY: 4 } as const;
export const FeatureMigDeviceState = struct({ deviceState: "u32", dataFd: "u32" });
/** enum vfio_device_mig_state. */
export const MigrationState = {
  ERROR: 0,
  STOP: 1,
  RUNNING: 2,
  STOP_COPY: 3,
  RESUMING: 4,
  RUNNING_P2P: 5,
  PRE_COPY: 6,
  PRE_COPY_P2P: 7,
} as const;
/** DMA_LOGGING_START: `numRanges` DmaLoggingRange follow. */
export const DmaLoggingControl = struct({ pageSize: "u64", numRanges: "u32", reserved: 4 });
export const DmaLoggingRange = struct({ iova: "i64", length: "u64" });
/** DMA_LOGGING_REPORT; the reply's bitmap follows. */
export const DmaLoggingReport = struct({ iova: "i64", length: "u64", pageSize: "u64" });

/** MIG_DATA_READ (request and reply) and MIG_DATA_WRITE; data follows. */
export const MigData = struct({ argsz: "u32", size: "u32" });
