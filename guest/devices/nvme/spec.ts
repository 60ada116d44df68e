/**
 * NVM Express 1.4: the numbers and layouts that a controller with the NVM command set needs, in the specification's
 * spelling; section and figure numbers are its own. Tables and constants only. The registers are in registers.ts.
 * Left out: fabrics, scatter gather lists, metadata, namespace management, directives, reservations, sanitize.
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
  MPTR: "u64",
  PRP1: "u64",
  PRP2: "u64",
  CDW10: "u32",
  CDW11: "u32",
  CDW12: "u32",
  CDW13: "u32",
  CDW14: "u32",
  CDW15: "u32",
});

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
} as const;

/** CDW12 of Read, Write, Compare, Verify and Write Zeroes: Number of Logical Blocks (0's based) and Force Unit Access. */
export const RW_NLB_MASK = 0xffff;
export const RW_FUA = 1 << 30;
/** CDW12 of Write Zeroes: Deallocate. */
export const WRITE_ZEROES_DEAC = 1 << 25;

/** 6.7 Dataset Management: Number of Ranges (0's based) of CDW10, Attribute Deallocate of CDW11. */
export const DSM_NR_MASK = 0xff;
export const DSM_DEALLOCATE = 1 << 2;
/** Figure 361: one range. The LBA is split, as drivers may name any 64-bit value. */
export const DsmRange = struct({ ATTRIBUTES: "u32", LENGTH: "u32", LBA_LOW: "u32", LBA_HIGH: "u32" });

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
 * 4.6.1 Status Field, as SCT << 8 | SC: generic (Figures 127 and 128), command specific (130) and media and data integrity
 * errors (132).
 */
export const Status = {
  SUCCESS: 0x000,
  INVALID_OPCODE: 0x001,
  INVALID_FIELD: 0x002,
  DATA_TRANSFER_ERROR: 0x004,
  INTERNAL_ERROR: 0x006,
  INVALID_NAMESPACE_OR_FORMAT: 0x00b,
  COMMAND_SEQUENCE_ERROR: 0x00c,
  PRP_OFFSET_INVALID: 0x013,
  KEEP_ALIVE_TIMEOUT_INVALID: 0x019,
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
    case Status.FORMAT_IN_PROGRESS:
    case Status.WRITE_FAULT:
    case Status.UNRECOVERED_READ_ERROR:
      return false;
    default:
      return true;
  }
}

/** Figure 244: Identify, Controller or Namespace Structure (CNS). */
export const Cns = {
  NAMESPACE: 0x00,
  CONTROLLER: 0x01,
  ACTIVE_NAMESPACE_LIST: 0x02,
  NAMESPACE_DESCRIPTOR_LIST: 0x03,
} as const;

export const IDENTIFY_SIZE = 4096;

/** Figure 247: Identify Controller Data Structure. */
export const IdentifyController = struct({
  VID: "u16",
  SSVID: "u16",
  SN: 20,
  MN: 40,
  FR: 8,
  RAB: "u8",
  IEEE: 3,
  CMIC: "u8",
  MDTS: "u8",
  CNTLID: "u16",
  VER: "u32",
  RTD3R: "u32",
  RTD3E: "u32",
  OAES: "u32",
  CTRATT: "u32",
  RRLS: "u16",
  reserved102: 9,
  CNTRLTYPE: "u8",
  FGUID: 16,
  CRDT1: "u16",
  CRDT2: "u16",
  CRDT3: "u16",
  reserved134: 122,
  OACS: "u16",
  ACL: "u8",
  AERL: "u8",
  FRMW: "u8",
  LPA: "u8",
  ELPE: "u8",
  NPSS: "u8",
  AVSCC: "u8",
  APSTA: "u8",
  WCTEMP: "u16",
  CCTEMP: "u16",
  MTFA: "u16",
  HMPRE: "u32",
  HMMIN: "u32",
  TNVMCAP: "u64",
  TNVMCAP_HIGH: "u64",
  UNVMCAP: 16,
  RPMBS: "u32",
  EDSTT: "u16",
  DSTO: "u8",
  FWUG: "u8",
  KAS: "u16",
  HCTMA: "u16",
  MNTMT: "u16",
  MXTMT: "u16",
  SANICAP: "u32",
  HMMINDS: "u32",
  HMMAXD: "u16",
  NSETIDMAX: "u16",
  ENDGIDMAX: "u16",
  ANATT: "u8",
  ANACAP: "u8",
  ANAGRPMAX: "u32",
  NANAGRPID: "u32",
  PELS: "u32",
  reserved356: 156,
  SQES: "u8",
  CQES: "u8",
  MAXCMD: "u16",
  NN: "u32",
  ONCS: "u16",
  FUSES: "u16",
  FNA: "u8",
  VWC: "u8",
  AWUN: "u16",
  AWUPF: "u16",
  NVSCC: "u8",
  NWPC: "u8",
  ACWU: "u16",
  reserved534: 2,
  SGLS: "u32",
  MNAN: "u32",
  reserved544: 224,
  SUBNQN: 256,
  reserved1024: 1024,
  PSD0: 32,
  PSD1_TO_31: 31 * 32,
  VENDOR_SPECIFIC: 1024,
});

/** ONCS, Optional NVM Command Support. */
export const Oncs = {
  COMPARE: 1 << 0,
  DATASET_MANAGEMENT: 1 << 2,
  WRITE_ZEROES: 1 << 3,
  SAVE_AND_SELECT: 1 << 4,
  VERIFY: 1 << 7,
} as const;
/** OACS, Optional Admin Command Support. */
export const Oacs = { FORMAT_NVM: 1 << 1, DOORBELL_BUFFER_CONFIG: 1 << 8 } as const;
/** OAES, and the same bit of Asynchronous Event Configuration: Namespace Attribute Notices. */
export const OAES_NAMESPACE_ATTRIBUTE = 1 << 8;
/** VWC: a cache is present; Flush with NSID FFFFFFFFh is supported. */
export const VWC_PRESENT = 0x7;
/** LPA: Commands Supported and Effects log page; extended data (offset and 32-bit length) for Get Log Page. */
export const LPA = 0x6;
export const CNTRLTYPE_IO = 1;

/** Figure 245: Identify Namespace Data Structure, NVM command set specific; the first of the 16 LBA formats. */
export const IdentifyNamespace = struct({
  NSZE: "u64",
  NCAP: "u64",
  NUSE: "u64",
  NSFEAT: "u8",
  NLBAF: "u8",
  FLBAS: "u8",
  MC: "u8",
  DPC: "u8",
  DPS: "u8",
  NMIC: "u8",
  RESCAP: "u8",
  FPI: "u8",
  DLFEAT: "u8",
  NAWUN: "u16",
  NAWUPF: "u16",
  NACWU: "u16",
  NABSN: "u16",
  NABO: "u16",
  NABSPF: "u16",
  NOIOB: "u16",
  NVMCAP: "u64",
  NVMCAP_HIGH: "u64",
  NPWG: "u16",
  NPWA: "u16",
  NPDG: "u16",
  NPDA: "u16",
  NOWS: "u16",
  reserved74: 18,
  ANAGRPID: "u32",
  reserved96: 3,
  NSATTR: "u8",
  NVMSETID: "u16",
  ENDGID: "u16",
  NGUID: 16,
  EUI64: 8,
  /** 16 formats of LbaFormat.size bytes. */
  LBAF: 64,
  reserved192: 3904,
});

/** Figure 246: LBA Format. */
export const LbaFormat = struct({ MS: "u16", LBADS: "u8", RP: "u8" });
/** NSFEAT: thin provisioning, so NUSE counts; and the fields from NPWG to NOWS are there. */
export const Nsfeat = { THINP: 1 << 0, OPTPERF: 1 << 4 } as const;
/** DLFEAT: deallocated blocks read as zeros; Write Zeroes can deallocate. */
export const DLFEAT = 0x1 | (1 << 3);

/** Figure 249: Namespace Identification Descriptor, NIDT 3 (UUID, 16 bytes). */
export const NamespaceDescriptor = struct({ NIDT: "u8", NIDL: "u8", reserved: 2, NID: 16 });
export const NIDT_UUID = 3;

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
  KEEP_ALIVE_TIMER: 0x0f,
} as const;

/** 5.2: Asynchronous Event Type and the Asynchronous Event Information values that this controller reports. */
export const EventType = { ERROR: 0, SMART: 1, NOTICE: 2 } as const;
export const ErrorEvent = { INVALID_DOORBELL_REGISTER: 0, INVALID_DOORBELL_VALUE: 1 } as const;
export const SmartEvent = { RELIABILITY: 0 } as const;
export const NoticeEvent = { NAMESPACE_ATTRIBUTE_CHANGED: 0 } as const;
