/**
 * NVM Express 1.4: the numbers and layouts that a controller with the NVM command set needs, in the specification's
 * spelling; section and figure numbers are its own. Tables and constants only. The registers are in registers.ts, what
 * Identify answers with in spec-identify.ts.
 * Left out: fabrics, metadata, namespace management, directives, reservations, sanitize.
 */
import { struct } from "../../../shared/struct/struct.js";

/** 3.1.2 Version: 1.4.0. */
export const VERSION = 0x0001_0400;

/** Submission queue entry size, as a power of two and in bytes (CC.IOSQES, Identify SQES). */
export const SQES = 6;
export const SUBMISSION_ENTRY_SIZE = 1 << SQES;
/** Completion queue entry size (CC.IOCQES, Identify CQES). */
export const CQES = 4;
export const COMPLETION_ENTRY_SIZE = 1 << CQES;

/** The one value of NSID that means every namespace. */
export const NSID_ALL = 0xffff_ffff;

/** 4.2 Submission Queue Entry, command format for admin and NVM commands. */
export const Command = struct({
  /** CDW0 */
  OPC: "u8",
  /** FUSE in bits 1:0, PSDT in bits 7:6. */
  FLAGS: "u8",
  CID: "u16",
  NSID: "u32",
  reserved: 8,
  MPTR: "i64",
  PRP1: "i64",
  PRP2: "i64",
  CDW10: "u32",
  CDW11: "u32",
  CDW12: "u32",
  CDW13: "u32",
  CDW14: "u32",
  CDW15: "u32",
});

/** FUSE: a pair of commands that is carried out as one. */
export const Fuse = { MASK: 0x03, FIRST: 0x01, SECOND: 0x02 } as const;

/**
 * PSDT: by PRPs, or by an SGL whose first descriptor replaces both PRPs; the others differ in metadata alone.
 */
export const Psdt = { PRP: 0, SGL: 1, SGL_AND_METADATA: 2, RESERVED: 3 } as const;

/** 4.4, Figure 113: SGL descriptor. ID has the type in bits 7:4; bits 3:0, the sub type, are 0 for an address. */
export const SglDescriptor = struct({ ADDRESS: "i64", LENGTH: "u32", reserved: 3, ID: "u8" });
export const SGL_DESCRIPTOR_SIZE = SglDescriptor.size;
/** Figure 114, for ID. */
export const SglType = { DATA_BLOCK: 0x00, SEGMENT: 0x20, LAST_SEGMENT: 0x30 } as const;

/** 4.6 Completion Queue Entry. */
export const Completion = struct({
  DW0: "u32",
  DW1: "u32",
  SQHD: "u16",
  SQID: "u16",
  CID: "u16",
  /** Bit 0 is the Phase Tag, bits 15:1 the Status Field of 4.6.1. */
  STATUS: "u16",
});

/** Figure 139: Opcodes for Admin Commands. */
export const AdminOpcode = {
  DELETE_IO_SQ: 0x00,
  CREATE_IO_SQ: 0x01,
  GET_LOG_PAGE: 0x02,
  DELETE_IO_CQ: 0x04,
  CREATE_IO_CQ: 0x05,
  IDENTIFY: 0x06,
  ABORT: 0x08,
  SET_FEATURES: 0x09,
  GET_FEATURES: 0x0a,
  ASYNC_EVENT_REQUEST: 0x0c,
  KEEP_ALIVE: 0x18,
  DOORBELL_BUFFER_CONFIG: 0x7c,
  FORMAT_NVM: 0x80,
} as const;

/** Figure 346: Opcodes for NVM Commands. */
export const NvmOpcode = {
  FLUSH: 0x00,
  WRITE: 0x01,
  READ: 0x02,
  COMPARE: 0x05,
  WRITE_ZEROES: 0x08,
  DATASET_MANAGEMENT: 0x09,
  VERIFY: 0x0c,
  /** From 2.0 (NVM command set 1.0, 3.2.2). */
  COPY: 0x19,
} as const;

/**
 * CDW12 of Read, Write, Compare, Verify and Write Zeroes: Number of Logical Blocks (0's based) and Force Unit Access.
 */
export const RW_NLB_MASK = 0xffff;
export const RW_FUA = 1 << 30;
/** CDW12 of Write Zeroes: Deallocate. */
export const WRITE_ZEROES_DEAC = 1 << 25;

/** 6.7 Dataset Management: Number of Ranges (0's based) of CDW10, Attribute Deallocate of CDW11. */
export const DSM_NR_MASK = 0xff;
export const DSM_DEALLOCATE = 1 << 2;
/** Figure 361: one range. The LBA is split, as drivers may name any 64-bit value. */
export const DsmRange = struct({ ATTRIBUTES: "u32", LENGTH: "u32", LBA_LOW: "u32", LBA_HIGH: "u32" });

/** Copy (NVM command set 1.0, 3.2.2), CDW12: Number of Ranges (0's based) and Descriptor Format. */
export const CopyDword12 = {
  rangesOf: (cdw12: number): number => (cdw12 & 0xff) + 1,
  formatOf: (cdw12: number): number => (cdw12 >>> 8) & 0xf,
} as const;
/** Source Range Entries, format 0; NLB is 0's based. The LBA is split, as drivers may name any 64-bit value. */
export const CopyRange = struct({
  reserved: 8,
  LBA_LOW: "u32",
  LBA_HIGH: "u32",
  NLB: "u16",
  reserved18: 14,
});

/** 5.23 Format NVM, CDW10. */
export const Format = {
  lbafOf: (cdw10: number): number => cdw10 & 0xf,
  /** Metadata settings, protection information and its location: none of them is there. */
  PROTECTION_MASK: 0x1f0,
  /** Secure Erase Settings: 0 none, 1 user data, 2 cryptographic. */
  sesOf: (cdw10: number): number => (cdw10 >>> 9) & 0x7,
  SES_USER_DATA: 1,
} as const;

/**
 * 4.6.1 Status Field, as SCT << 8 | SC: generic (Figures 127 and 128), command specific (130) and media and data
 * integrity errors (132).
 */
export const Status = {
  SUCCESS: 0x000,
  INVALID_OPCODE: 0x001,
  INVALID_FIELD: 0x002,
  DATA_TRANSFER_ERROR: 0x004,
  INTERNAL_ERROR: 0x006,
  ABORT_REQUESTED: 0x007,
  ABORTED_SQ_DELETION: 0x008,
  ABORTED_FAILED_FUSED: 0x009,
  ABORTED_MISSING_FUSED: 0x00a,
  INVALID_NAMESPACE_OR_FORMAT: 0x00b,
  COMMAND_SEQUENCE_ERROR: 0x00c,
  INVALID_SGL_SEGMENT_DESCRIPTOR: 0x00d,
  INVALID_NUMBER_OF_SGL_DESCRIPTORS: 0x00e,
  DATA_SGL_LENGTH_INVALID: 0x00f,
  SGL_DESCRIPTOR_TYPE_INVALID: 0x011,
  PRP_OFFSET_INVALID: 0x013,
  SGL_OFFSET_INVALID: 0x016,
  KEEP_ALIVE_TIMEOUT_INVALID: 0x019,
  NAMESPACE_WRITE_PROTECTED: 0x020,
  LBA_OUT_OF_RANGE: 0x080,
  CAPACITY_EXCEEDED: 0x081,
  FORMAT_IN_PROGRESS: 0x084,
  COMPLETION_QUEUE_INVALID: 0x100,
  INVALID_QUEUE_IDENTIFIER: 0x101,
  INVALID_QUEUE_SIZE: 0x102,
  ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED: 0x105,
  INVALID_INTERRUPT_VECTOR: 0x108,
  INVALID_LOG_PAGE: 0x109,
  INVALID_FORMAT: 0x10a,
  INVALID_QUEUE_DELETION: 0x10c,
  FEATURE_NOT_SAVEABLE: 0x10d,
  FEATURE_NOT_CHANGEABLE: 0x10e,
  FEATURE_NOT_NAMESPACE_SPECIFIC: 0x10f,
  COMMAND_SIZE_LIMIT_EXCEEDED: 0x183,
  WRITE_FAULT: 0x280,
  UNRECOVERED_READ_ERROR: 0x281,
  COMPARE_FAILURE: 0x285,
} as const;

/** Bit 14 of the status field as it is above: Do Not Retry. */
export const DO_NOT_RETRY = 0x4000;

/** Whether the same command would fail again: true for what the driver got wrong, false for what the machine did. */
export function isFinal(status: number): boolean {
  switch (status) {
    case Status.SUCCESS:
    case Status.DATA_TRANSFER_ERROR:
    case Status.INTERNAL_ERROR:
    case Status.ABORT_REQUESTED:
    case Status.ABORTED_SQ_DELETION:
    case Status.ABORTED_FAILED_FUSED:
    case Status.FORMAT_IN_PROGRESS:
    case Status.WRITE_FAULT:
    case Status.UNRECOVERED_READ_ERROR:
      return false;
    default:
      return true;
  }
}

/** Figure 191: Get Log Page, Log Page Identifiers. */
export const LogPage = {
  ERROR_INFORMATION: 0x01,
  SMART: 0x02,
  FIRMWARE_SLOT: 0x03,
  CHANGED_NAMESPACE_LIST: 0x04,
  COMMANDS_SUPPORTED: 0x05,
} as const;

/** Figure 193: Error Information Log Entry. The LBA is split, as drivers may name any 64-bit value. */
export const ErrorEntry = struct({
  ERROR_COUNT: "u64",
  SQID: "u16",
  CID: "u16",
  /** As in the completion, with bit 0 for the phase. */
  STATUS: "u16",
  PARAMETER_ERROR_LOCATION: "u16",
  LBA_LOW: "u32",
  LBA_HIGH: "u32",
  NSID: "u32",
  reserved: 36,
});

/** Figure 194: SMART / Health Information Log; each 128-bit counter is its low half and zeros. */
export const Smart = struct({
  CRITICAL_WARNING: "u8",
  COMPOSITE_TEMPERATURE: "u16",
  AVAILABLE_SPARE: "u8",
  AVAILABLE_SPARE_THRESHOLD: "u8",
  PERCENTAGE_USED: "u8",
  reserved6: 26,
  DATA_UNITS_READ: "u64",
  reserved40: 8,
  DATA_UNITS_WRITTEN: "u64",
  reserved56: 8,
  HOST_READ_COMMANDS: "u64",
  reserved72: 8,
  HOST_WRITE_COMMANDS: "u64",
  reserved88: 8,
  CONTROLLER_BUSY_TIME: "u64",
  reserved104: 8,
  POWER_CYCLES: "u64",
  reserved120: 8,
  POWER_ON_HOURS: "u64",
  reserved136: 8,
  UNSAFE_SHUTDOWNS: "u64",
  reserved152: 8,
  MEDIA_ERRORS: "u64",
  reserved168: 8,
  ERROR_LOG_ENTRIES: "u64",
  reserved184: 8,
  reserved192: 320,
});
/** CRITICAL_WARNING bit 1: a temperature is beyond its threshold. */
export const CRITICAL_WARNING_TEMPERATURE = 1 << 1;
/** CRITICAL_WARNING bit 2: reliability is degraded due to media or internal errors. */
export const CRITICAL_WARNING_RELIABILITY = 1 << 2;

/** Figures 270 and 271: Feature Identifiers. */
export const Feature = {
  ARBITRATION: 0x01,
  POWER_MANAGEMENT: 0x02,
  TEMPERATURE_THRESHOLD: 0x04,
  ERROR_RECOVERY: 0x05,
  VOLATILE_WRITE_CACHE: 0x06,
  NUMBER_OF_QUEUES: 0x07,
  INTERRUPT_COALESCING: 0x08,
  INTERRUPT_VECTOR_CONFIGURATION: 0x09,
  WRITE_ATOMICITY_NORMAL: 0x0a,
  ASYNC_EVENT_CONFIGURATION: 0x0b,
  TIMESTAMP: 0x0e,
  KEEP_ALIVE_TIMER: 0x0f,
  HOST_BEHAVIOR_SUPPORT: 0x16,
} as const;

/**
 * Figure 285: Timestamp, milliseconds since 1970 in 48 bits. ATTRIBUTES: bit 0, it may have stood still; bits 3:1,
 * where it comes from: 0 a reset, 1 Set Features.
 */
export const Timestamp = struct({ LOW: "u32", HIGH: "u16", ATTRIBUTES: "u8", reserved: 1 });
export const TIMESTAMP_SET_BY_HOST = 1 << 1;

/** 5.21.1.22: Host Behavior Support. ACRE: the host knows Command Retry Delay in a status. */
export const HostBehavior = struct({ ACRE: "u8", reserved: 511 });

/** OAES, and the same bit of Asynchronous Event Configuration: Namespace Attribute Notices. */
export const OAES_NAMESPACE_ATTRIBUTE = 1 << 8;

/** 5.2: Asynchronous Event Type and the Asynchronous Event Information values that this controller reports. */
export const EventType = { ERROR: 0, SMART: 1, NOTICE: 2 } as const;
export const ErrorEvent = { INVALID_DOORBELL_REGISTER: 0, INVALID_DOORBELL_VALUE: 1 } as const;
export const SmartEvent = { RELIABILITY: 0, TEMPERATURE: 1 } as const;
export const NoticeEvent = { NAMESPACE_ATTRIBUTE_CHANGED: 0 } as const;
