/**
 * PCI: configuration space of a type 0 function, and the capabilities that our functions have or look for (PCI Local
 * Bus 3.0 chapter 6, PCI Power Management 1.2, PCI Express Base 3.0 chapter 7, MSI-X of PCI 3.0 6.8.2).
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
export const BarBits = {
  IO: 1,
  TYPE_MASK: 6,
  TYPE_64_BIT: 4,
  PREFETCHABLE: 8,
  MEMORY_FLAGS_MASK: 0xf,
  ROM_ENABLE: 1,
} as const;

export const Capability = { POWER_MANAGEMENT: 0x01, MSI: 0x05, VENDOR: 0x09, PCI_EXPRESS: 0x10, MSIX: 0x11 } as const;

/**
 * Capabilities of the extended space, each behind a u32: id in bits 0-15, version in 16-19, the next one's offset in
 * 20-31.
 */
export const ExtendedCapability = { ERROR_REPORTING: 0x0001, SERIAL_NUMBER: 0x0003, VENDOR: 0x000b } as const;

/** Power management: u16 PMC at 2, u16 PMCSR at 4. */
export const Pm = {
  SIZE: 8,
  CAPABILITIES: 2,
  CONTROL: 4,
  VERSION_3: 3,
  STATE_MASK: 3,
  D0: 0,
  D3_HOT: 3,
  NO_SOFT_RESET: 8,
} as const;

/** MSI: what follows the address depends on its width, and the last two are there with per-vector masking alone. */
export const Msi = {
  CONTROL: 2,
  ADDRESS: 4,
  CONTROL_ENABLE: 0x0001,
  /** Vectors as a power of two: those that the function can use, and those that it may. */
  CONTROL_CAPABLE_SHIFT: 1,
  CONTROL_ENABLED_SHIFT: 4,
  CONTROL_COUNT_MASK: 7,
  CONTROL_64_BIT: 0x0080,
  CONTROL_PER_VECTOR_MASKING: 0x0100,
  /** Address bits 0 and 1 are zero. */
  ADDRESS_MASK: 0xffff_fffc,
  MAX_VECTORS: 32,
  LAYOUT_32: { DATA: 0x08, MASK: 0x0c, PENDING: 0x10 },
  LAYOUT_64: { UPPER_ADDRESS: 0x08, DATA: 0x0c, MASK: 0x10, PENDING: 0x14 },
} as const;

/** Vendor-specific: u8 length of the whole at 2, the vendor's from 3 on. */
export const Vendor = { LENGTH: 2, DATA: 3, MAX_SIZE: 0xff } as const;

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
  DEVICE_CAPABILITIES_2: 0x24,
  DEVICE_CONTROL_2: 0x28,
  LINK_CAPABILITIES_2: 0x2c,
  LINK_CONTROL_2: 0x30,
  /** Capability version 2, device type 0 (endpoint). */
  FLAGS_ENDPOINT_V2: 0x0002,
  /** Role-based error reporting, function-level reset, 8-bit tags; bits 0-2 are the largest payload, 128 bytes << n. */
  DEVICE_CAPABILITIES_VALUE: 0x1000_8020,
  /** Error reporting, relaxed ordering, payload and read request sizes, 8-bit tags, no snoop. */
  DEVICE_CONTROL_WRITABLE: 0x79ff,
  /** Relaxed ordering, no snoop, read requests of 512 bytes. */
  DEVICE_CONTROL_RESET_VALUE: 0x2810,
  DEVICE_CONTROL_FLR: 0x8000,
  DEVICE_STATUS_ERRORS: 0x000f,
  /**
   * In link capabilities and link status alike: the speed in bits 0-3 (1: 2.5 GT/s, 2: 5 GT/s), the lanes from bit 4
   * on.
   */
  LINK_WIDTH_SHIFT: 4,
  /** Compliance with the rule that lets active state power management be left out. */
  LINK_CAPABILITIES_ASPM_OPTIONALITY: 0x0040_0000,
  /** Active state power management, common clock, extended synchronisation. */
  LINK_CONTROL_WRITABLE: 0x00c3,
  /** In device capabilities 2: completion timeouts can be disabled; in device control 2: they are. */
  COMPLETION_TIMEOUT_DISABLE: 0x10,
  /** Bit 0 of the vector of supported link speeds, which speed 1 stands for. */
  LINK_CAPABILITIES_2_SPEEDS_SHIFT: 1,
  /** Target speed, enter compliance, no autonomous change of speed. */
  LINK_CONTROL_2_WRITABLE: 0x003f,
} as const;

/** Device serial number: the lower and the upper half of an EUI-64. */
export const SerialNumber = { SIZE: 12, LOWER: 4, UPPER: 8 } as const;

/**
 * Vendor-specific extended capability: u32 at 4 with the id in bits 0-15, the revision in 16-19, the length in 20-31.
 */
export const VendorExtended = { HEADER: 4, DATA: 8, MAX_ID: 0xffff, MAX_REVISION: 0xf } as const;

/** Advanced error reporting, without TLP prefixes; the masks are the errors that an endpoint can have. */
export const ErrorReporting = {
  SIZE: 0x2c,
  UNCORRECTABLE_STATUS: 0x04,
  UNCORRECTABLE_MASK: 0x08,
  UNCORRECTABLE_SEVERITY: 0x0c,
  CORRECTABLE_STATUS: 0x10,
  CORRECTABLE_MASK: 0x14,
  /**
   * Data link, poisoned, flow control, completion timeout, abort and surprise, overflow, malformed, unsupported
   * request.
   */
  UNCORRECTABLE_ERRORS: 0x0017_f010,
  /** Data link, flow control, overflow and malformed are fatal after reset. */
  FATAL_ERRORS: 0x0006_2010,
  /** Receiver, bad TLP, bad DLLP, replay rollover and timeout, advisory. */
  CORRECTABLE_ERRORS: 0x0000_31c1,
  ADVISORY: 0x0000_2000,
} as const;

/**
 * MSI-X: u16 message control at 2, u32 table at 4, u32 pending bits at 8 (each: BAR index in bits 0-2, offset above).
 */
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
