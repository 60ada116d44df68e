/** NVM Express 1.4, section 5.15: what Identify is asked for and answers with. Tables and constants only. */
import { struct } from "../../../shared/struct/struct.js";

/** Figure 244: Identify, Controller or Namespace Structure (CNS). */
export const Cns = {
  NAMESPACE: 0x00,
  CONTROLLER: 0x01,
  ACTIVE_NAMESPACE_LIST: 0x02,
  NAMESPACE_DESCRIPTOR_LIST: 0x03,
  /** From 2.0, but drivers ask for them whatever the version, and NVMe 1.4 drives then have an error in their log. */
  COMMAND_SET_NAMESPACE: 0x05,
  COMMAND_SET_CONTROLLER: 0x06,
} as const;

/** NVM Express 2.0, Command Set Identifier (CDW11, bits 31:24): the NVM command set. */
export const CSI_NVM = 0;

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
  /** The sum of several disks may be larger than a number is exact. */
  TNVMCAP: "u64big",
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
  OCFS: "u16",
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
  TIMESTAMP: 1 << 6,
  VERIFY: 1 << 7,
  COPY: 1 << 8,
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
/** OCFS: Copy takes source ranges in format 0. */
export const OCFS_FORMAT_0 = 1;
/** SGLS: supported, addresses and lengths in dwords. */
export const SGLS_DWORDS = 0x2;

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
  MSSRL: "u16",
  MCL: "u32",
  MSRC: "u8",
  reserved81: 11,
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
/** NSATTR: the namespace is write protected. */
export const NSATTR_WRITE_PROTECTED = 1 << 0;
/** DLFEAT: deallocated blocks read as zeros; Write Zeroes can deallocate. */
export const DLFEAT = 0x1 | (1 << 3);

/** Figure 249: the fixed part of a Namespace Identification Descriptor, which its identifier of NIDL bytes follows. */
export const NamespaceDescriptor = struct({ NIDT: "u8", NIDL: "u8", reserved: 2 });
/** NIDT. */
export const NamespaceIdentifier = { EUI64: 1, NGUID: 2, UUID: 3 } as const;
