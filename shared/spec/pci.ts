/**
 * PCI: configuration space of a type 0 function, and the capabilities that our functions have or look for (PCI Local Bus
 * 3.0 chapter 6, PCI Power Management 1.2, PCI Express Base 3.0 chapter 7, MSI-X of PCI 3.0 6.8.2).
 */

/** Bytes of configuration space: the part that every bus has, and with PCI Express's extension. */
export const CONFIG_SIZE = 256;
export const EXTENDED_CONFIG_SIZE = 4096;

/** Offsets in a type 0 header. */
export const Header = {
  VENDOR_ID: 0x00,
  DEVICE_ID: 0x02,
  COMMAND: 0x04,
  STATUS: 0x06,
  REVISION_ID: 0x08,
  CLASS_CODE: 0x09,
  CACHE_LINE_SIZE: 0x0c,
  LATENCY_TIMER: 0x0d,
  HEADER_TYPE: 0x0e,
  BIST: 0x0f,
  BAR0: 0x10,
  SUBSYSTEM_VENDOR_ID: 0x2c,
  SUBSYSTEM_ID: 0x2e,
  EXPANSION_ROM: 0x30,
  CAPABILITIES: 0x34,
  INTERRUPT_LINE: 0x3c,
  INTERRUPT_PIN: 0x3d,
} as const;
/** The first byte behind the header. */
export const HEADER_SIZE = 0x40;
export const NUM_BARS = 6;

export const CommandBits = {
  IO: 1,
  MEMORY: 2,
  BUS_MASTER: 4,
  PARITY_RESPONSE: 0x40,
  SERR_ENABLE: 0x100,
  INTX_DISABLE: 0x400,
} as const;
export const StatusBits = { INTERRUPT: 8, CAPABILITIES_LIST: 0x10, ERRORS: 0xf900 } as const;
export const BarBits = { IO: 1, TYPE_MASK: 6, TYPE_64_BIT: 4, PREFETCHABLE: 8, MEMORY_FLAGS_MASK: 0xf } as const;

export const Capability = { POWER_MANAGEMENT: 0x01, VENDOR: 0x09, PCI_EXPRESS: 0x10, MSIX: 0x11 } as const;

/** Power management: u16 PMC at 2, u16 PMCSR at 4. */
export const Pm = { SIZE: 8, VERSION_3: 3, STATE_MASK: 3, NO_SOFT_RESET: 8 } as const;

/** PCI Express: offsets in the capability, and the bits that we use. */
export const Express = {
  SIZE: 0x3c,
  FLAGS: 0x02,
  DEVICE_CAPABILITIES: 0x04,
  DEVICE_CONTROL: 0x08,
  DEVICE_STATUS: 0x0a,
  LINK_CAPABILITIES: 0x0c,
  LINK_CONTROL: 0x10,
  LINK_STATUS: 0x12,
  /** Capability version 2, device type 0 (endpoint). */
  FLAGS_ENDPOINT_V2: 0x0002,
  /** Role-based error reporting, and function-level reset. */
  DEVICE_CAPABILITIES_VALUE: 0x1000_8000,
  /** Error reporting, relaxed ordering, payload and read request sizes, no snoop. */
  DEVICE_CONTROL_WRITABLE: 0x78ff,
  DEVICE_CONTROL_RESET_VALUE: 0x2810,
  DEVICE_CONTROL_FLR: 0x8000,
  DEVICE_STATUS_ERRORS: 0x000f,
  /** One lane of 2.5 GT/s. */
  LINK_WIDTH_AND_SPEED: 0x11,
} as const;

/** MSI-X: u16 message control at 2, u32 table at 4, u32 pending bits at 8 (each: BAR index in bits 0-2, offset above). */
export const Msix = {
  SIZE: 12,
  CONTROL: 2,
  TABLE: 4,
  PENDING: 8,
  CONTROL_SIZE_MASK: 0x7ff,
  CONTROL_FUNCTION_MASK: 0x4000,
  CONTROL_ENABLE: 0x8000,
  BAR_INDEX_MASK: 7,
  TABLE_ENTRY_SIZE: 16,
  /** The vector control word in an entry, and its mask bit, which is set after reset. */
  ENTRY_CONTROL: 12,
  ENTRY_CONTROL_MASK: 1,
} as const;
